"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec.commands.export import export_run
from mmrec.commands.train import train_run
from mmrec.config import Config, validate
from mmrec.contents import ImageContent
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.feed.items import ItemReader, Modality, optional_links
from mmrec.inference.device_contents import DeviceContents, device_room, keep_on_device
from mmrec.inference.recommender import Recommender
from mmrec.preprocessing.views import PixelView
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json
from mmrec.training.checkpoint import checkpoints
from mmrec.training.precision import mixed_precision
from mmrec.training.profile import Profile
from mmrec.training.transfer import send_ahead
from tests.encoders.tiny_models import efficientnet, lively
from tests.model.samples import POSTS, item_batch, item_encoder
from tests.tiny_run import TinyEncoders, TinyFeed, changed, tiny_config
from tests.training.test_waiting import CATALOGUE, DIM, batch, loss, model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")


def without_chance(encoders: TinyEncoders, **train: object) -> Config:
    """A configuration that draws nothing on the device: there random numbers differ from a CPU's."""
    config = tiny_config(encoders, train=train)
    quiet = {"dropout": 0.0, "feature_dropout": 0.0, "modality_dropout": 0.0}
    return changed(
        config,
        model={
            "fusion": config.model.fusion.model_dump() | quiet,
            "user": config.model.user.model_dump() | {"dropout": 0.0},
        },
        objective={"contrastive_weight": 0.0},
    )


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["epoch/loss"] for record in map(json.loads, lines) if "epoch/loss" in record]


def train_on_gpu(config: Config, feed: TinyFeed, out: Path, *, resume: bool = False) -> list[str]:
    """Train, and return what was said; refuses a training that went elsewhere."""
    said: list[str] = []
    summary = train_run(config, feed=feed.prepared, out=out, device="cuda", resume=resume, notify=said.append)
    assert summary["device"] == "cuda"
    return said


