from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrec import storage
from mmrec.batch import HistoryBatch, ModelOutput
from mmrec.errors import ArtifactError, ConfigError, MmrecError
from mmrec.training.checkpoint import best_checkpoint, checkpoints, read_checkpoint
from mmrec.training.contract import StepReport, TrainResult, TrainSettings
from mmrec.training.loop import train
from mmrec.training.loss import LossTerms
from mmrec.training.ranks import Ranks
from mmrec.training.snapshot import load_model_tensors, model_tensors
from tests.training.tiny import ITEMS, TinyLoader, TinyTraining, make_batch, settings, tiny_loss


@dataclass
class Recorder:
    """A tracker that remembers."""

    started: list[tuple[int, int]] = field(default_factory=list)
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    closed: int = 0

    def start(self, *, step: int, records: int) -> None:
        self.started.append((step, records))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


@dataclass
class Counted:
    """Items of batches since they were last read."""

    items: int = 0

    def count(self, batch: HistoryBatch) -> None:
        self.items += len(batch.items)

    def read(self) -> dict[str, float]:
        found, self.items = float(self.items), 0
        return {"items": found}


def run(
    tiny: TinyTraining, chosen: TrainSettings, *, recorder: Recorder | None = None, resume: bool = False
) -> TrainResult:
    return train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=tiny.loader,
        settings=chosen,
        folder=tiny.folder,
        accelerator=tiny.accelerator,
        validate=tiny.validate,
        refresh_bank=tiny.refresh_bank,
        trackers=[] if recorder is None else [recorder],
        resume=resume,
    )


def test_loss_falls_and_everything_is_logged(tmp_path: Path) -> None:
    tiny, recorder, reports, work = TinyTraining(tmp_path), Recorder(), list[StepReport](), Counted()
    tiny.model.dropout.p = 0.0
    result = train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=SameBatch((6,) * 12),
        settings=settings(epochs=2, accumulate=1, checkpoint_steps=0),
        folder=tmp_path,
        accelerator=tiny.accelerator,
        work=work,
        trackers=[recorder],
        progress=reports.append,
    )
    steps = [values for _, values in recorder.logged if "gradient_norm" in values]
    assert len(steps) == result.steps == 24
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    wanted = {"loss", "loss/own", "loss/rest", "learning_rate", "gradient_norm", "skipped_batches"}
    assert set(steps[0]) == wanted | {"targets_per_second", "data_wait_share", "work/items"}
    assert [values["work/items"] for values in steps] == [ITEMS] * 24
    assert steps[0]["targets_per_second"] > 0
    assert 0 <= steps[0]["data_wait_share"] <= 1
    assert [report.step for report in reports] == list(range(1, 25))
    assert {report.total_steps for report in reports} == {24}
    assert (recorder.started, recorder.closed) == ([(0, 0)], 1)
    assert result.best_metric is None
    assert result.best_checkpoint == result.last_checkpoint == best_checkpoint(tmp_path)
    assert result.seconds > 0


def test_work_is_counted_for_every_batch_and_read_for_every_record(tmp_path: Path) -> None:
    tiny, recorder = TinyTraining(tmp_path), Recorder()
    train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=TinyLoader((5, 3, 4, 2, 0)),
        settings=replace(settings(epochs=2, accumulate=2), log_steps=3),
        folder=tmp_path,
        accelerator=tiny.accelerator,
        work=Counted(),
        trackers=[recorder],
    )
    # Three steps an epoch: batches 1 and 2, 3 and 4, and 5 alone.
    assert [(step, values["work/items"]) for step, values in recorder.logged if "work/items" in values] == [
        (3, 5 * ITEMS),
        (6, 5 * ITEMS),
    ]


@dataclass(frozen=True)
class SameBatch(TinyLoader):
    def batches(self, *, epoch: int, start: int) -> Iterator[HistoryBatch]:
        for index in range(start, len(self.sizes)):
            yield make_batch(seed=5, num_targets=self.sizes[index])


