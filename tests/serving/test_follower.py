"""Watchers of other processes: called in turn, whatever one of them does."""

from __future__ import annotations

import threading

import pytest

from mmrec.serving.follower import Follower


class TestFollower:
    def test_a_watcher_that_fails_stops_no_other_and_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        calls: list[str] = []
        well, done = threading.Event(), threading.Event()

        def failing() -> None:
            calls.append("failing")
            if not well.is_set():
                raise OSError("away")

        def other() -> None:
            calls.append("other")
            if calls.count("other") == 3:
                well.set()
            if calls.count("other") == 6:
                done.set()

        follower = Follower(failing, seconds=0.001)
        follower.add(other)
        assert done.wait(30)
        follower.close()
        count = len(calls)
        assert calls[-1] == "other"
        messages = [record.message for record in caplog.records if "followed" in record.message]
        assert messages == ["changes cannot be followed: OSError: away", "changes are followed again"]
        assert len(calls) == count, "closed is closed"
