"""What the profiler of training steps says about modules whose forward and backward passes take a known time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrec.training.loop import train
from mmrec.training.profile import Profile, Row
from mmrec.training.profiler import (
    BANK,
    CHECKPOINT,
    LOG,
    OBJECTIVE,
    OPTIMISER,
    TRANSFER,
    VALIDATION,
    WAITING,
    NoProfiler,
    Profiler,
)
from mmrec.training.sections import OTHER, HostStopwatch
from mmrec.training.step_profiler import AGAIN, COUNTING, OWN, REST, StepProfiler
from tests.training.fake_clock import FakeClock, Timed, timed
from tests.training.tiny import TinyTraining, settings, tiny_loss


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def profiler(clock: FakeClock) -> StepProfiler:
    return StepProfiler(HostStopwatch(clock), clock=clock)


def by_name(profile: Profile) -> dict[str, tuple[float, float, int]]:
    """Forward seconds, backward seconds and count of every section that took any time or was counted."""
    return {
        row.name: (row.seconds - row.backward_seconds, row.backward_seconds, row.count)
        for row in profile.rows
        if row.seconds or row.count
    }


@dataclass(frozen=True)
class Wrapped:
    """What no hook on backward passes of modules would understand."""

    states: Tensor


class TwoEncoders(nn.Module):
    """Two encoders of independent inputs, the second called twice, and a fusion; glue between them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.text, self.image, self.fusion = Timed(clock, 1, 2), Timed(clock, 4, 8), Timed(clock, 16, 32)
        self.text.register_forward_hook(lambda module, inputs, output: Wrapped(output))

    def encode(self, x: Tensor) -> Tensor:
        text = self.text(x).states
        glue = timed(self.image(x) * self.image(x + 1), self.clock, 64, 128)
        return torch.as_tensor(self.fusion(text + glue))

    def forward(self, x: Tensor) -> Tensor:
        return timed(self.encode(x), self.clock, 256, 512)


def watched(model: TwoEncoders, profiler: StepProfiler) -> TwoEncoders:
    for name, module in {"text": model.text, "image": model.image, "fusion": model.fusion}.items():
        profiler.watch(module, name)
    return model


def test_forward_and_backward_are_told_apart_by_section(clock: FakeClock, profiler: StepProfiler) -> None:
    model = watched(TwoEncoders(clock), profiler)
    assert isinstance(profiler, Profiler)
    with profiler.batch(targets=3):
        output = model(torch.ones(2))
        with profiler.section(OBJECTIVE):
            loss = timed(output, clock, 1024, 2048).sum()
        with profiler.backward(loss):
            (loss * 3).backward()
    assert by_name(profiler.finish()) == {
        "text": (1.0, 2.0, 1),
        "image": (8.0, 16.0, 2),
        "fusion": (16.0, 32.0, 1),
        REST: (64.0 + 256, 128.0 + 512, 1),
        OBJECTIVE: (1024.0, 2048.0, 1),
        OWN: (0.0, 0.0, 1),
    }


def test_what_is_computed_again_is_counted_once_and_apart(clock: FakeClock, profiler: StepProfiler) -> None:
    model = watched(TwoEncoders(clock), profiler)
    with profiler.batch(targets=3):
        loss = checkpoint(model.encode, torch.ones(2), use_reentrant=False).sum()
        with profiler.backward(loss):
            loss.backward()
    found = by_name(profiler.finish())
    assert {name: found[name] for name in ("text", "image", "fusion")} == {
        "text": (1.0, 2.0, 1),
        "image": (8.0, 16.0, 2),
        "fusion": (16.0, 32.0, 1),
    }
    assert found[AGAIN] == (0.0, 1.0 + 8 + 64 + 16, 0)
    total = 2 * (1 + 8 + 64 + 16) + 2 + 16 + 128 + 32
    assert sum(forward + backward for forward, backward, _ in found.values()) == total


def test_gradients_are_the_same(clock: FakeClock, profiler: StepProfiler) -> None:
    plain, model = TwoEncoders(clock), watched(TwoEncoders(clock), profiler)
    plain(torch.ones(2)).sum().backward()
    for _ in range(2):  # timed, then counted
        model.zero_grad()
        with profiler.batch(targets=1):
            loss = model(torch.ones(2)).sum()
            with profiler.backward(loss):
                loss.backward()
        for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            assert torch.equal(found.grad, expected.grad)


