"""Training with ``train.compile``, end to end: what it writes is used without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from jaxtyping import config as shape_checks
from safetensors.torch import load_file
from torch import nn

from mmrec.commands import train as training
from mmrec.commands.train import train_run
from mmrec.config import Config
from mmrec.errors import ConfigError
from mmrec.inference.recommender import Recommender
from mmrec.model.recommender import RecommenderModel
from mmrec.run_folder import RunFolder
from mmrec.training.checkpoint import checkpoints
from mmrec.training.compilation import compile_blocks
from mmrec.training.profile import Profile
from tests.tiny_run import TinyEncoders, TinyFeed, changed, tiny_config


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The compiled blocks of a training whose compiler runs graphs as they are, which takes no time."""
    found: list[nn.Module] = []
    before = torch._dynamo.config.recompile_limit

    def compile_fast(model: RecommenderModel) -> None:
        found.extend(compile_blocks(model, backend="eager"))

    monkeypatch.setattr(training, "check_compiler", partial(training.check_compiler, backend="eager"))
    monkeypatch.setattr(training, "compile_blocks", compile_fast)
    torch._dynamo.reset()
    shape_checks.update("jaxtyping_disable", True)  # no compiler can read the checks
    yield found
    shape_checks.update("jaxtyping_disable", False)
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


def live(encoders: TinyEncoders, **train: object) -> Config:
    """The top block of the captions' encoder is live; what is compiled has no dropout."""
    config = tiny_config(encoders, train={"epochs": 1, **train})
    text = config.encoders["text"].model_dump(mode="json") | {"tuning": {"mode": "top", "blocks": 1}}
    model = {"fusion": {"latents": 2, "heads": 2, "dropout": 0.0}, "user": {"layers": 1, "heads": 2, "dropout": 0.0}}
    return changed(config, encoders={"text": text}, model=model)


def test_a_compiled_run_is_profiled_resumed_and_scored(
    compiled: list[nn.Module], tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path
) -> None:
    config, profiles = live(tiny_encoders, compile=True), list[Profile]()
    train_run(config, feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu", on_profile=profiles.append)
    assert len(compiled) == 2, "a block of captions and a layer of histories"
    rows = {row.name: row for row in profiles[0].rows}
    for name in ("text encoder", "user encoder"):
        assert rows[name].count == 2
        assert rows[name].seconds > rows[name].backward_seconds > 0
    again = train_run(config, feed=tiny_feed.prepared, out=tmp_path / "run", resume=True, device="cpu")
    assert again["steps"] == 3

    plain = live(tiny_encoders)
    blocks = len(compiled)
    train_run(plain, feed=tiny_feed.prepared, out=tmp_path / "plain", device="cpu")
    assert len(compiled) == blocks
    weights, expected = (
        load_file(checkpoints(RunFolder(tmp_path / name).checkpoints)[-1] / "model.safetensors")
        for name in ("run", "plain")
    )
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-4, msg=name)
    scores = [
        Recommender.load(tmp_path / name, device="cpu").score(user_id="u01", candidates=["p07", "p08"])["score"]
        for name in ("run", "plain")
    ]
    assert scores[0].to_numpy() == pytest.approx(scores[1].to_numpy(), abs=1e-3)


def test_no_compiler_is_told_before_anything_is_done(
    tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        raise RuntimeError("no g++")

    monkeypatch.setattr(training, "check_compiler", partial(training.check_compiler, backend=none))
    with pytest.raises(ConfigError, match="train.compile"):
        train_run(live(tiny_encoders, compile=True), feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"items_at_once": 4}, {"shard_encoders": True}])
def test_what_does_not_go_together(tiny_encoders: TinyEncoders, other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"compile and {next(iter(other))} do not go together"):
        live(tiny_encoders, compile=True, **other)
