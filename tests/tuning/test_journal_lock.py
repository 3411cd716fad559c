"""Ctrl-C in the middle of a write to the journal ends in nothing but Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from optuna.storages.journal import JournalFileBackend

from mmrec.tuning.journal_lock import JournalLock


def test_a_write_is_whole_and_the_lock_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "journal.log")
    journal = JournalFileBackend(path, JournalLock(path))
    unlink = os.unlink

    def interrupted(name: str) -> None:
        unlink(name)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append_logs([{"trial": 1}])
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"]
    journal.append_logs([{"trial": 2}])
    assert list(journal.read_logs(0)) == [{"trial": 1}, {"trial": 2}]
