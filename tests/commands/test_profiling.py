"""A profiled training from end to end: what is told, what is written, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrec.batch import HistoryBatch
from mmrec.commands import profiling as module
from mmrec.commands import train as training
from mmrec.commands.encoding_work import WorkLog
from mmrec.commands.profiling import figure_rows
from mmrec.commands.train import train_run
from mmrec.config import Config
from mmrec.errors import MmrecError
from mmrec.model.recommender import RecommenderModel
from mmrec.run_folder import RunFolder
from mmrec.training.checkpoint import checkpoints
from mmrec.training.profile import Profile
from mmrec.training.profiler import CHECKPOINT, OBJECTIVE, OPTIMISER, VALIDATION, WAITING
from mmrec.training.sections import OTHER
from mmrec.training.step_profiler import AGAIN, COUNTING
from tests.tiny_run import TinyEncoders, TinyFeed, changed, tiny_config

BATCHES = 3
"""Twenty users, eight at a time."""
CONTENTS = {"loader: text contents", "loader: image contents", "loader: item_id contents"}


@pytest.fixture
def config(tiny_encoders: TinyEncoders) -> Config:
    return tiny_config(tiny_encoders)


def profiled(config: Config, feed: TinyFeed, out: Path) -> Profile:
    profiles: list[Profile] = []
    train_run(config, feed=feed.prepared, out=out, device="cpu", on_profile=profiles.append)
    (profile,) = profiles
    return profile


def counts(profile: Profile) -> dict[str, int]:
    return {row.name: row.count for row in profile.rows}


def test_sections_add_up_and_are_written_down(config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
    profile = profiled(config, tiny_feed, tmp_path / "run")
    batches = 2 * BATCHES
    assert profile.steps == batches
    # The second batch's operations are counted instead of its sections timed.
    timed = dict.fromkeys(
        ["text encoder", "image encoder", "item id", "fusion", "user encoder", OBJECTIVE], batches - 1
    )
    whole = dict.fromkeys([WAITING, OPTIMISER, "loader: collation", *CONTENTS], batches)
    expected = timed | whole | {VALIDATION: 2, CHECKPOINT: 2, COUNTING: 1}
    assert {name: counts(profile)[name] for name in expected} == expected
    assert profile.rows[-1].name == OTHER
    assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.seconds, rel=1e-12)
    assert all(row.seconds >= row.backward_seconds >= 0 for row in profile.rows)
    backward = {row.name for row in profile.rows if row.backward_seconds > 0}
    assert {"item id", "fusion", "user encoder", OBJECTIVE} <= backward
    assert not {"text encoder", "image encoder", VALIDATION, OPTIMISER, WAITING} & backward, (
        "frozen or without gradient"
    )
    written = json.loads(RunFolder(tmp_path / "run").profile.read_text(encoding="utf-8"))
    assert written == profile.to_dict()
    assert sum(row["share"] for row in written["sections"]) == pytest.approx(1.0)
    assert sum(row["ms_per_step"] for row in written["sections"]) == pytest.approx(1000 * profile.seconds / batches)


def test_what_stands_beside_the_times(config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
    live = {"text": {**config.encoders["text"].model_dump(mode="json"), "tuning": {"mode": "full"}}}
    profile = profiled(changed(config, encoders=live), tiny_feed, tmp_path / "run")
    figures = profile.figures
    assert figures["items_named"] > figures["items_distinct"] > 0
    # Pictures come from the cache in training, bank refresh and validation alike; captions are encoded.
    assert (figures["image_cache_hit_share"], figures["text_cache_hit_share"]) == (1.0, 0.0)
    assert "image_padding_share" not in figures
    assert 0 <= figures["text_padding_share"] < 1
    for name in ("targets_per_second", "peak_memory_bytes", "operations_per_target", "matrix_peak_share"):
        assert figures[name] > 0, name
    shown = dict(map(tuple, figure_rows(profile)))
    assert shown["wall time"].endswith("6 steps on cpu")
    assert "100.0% trunk cache hits" in shown["image contents"]
    assert "token padding" in shown["text contents"]
    assert "(float32)" in shown["share of the matrix peak"]
    assert "peak memory of the device" not in shown


def test_what_is_computed_again_is_a_section_of_its_own(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Sizes(WorkLog):
        def count(self, batch: HistoryBatch) -> None:
            sizes.append(len(batch.items))
            super().count(batch)

    monkeypatch.setattr(training, "WorkLog", Sizes)
    profile = profiled(changed(config, train={"items_at_once": 3, "epochs": 1}), tiny_feed, tmp_path / "run")
    again = next(row for row in profile.rows if row.name == AGAIN)
    assert again.seconds == again.backward_seconds > 0
    # Each slice of the first and the third batch once: what the backward pass repeats is not one more time.
    assert counts(profile)["fusion"] == -(-sizes[0] // 3) - (-sizes[2] // 3)
    assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.seconds, rel=1e-12)


def test_batches_prepared_by_a_thread_stand_beside(config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
    profile = profiled(changed(config, train={"workers": 1, "epochs": 1}), tiny_feed, tmp_path / "run")
    beside = {row.name: row.count for row in profile.loader_rows}
    assert beside == dict.fromkeys(["loader: collation", *CONTENTS], BATCHES)
    assert not [name for name in counts(profile) if name.startswith("loader: ")]
    assert counts(profile)[WAITING] == BATCHES


def test_profiled_and_unprofiled_end_in_the_same_bits(
    config: Config, tiny_run: Path, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[RecommenderModel] = []
    watch = module.watch_model
    monkeypatch.setattr(module, "watch_model", lambda model, profiler: (models.append(model), watch(model, profiler)))
    profiled(config, tiny_feed, tmp_path / "run")
    paths = [checkpoints(RunFolder(folder).checkpoints)[-1] for folder in (tmp_path / "run", tiny_run)]
    for name in ("model.safetensors", "optimizer.safetensors", "bank.safetensors", "rng.safetensors"):
        found, expected = (load_file(path / name) for path in paths)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name
    assert not RunFolder(tiny_run).profile.exists()
    (model,) = models
    assert not [part for part in model.modules() if part._forward_hooks or part._forward_pre_hooks]


def test_a_model_of_ids_alone_has_no_fusion(config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
    ids = changed(config, train={"epochs": 1}).model_copy(update={"encoders": {"item_id": config.encoders["item_id"]}})
    found = counts(profiled(ids, tiny_feed, tmp_path / "run"))
    assert "fusion" not in found
    assert found["item id"] == BATCHES - 1


class TestStopped:
    def run(self, config: Config, feed: TinyFeed, out: Path, error: BaseException) -> list[Profile]:
        profiles: list[Profile] = []

        def stop(message: str) -> None:
            if message.startswith("validation"):
                raise error

        with pytest.raises(type(error)):
            train_run(config, feed=feed.prepared, out=out, device="cpu", notify=stop, on_profile=profiles.append)
        return profiles

    def test_ctrl_c_still_shows_it(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        (profile,) = self.run(config, tiny_feed, tmp_path / "run", KeyboardInterrupt())
        assert profile.steps == BATCHES
        assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.seconds, rel=1e-12)
        assert RunFolder(tmp_path / "run").profile.exists()

    def test_an_error_does_not(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        assert self.run(config, tiny_feed, tmp_path / "run", MmrecError("a finite loss")) == []
        assert not RunFolder(tmp_path / "run").profile.exists()


def test_unprofiled_training_has_no_hooks(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = training.train

    def look(**given: object) -> object:
        model = given["model"]
        assert isinstance(model, RecommenderModel)
        seen.extend(name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks)
        seen.append("looked")
        return original(**given)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", look)
    train_run(changed(config, train={"epochs": 1}), feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu")
    assert seen == ["looked"]