def test_accumulated_batches_equal_the_mean_over_all_their_targets(tmp_path: Path) -> None:
    """Batches of 5, 1 and 0 targets in one group: the gradient is that of the mean over the six targets."""
    tiny, naive = TinyTraining(tmp_path), TinyTraining(tmp_path)
    for entry in (tiny, naive):
        entry.model.dropout.p = 0.0
    tiny.loader = TinyLoader((5, 1, 0))
    chosen = replace(settings(epochs=1, accumulate=3), clip_norm=1e9, warmup_share=0.0)
    result = run_plain(tiny, chosen)

    sums = [
        tiny_loss(naive.model(batch), batch, None).total * len(batch.targets)
        for batch in tiny.loader.batches(epoch=0, start=0)
        if len(batch.targets)
    ]
    (torch.stack(sums).sum() / 6).backward()
    naive.optimizer.step()
    assert (result.steps, result.skipped_batches) == (1, 1)
    assert result.history[0]["loss"] == pytest.approx(float(torch.stack(sums).sum().detach()) / 6, rel=1e-6)
    for own, other in zip(tiny.model.parameters(), naive.model.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def run_plain(tiny: TinyTraining, chosen: TrainSettings) -> TrainResult:
    return train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=tiny.loader,
        settings=chosen,
        folder=tiny.folder,
        accelerator=tiny.accelerator,
    )


def test_loop_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    """Dropout, bank, clipping and schedule together, bit for bit."""
    tiny, naive = TinyTraining(tmp_path), TinyTraining(tmp_path)
    tiny.loader = TinyLoader((5, 3, 4))
    run(tiny, replace(settings(epochs=2, accumulate=1), clip_norm=0.5, warmup_share=0.5))

    torch.manual_seed(11)
    bank, step = torch.zeros(0), 0
    for epoch in range(2):
        for batch in tiny.loader.batches(epoch=epoch, start=0):
            if step % 3 == 0:
                naive.model.eval()
                bank = naive.refresh_bank().detach()
            naive.model.train()
            naive.optimizer.zero_grad()
            tiny_loss(naive.model(batch), batch, bank).total.backward()
            torch.nn.utils.clip_grad_norm_(naive.model.parameters(), 0.5)
            # Six steps, three of them warm-up: 1/4, 2/4, 3/4 of the peak, then the cosine at 0, 1/3 and 2/3.
            share = (step + 1) / 4 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 3))
            for group in naive.optimizer.param_groups:
                group["lr"] = 0.05 * share
            naive.optimizer.step()
            step += 1
    for own, other in zip(tiny.model.state_dict().values(), naive.model.state_dict().values(), strict=True):
        assert torch.equal(own, other)


def test_best_and_last_checkpoint(tmp_path: Path) -> None:
    tiny, scores = TinyTraining(tmp_path), iter([0.1, 0.3, 0.2, 0.3, 0.1])
    weights: list[Tensor] = []

    def validate() -> dict[str, float]:
        assert not tiny.model.training
        weights.append(tiny.model.mix.weight.detach().clone())
        return {"ndcg@10": next(scores)}

    tiny.validate = validate  # type: ignore[method-assign]
    result = run(tiny, settings(epochs=9, metric="ndcg@10", patience=3))
    # The tie in epoch 4 is no improvement: three evaluations after the second, training stops.
    assert (result.epochs, result.stopped_early, result.best_metric) == (5, True, 0.3)
    assert result.best_checkpoint.name == "epoch-0002-batch-000000"
    assert result.best_checkpoint == best_checkpoint(tmp_path)
    assert result.last_checkpoint.name == "epoch-0005-batch-000000"
    assert [record["ndcg@10"] for record in result.history] == [0.1, 0.3, 0.2, 0.3, 0.1]

    fresh = TinyTraining(tmp_path).model
    load_model_tensors(fresh, read_checkpoint(result.best_checkpoint).tensors["model"], where="best")
    assert torch.equal(fresh.mix.weight, weights[1])
    assert torch.equal(tiny.model.mix.weight, weights[4])


def test_lower_is_better(tmp_path: Path) -> None:
    tiny, scores = TinyTraining(tmp_path), iter([0.5, 0.4, 0.6])
    tiny.validate = lambda: {"rmse": next(scores)}  # type: ignore[method-assign]
    result = run(tiny, settings(epochs=3, metric="rmse", higher_is_better=False))
    assert (result.best_metric, result.best_checkpoint.name) == (0.4, "epoch-0002-batch-000000")


def test_evaluate_every_and_last_epoch(tmp_path: Path) -> None:
    result = run(TinyTraining(tmp_path), settings(epochs=5, evaluate_every=2))
    assert ["fit" in record for record in result.history] == [False, True, False, True, True]


def test_evaluating_changes_nothing(tmp_path: Path) -> None:
    """Validation draws random numbers, yet training with and without it ends in the same bits."""
    often, once = TinyTraining(tmp_path / "often"), TinyTraining(tmp_path / "once")
    run(often, settings(evaluate_every=1))
    run(once, settings(evaluate_every=4))
    for own, other in zip(often.model.state_dict().values(), once.model.state_dict().values(), strict=True):
        assert torch.equal(own, other)


