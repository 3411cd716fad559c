from __future__ import annotations

import os
import signal

import pytest

from mmrec.training.interrupt import Interrupt, interruptible


def stretch(interrupt: Interrupt, done: list[int], *, presses: int) -> None:
    """Press Ctrl-C, then note what was reached."""
    with interrupt.hold():
        for press in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            done.append(press)


def test_ctrl_c_waits_for_the_end_of_the_stretch() -> None:
    done: list[int] = []
    with interruptible() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            stretch(interrupt, done, presses=1)
        assert not interrupt.held
    assert done == [0]


def test_second_ctrl_c_cuts() -> None:
    done: list[int] = []
    with interruptible() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            stretch(interrupt, done, presses=2)
        assert interrupt.held
    assert done == [0]


def test_outside_a_stretch_ctrl_c_is_at_once() -> None:
    with interruptible() as interrupt, pytest.raises(KeyboardInterrupt):
        interrupt.on_signal(signal.SIGINT, None)


def test_handlers_are_put_back_and_others_left_alone() -> None:
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_several_processes_stop_after_the_same_stretch_whoever_was_told() -> None:
    told: list[bool] = []

    def agree(pending: bool) -> bool:  # noqa: FBT001
        told.append(pending)
        return len(told) == 3

    with interruptible(agree) as interrupt:
        interrupt.on_signal(signal.SIGINT, None)
        for _ in range(2):
            with interrupt.hold():
                interrupt.on_signal(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt), interrupt.hold():
            pass
        assert not interrupt.held
    assert told == [True, True, True]