def test_operations_are_counted_on_a_few_batches_that_stand_apart(clock: FakeClock, profiler: StepProfiler) -> None:
    linear = nn.Linear(5, 7)
    profiler.watch(linear, "linear")
    for number in range(1, 10):
        with profiler.batch(targets=number):
            loss = linear(torch.ones(number, 5)).sum()
            clock.wait(1.0)
            with profiler.backward(loss):
                loss.backward()
    profile = profiler.finish()
    found = by_name(profile)
    assert found[COUNTING] == (2.0, 0.0, 2)
    assert (found[REST], found["linear"]) == ((7.0, 0.0, 7), (0.0, 0.0, 7))
    # Batches 2 and 8; forward and the gradient of the weight.
    assert profile.figures["operations_per_target"] == 2 * 2 * 5 * 7
    assert profile.figures["targets_per_second"] == (sum(range(1, 10)) - 2 - 8) / 7
    assert profile.figures["operations_per_second"] == 140 * profile.figures["targets_per_second"]


def test_validation_is_no_part_of_the_encoders(clock: FakeClock, profiler: StepProfiler) -> None:
    model = watched(TwoEncoders(clock), profiler)
    with profiler.section(VALIDATION, whole=True), torch.no_grad():
        model(torch.ones(2))
    clock.wait(0.5)
    assert by_name(profiler.finish()) == {VALIDATION: (1.0 + 8 + 16 + 64 + 256, 0.0, 1), OTHER: (0.5, 0.0, 0)}


def test_loading_counts_where_it_is_done(clock: FakeClock, profiler: StepProfiler) -> None:
    def load() -> None:
        with profiler.loading("collation"):
            clock.wait(1.0)

    with profiler.section(WAITING):
        load()
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    profile = profiler.finish()
    assert by_name(profile) == {"collation": (1.0, 0.0, 1), WAITING: (1.0, 0.0, 1)}
    assert profile.loader_rows == (Row("collation", seconds=1.0, count=1),)


def test_a_module_that_fails_leaves_the_sections_whole(clock: FakeClock, profiler: StepProfiler) -> None:
    model = watched(TwoEncoders(clock), profiler)
    with pytest.raises(TypeError), profiler.batch(targets=1):
        model.text("no tensor")
    clock.wait(1.0)
    assert by_name(profiler.finish()) == {"text": (0.0, 0.0, 1), REST: (0.0, 0.0, 1), OTHER: (1.0, 0.0, 0)}


def run(tiny: TinyTraining, profiler: Profiler | None) -> None:
    train(
        model=tiny.model,
        loss=tiny_loss,
        optimizer=tiny.optimizer,
        loader=tiny.loader,
        settings=settings(epochs=3),
        folder=tiny.folder,
        accelerator=tiny.accelerator,
        validate=tiny.validate,
        refresh_bank=tiny.refresh_bank,
        profiler=profiler,
    )


def test_the_loop_tells_every_section(tmp_path: Path) -> None:
    clock = FakeClock()

    def tick() -> float:
        clock.wait(1.0)
        return clock()

    profiler, tiny = StepProfiler(HostStopwatch(tick), clock=tick), TinyTraining(tmp_path / "profiled")
    profiler.watch(tiny.model.mix, "user encoder")
    run(tiny, profiler)
    profile = profiler.finish()
    profiler.close()
    counts = {row.name: row.count for row in profile.rows}
    # Seven batches an epoch, one of them without targets, in groups of two; batches 2 and 8 are counted.
    with_targets, steps = 3 * 6, 3 * 4
    assert counts == {
        WAITING: 3 * 7,
        TRANSFER: with_targets,
        REST: with_targets - 2,
        "user encoder": with_targets - 2,
        OBJECTIVE: with_targets - 2,
        OWN: with_targets - 2,
        COUNTING: 2,
        OPTIMISER: steps,
        BANK: steps // 3,
        VALIDATION: 3,
        CHECKPOINT: 3 * (1 + 2),
        LOG: 0,
        OTHER: 0,
    } | {LOG: steps + 3}
    assert profile.steps == steps
    assert profile.rows[-1].name == OTHER
    assert all(row.seconds > 0 for row in profile.rows)
    assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.seconds, rel=1e-12)
    assert not tiny.model.mix._forward_hooks
    assert not tiny.model.mix._forward_pre_hooks


def test_a_profiled_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    plain, profiled = TinyTraining(tmp_path / "plain"), TinyTraining(tmp_path / "profiled")
    run(plain, None)
    profiler = StepProfiler(HostStopwatch())
    profiler.watch(profiled.model.mix, "user encoder")
    run(profiled, profiler)
    expected, found = plain.model.state_dict(), profiled.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_without_a_profile_nothing_is_done() -> None:
    off = NoProfiler()
    assert isinstance(off, Profiler)
    contexts = [
        off.section(WAITING),
        off.batch(targets=1),
        off.backward(torch.zeros(())),
        off.loading("collation"),
        off.section(VALIDATION, whole=True),
    ]
    assert all(context is contexts[0] for context in contexts)