@pytest.fixture(scope="module")
def cpu_losses(
    tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    out = tmp_path_factory.mktemp("runs") / "cpu"
    train_run(without_chance(tiny_encoders), feed=tiny_feed.prepared, out=out, device="cpu")
    return losses(out)


@pytest.mark.parametrize("kept", [0.0, 0.25])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_training_comes_to_what_it_comes_to_on_a_cpu(
    cpu_losses: list[float],
    tiny_feed: TinyFeed,
    tiny_encoders: TinyEncoders,
    tmp_path: Path,
    precision: str,
    tolerance: float,
    kept: float,
) -> None:
    config = without_chance(tiny_encoders, precision=precision, device_contents=kept, workers=1)
    said = train_on_gpu(config, tiny_feed, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(cpu_losses, rel=tolerance)
    assert any(sentence.startswith("kept on cuda") for sentence in said) == bool(kept), said


@pytest.mark.usefixtures("own_translations")
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_compiled_training_comes_to_the_same(
    tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path, blocks: int
) -> None:
    """With frozen encoders, and with a live block of the text encoder, whose captions need masks."""
    found = []
    for compiled in (False, True):
        config = without_chance(tiny_encoders, precision="float32", compile=compiled)
        if blocks:
            values = config.model_dump(mode="json")
            values["encoders"]["text"]["tuning"] |= {"mode": "top", "blocks": blocks}
            config = validate(values, where="test")
        train_on_gpu(config, tiny_feed, tmp_path / f"run-{compiled}")
        found.append(losses(tmp_path / f"run-{compiled}"))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_is_computed_again_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout on the device is that of the forward pass, although all that a slice of items is given is on the CPU."""

    def gradients() -> list[torch.Tensor | None]:
        encoder = item_encoder(items_at_once=2, feature_dropout=0.5).to(CUDA).train()
        torch.manual_seed(1)
        torch.autograd.backward(encoder(item_batch(POSTS).to(CUDA)).cumsum(0).square().sum())
        return [parameter.grad for parameter in encoder.parameters()]

    torch.manual_seed(0)
    again = gradients()

    def kept(run: Callable[..., object], *given: object, use_reentrant: bool) -> object:
        return run(*given)

    monkeypatch.setattr("mmrec.model.item_encoder.checkpoint", kept)
    torch.manual_seed(0)
    for mine, expected in zip(again, gradients(), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("trunk_blocks", [0, 2])
def test_a_filled_batch_of_pictures_comes_to_what_it_comes_to_on_a_cpu(trunk_blocks: int) -> None:
    """35 pictures go through a convolutional network as 36."""
    stack = TimmStack(lively(efficientnet()), side=32)
    encoder = ImageEncoder(stack, trunk_blocks=trunk_blocks, mean=(0.5,) * 3, std=(0.5,) * 3)
    pictures = ImageContent(pixels=torch.randint(0, 256, (35, 3, 32, 32), dtype=torch.uint8))
    found = []
    for device in (torch.device("cpu"), CUDA):
        encoder.to(device).zero_grad()
        states = encoder(pictures.to(device)).states
        states.square().mean().backward()
        found.append([states.detach().cpu(), *(p.grad.cpu() for p in encoder.parameters() if p.grad is not None)])
    for mine, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_a_resumed_training_goes_on_where_it_was(
    tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path
) -> None:
    config = tiny_config(tiny_encoders, train={"precision": "float32", "checkpoint_steps": 1})
    whole = tmp_path / "whole"
    train_on_gpu(config, tiny_feed, whole)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    newest = checkpoints(RunFolder(again).checkpoints)[-1]
    shutil.rmtree(newest)
    train_on_gpu(config, tiny_feed, again, resume=True)
    assert losses(again)[-1] == pytest.approx(losses(whole)[-1], rel=1e-4)


def test_vectors_and_scores_are_those_of_a_cpu(tiny_run: Path, tmp_path: Path) -> None:
    ids = [f"p{row:02}" for row in range(10)]
    scores, tables = {}, {}
    for device in ("cpu", "cuda"):
        recommender = Recommender.load(tiny_run, device=device)
        answer = recommender.score(history=ids[:4], candidates=ids[4:])
        scores[device] = answer["score"].to_numpy()
        tables[device] = np.asarray(recommender.item_embeddings())
        export_run(tiny_run, out=tmp_path / device, device=device)
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], atol=1e-4)
    np.testing.assert_allclose(tables["cuda"], tables["cpu"], atol=1e-4)


def test_a_profile_is_timed_by_events_and_adds_up(
    tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path
) -> None:
    found: list[Profile] = []
    out = tmp_path / "run"
    train_run(tiny_config(tiny_encoders), feed=tiny_feed.prepared, out=out, device="cuda", on_profile=found.append)
    written = read_json(RunFolder(out).profile)
    assert written["device"] == f"cuda ({torch.cuda.get_device_name()})"
    assert sum(row.seconds for row in found[0].rows) == pytest.approx(found[0].seconds, rel=1e-6)
    assert all(row.seconds >= -0.01 for row in found[0].rows)
    assert 0 < found[0].figures["matrix_peak_share"] < 1


def test_what_is_kept_on_a_gpu_is_read_there() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4)).astype(np.uint8)
    reader = ItemReader({"image": Modality(optional_links(np.arange(6)), PixelView((pixels,), side=4))})
    kept = keep_on_device(reader, CUDA, room=device_room(CUDA, share=0.01))
    assert isinstance(kept.modalities["image"].source, DeviceContents)
    stored = kept.read(np.array([1, 4])).to(CUDA).parts["image"].content
    assert torch.equal(stored.read().pixels.cpu(), torch.from_numpy(pixels[[1, 4]]))  # type: ignore[union-attr]


@pytest.mark.parametrize(("narrow", "tolerance"), [(False, 1e-3), (True, 2e-2)])
def test_a_step_makes_the_host_wait_for_nothing(*, narrow: bool, tolerance: float) -> None:
    bank = torch.randn(CATALOGUE, DIM + 1, generator=torch.Generator().manual_seed(2))
    here, there, objective = model(live=2), model(live=2).to(CUDA), loss("full_softmax").to(CUDA)
    torch.manual_seed(3)
    expected = loss("full_softmax")(here(batch()), batch(), bank).total
    bank = bank.to(CUDA)
    found = []
    # The first step loads kernels, for which the host waits once.
    for mode in ("default", "error"):
        moved = next(send_ahead(iter([batch()]), CUDA)).receive(CUDA)
        torch.manual_seed(3)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with mixed_precision(CUDA, enabled=narrow):
                output = there(moved)
            found.append(objective(output, moved, bank).total)
            torch.autograd.backward(found[-1])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [value.item() for value in found] == pytest.approx([expected.item()] * 2, rel=tolerance)