def test_batches_without_targets_are_skipped_and_counted(tmp_path: Path) -> None:
    tiny = TinyTraining(tmp_path)
    tiny.loader = TinyLoader((0, 4, 0))
    result = run(tiny, settings(epochs=2, accumulate=1))
    assert (result.steps, result.skipped_batches) == (6, 4)
    assert tiny.model.forwards.item() == 2

    nothing = TinyTraining(tmp_path / "nothing")
    nothing.loader = TinyLoader((0, 0))
    before = {name: tensor.clone() for name, tensor in nothing.model.state_dict().items()}
    result = run(nothing, settings(epochs=1))
    assert math.isnan(result.history[0]["loss"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in nothing.model.state_dict().items())
    # NaN survives the way through JSON.
    other = TinyTraining(tmp_path / "nothing")
    other.loader = TinyLoader((0, 0))
    assert math.isnan(run(other, settings(epochs=1), resume=True).history[0]["loss"])


class TwoAtLeast(Ranks):
    """One of two processes, as far as it says; nothing is sent."""

    def sum(self, values: Tensor) -> Tensor:
        return values

    def agree(self, tensors: object) -> None:
        return

    def collect(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [dict(tensors)]


def test_whole_batches_are_not_for_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "of", lambda accelerator: TwoAtLeast(rank=0, count=2))
    with pytest.raises(ConfigError, match=r"shared out among 2 processes, got whole ones.*rank"):
        run(TinyTraining(tmp_path), settings())


def test_loss_that_is_not_finite_names_step_and_terms(tmp_path: Path) -> None:
    tiny, calls = TinyTraining(tmp_path), iter(range(99))

    def loss(output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> LossTerms:
        terms = tiny_loss(output, batch, bank)
        bad = next(calls) == 3
        return LossTerms(terms.total * (math.inf if bad else 1.0), {"own": terms.parts["own"]}, terms.num_targets)

    with pytest.raises(MmrecError, match=r"finite loss.*loss = inf, loss/own = [0-9.]+, in step 5 of epoch 1"):
        train(
            model=tiny.model,
            loss=loss,
            optimizer=tiny.optimizer,
            loader=tiny.loader,
            settings=settings(accumulate=1),
            folder=tmp_path,
            accelerator=tiny.accelerator,
        )
    # The fourth loss is that of batch 4, in step 5: the checkpoint of step 4 is whole and finite.
    kept = read_checkpoint(checkpoints(tmp_path)[-1])
    assert all(tensor.isfinite().all() for tensor in kept.tensors["model"].values())


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    tiny = TinyTraining(tmp_path)
    before = tiny.model.mix.weight.detach().clone()

    def loss(output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> LossTerms:
        zero = (output.target_vectors * 0.0).square().sum().sqrt()
        return LossTerms(zero, {}, len(batch.targets))

    with pytest.raises(MmrecError, match=r"finite gradient.*step 1 of epoch 1"):
        train(
            model=tiny.model,
            loss=loss,
            optimizer=tiny.optimizer,
            loader=tiny.loader,
            settings=settings(accumulate=1),
            folder=tmp_path,
            accelerator=tiny.accelerator,
        )
    assert torch.equal(tiny.model.mix.weight, before)


def test_unknown_metric_lists_near_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'fitt'.*train\.metric.*did you mean 'fit'"):
        run(TinyTraining(tmp_path), settings(metric="fitt"))


def test_empty_loader(tmp_path: Path) -> None:
    tiny = TinyTraining(tmp_path)
    tiny.loader = TinyLoader(())
    with pytest.raises(ConfigError, match="at least one batch"):
        run(tiny, settings())


def test_folder_that_holds_a_run_is_not_trained_over(tmp_path: Path) -> None:
    run(TinyTraining(tmp_path), settings(epochs=1))
    with pytest.raises(ArtifactError, match=r"without checkpoints.*--resume"):
        run(TinyTraining(tmp_path), settings(epochs=1))


def test_finished_training_resumed_gives_its_result(tmp_path: Path) -> None:
    first, recorder = run(TinyTraining(tmp_path), settings(epochs=2)), Recorder()
    tiny = TinyTraining(tmp_path)
    second = run(tiny, settings(epochs=2), resume=True, recorder=recorder)
    assert replace(second, seconds=0.0) == replace(first, seconds=0.0)
    # Eight steps and two evaluations were logged before.
    assert (recorder.started, recorder.logged) == ([(8, 10)], [])


def test_damaged_newest_checkpoint_is_skipped_and_the_run_ends_the_same(tmp_path: Path) -> None:
    whole = run(TinyTraining(tmp_path / "whole"), settings())
    run(TinyTraining(tmp_path / "hurt"), settings())
    for path in checkpoints(tmp_path / "hurt")[-2:]:
        os.truncate(path / "model.safetensors", 100)
    tiny, warnings = TinyTraining(tmp_path / "hurt"), list[str]()
    resumed = train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=tiny.loader,
        settings=settings(),
        folder=tiny.folder,
        accelerator=tiny.accelerator,
        validate=tiny.validate,
        refresh_bank=tiny.refresh_bank,
        resume=True,
        warn=warnings.append,
    )
    assert [text.split()[1] for text in warnings] == ["epoch-0004-batch-000000", "epoch-0003-batch-000007"]
    assert resumed.history == whole.history
    for own, other in zip(checkpoints(tmp_path / "hurt"), checkpoints(tmp_path / "whole"), strict=True):
        assert (own / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:checkpoint epoch")
def test_all_checkpoints_damaged_starts_from_the_beginning(tmp_path: Path) -> None:
    whole = run(TinyTraining(tmp_path), settings(epochs=2))
    for path in checkpoints(tmp_path):
        (path / "state.json").unlink()
    with pytest.warns(UserWarning, match="starts from the beginning"):
        again = run(TinyTraining(tmp_path), settings(epochs=2), resume=True)
    assert again.history == whole.history


def test_other_base_weights_or_other_data_are_refused(tmp_path: Path) -> None:
    run(TinyTraining(tmp_path), settings(epochs=1))
    other = TinyTraining(tmp_path)
    other.loader = TinyLoader((5, 3))
    with pytest.raises(ArtifactError, match="7 batches in an epoch"):
        run(other, settings(epochs=2), resume=True)
    tiny = TinyTraining(tmp_path)
    with pytest.raises(ArtifactError, match="frozen weights"):
        train(
            model=tiny.model,
            loss=tiny_loss,
            optimizer=tiny.optimizer,
            loader=tiny.loader,
            settings=settings(epochs=2),
            folder=tmp_path,
            accelerator=tiny.accelerator,
            base={"text": "another"},
            resume=True,
        )


def test_bank_made_in_inference_mode_can_be_trained_against(tmp_path: Path) -> None:
    tiny = TinyTraining(tmp_path)
    encode = tiny.refresh_bank

    def refresh_bank() -> Tensor:
        with torch.inference_mode():
            return encode()

    tiny.refresh_bank = refresh_bank  # type: ignore[method-assign]
    assert run(tiny, settings(epochs=1)).steps == 4


def test_bfloat16_hands_float32_to_the_loss(tmp_path: Path) -> None:
    tiny, seen = TinyTraining(tmp_path), set[torch.dtype]()
    inside: set[torch.dtype] = set()
    tiny.model.mix.register_forward_hook(lambda module, inputs, output: inside.add(output.dtype))

    def loss(output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> LossTerms:
        seen.update({output.target_vectors.dtype, output.item_embeddings.dtype})
        return tiny_loss(output, batch, bank)

    train(
        model=tiny.model,
        loss=loss,
        optimizer=tiny.optimizer,
        loader=tiny.loader,
        settings=replace(settings(epochs=1), precision="bfloat16"),
        folder=tmp_path,
        accelerator=tiny.accelerator,
    )
    assert inside == {torch.bfloat16}
    assert seen == {torch.float32}
    assert {parameter.dtype for parameter in tiny.model.parameters()} == {torch.float32}


def test_interrupt_from_a_callback_leaves_a_checkpoint(tmp_path: Path) -> None:
    tiny = TinyTraining(tmp_path)

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            model=tiny.model,
            loss=tiny_loss,
            optimizer=tiny.optimizer,
            loader=tiny.loader,
            settings=settings(checkpoint_steps=0),
            folder=tmp_path,
            accelerator=tiny.accelerator,
            progress=stop,
        )
    # Three steps of two batches.
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-0000-batch-000006"]
    kept = read_checkpoint(checkpoints(tmp_path)[0]).tensors["model"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in model_tensors(tiny.model).items())


def test_full_disk_stops_with_a_word_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(TinyTraining(tmp_path / "whole"), settings(epochs=2))
    flush, calls = storage._flush_file, iter(range(999))

    def full(path: Path) -> None:
        if next(calls) >= 14:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_flush_file", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.*--resume"):
            run(TinyTraining(tmp_path / "full"), settings(epochs=2))
    left = [path.name for path in (tmp_path / "full").iterdir()]
    assert left
    assert not [name for name in left if "partial" in name]
    assert run(TinyTraining(tmp_path / "full"), settings(epochs=2), resume=True).history == whole.history
