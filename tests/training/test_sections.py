"""Sections of time: nothing is counted twice, nothing is lost."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
import torch

from mmrec.training import sections as module
from mmrec.training.sections import (
    OTHER,
    Beside,
    CudaStopwatch,
    HostStopwatch,
    Sections,
    Spent,
    Stopwatch,
    open_stopwatch,
)
from tests.training.fake_clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sections(clock: FakeClock) -> Sections:
    return Sections(HostStopwatch(clock))


def test_time_belongs_to_the_innermost_section(clock: FakeClock, sections: Sections) -> None:
    clock.wait(1.0)
    outer = sections.enter("outer")
    clock.wait(2.0)
    for _ in range(2):
        inner = sections.enter("inner")
        clock.wait(4.0)
        sections.leave(inner)
        clock.wait(0.5)
    sections.leave(outer)
    clock.wait(16.0)
    assert sections.read() == {OTHER: Spent(17.0), "outer": Spent(3.0, count=1), "inner": Spent(8.0, count=2)}


def test_a_whole_section_is_not_told_apart(clock: FakeClock, sections: Sections) -> None:
    outer = sections.enter("validation", whole=True)
    clock.wait(1.0)
    inner = sections.enter("text encoder", backward=True)
    assert (sections.name, sections.whole) == ("validation", True)
    clock.wait(2.0)
    sections.leave(inner)
    sections.leave(outer)
    assert sections.read() == {OTHER: Spent(), "validation": Spent(3.0, count=1)}


def test_what_an_exception_left_open_is_closed(clock: FakeClock, sections: Sections) -> None:
    outer = sections.enter("outer")
    sections.enter("cut")
    sections.enter("short", whole=True)
    clock.wait(1.0)
    sections.leave(outer)
    clock.wait(2.0)
    assert sections.read() == {
        OTHER: Spent(2.0),
        "outer": Spent(count=1),
        "cut": Spent(count=1),
        "short": Spent(1.0, count=1),
    }


def test_a_backward_pass_turns_from_section_to_section(clock: FakeClock, sections: Sections) -> None:
    depth = sections.enter("rest", backward=True, counted=False)
    clock.wait(1.0)
    sections.turn("encoder")
    clock.wait(2.0)
    sections.leave(depth)
    assert sections.read() == {OTHER: Spent(), "rest": Spent(backward=1.0), "encoder": Spent(backward=2.0)}


def test_many_stretches_are_read_before_the_end(
    clock: FakeClock, sections: Sections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 3)
    for _ in range(50):
        depth = sections.enter("step")
        clock.wait(1.0)
        sections.leave(depth)
        assert len(sections._pending) < 3
    assert sections.read()["step"] == Spent(50.0, count=50)


def test_threads_beside_count_each_for_themselves(clock: FakeClock) -> None:
    beside = Beside(clock)

    def load(seconds: float) -> None:
        with beside.section("collation"):
            clock.wait(seconds)
            with beside.section("contents"):
                clock.wait(8.0)
            with suppress(ValueError), beside.section("contents"):
                clock.wait(16.0)
                raise ValueError

    for seconds in (1.0, 2.0):
        thread = threading.Thread(target=load, args=(seconds,))
        thread.start()
        thread.join()
    assert beside.read() == {"collation": Spent(3.0, count=2), "contents": Spent(48.0, count=4)}


def test_each_device_has_its_stopwatch() -> None:
    for name, kind in (("cpu", HostStopwatch), ("cuda", CudaStopwatch), ("mps", HostStopwatch)):
        stopwatch = open_stopwatch(torch.device(name))
        assert isinstance(stopwatch, kind)
        assert isinstance(stopwatch, Stopwatch)


def test_a_device_without_events_is_waited_for_before_every_mark(clock: FakeClock) -> None:
    stopwatch = HostStopwatch(clock, settle_device=lambda: clock.wait(1.0))
    first = stopwatch.mark()
    assert stopwatch.seconds(first, stopwatch.mark()) == 1.0


class StreamEvent(torch.cuda.Event):
    """An event of a GPU that is not there: work of one second lies before each, and waiting is noted."""

    recorded, waited = 0, 0

    def record(self, stream: object = None) -> None:
        StreamEvent.recorded += 1
        self.time = 1000.0 * StreamEvent.recorded

    def synchronize(self) -> None:
        StreamEvent.waited += 1

    def elapsed_time(self, other: object) -> float:
        assert isinstance(other, StreamEvent)
        return other.time - self.time


def test_a_gpu_is_timed_by_events_and_not_waited_for_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", StreamEvent)
    monkeypatch.setattr(StreamEvent, "recorded", 0)
    monkeypatch.setattr(StreamEvent, "waited", 0)
    sections = Sections(CudaStopwatch())
    depth = sections.enter("encoder")
    sections.leave(depth)
    assert (StreamEvent.recorded, StreamEvent.waited) == (3, 0)
    assert sections.read() == {OTHER: Spent(2.0), "encoder": Spent(1.0, count=1)}
    assert StreamEvent.waited == 3
