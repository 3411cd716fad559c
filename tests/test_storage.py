"""Files are whole or absent, whatever dies when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrec.errors import ArtifactError
from mmrec.storage import (
    RaggedArray,
    atomic_file,
    atomic_folder,
    content_hash,
    read_array,
    read_json,
    recover_folder,
    write_array,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail_halfway(path: Path, *, folder: bool) -> None:
    with atomic_folder(path) if folder else atomic_file(path) as partial:
        (partial / "a" if folder else partial).write_text("half")
        raise RuntimeError("the disk is gone")


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        fail_halfway(path, folder=False)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failing_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        fail_halfway(path, folder=True)
    assert (path / "a").read_text() == "old"
    with atomic_folder(path) as partial:
        (partial / "b").write_text("new")
    assert names(path) == ["b"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_named_for_its_content_is_never_away(tmp_path: Path) -> None:
    """Two processes write the same: the one that comes second leaves the first one's, which others may be reading."""
    path = tmp_path / "same"
    with atomic_folder(path, replace=False) as second:
        (second / "file").write_text("second")
        path.mkdir()
        (path / "file").write_text("first")
        number = path.stat().st_ino
    assert (path / "file").read_text() == "first"
    assert path.stat().st_ino == number
    assert [entry.name for entry in tmp_path.iterdir()] == ["same"]


def test_a_folder_that_cannot_be_put_in_place_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("a file")

    def put() -> None:
        with atomic_folder(path, replace=False):
            pass

    with pytest.raises(OSError, match="taken"):
        put()


def test_a_folder_moved_aside_by_a_dead_process_comes_back(tmp_path: Path) -> None:
    dead = dead_process()
    aside, partial = tmp_path / f"folder.old-{dead}", tmp_path / f"folder.partial-{dead}"
    for left, text in ((aside, "old"), (partial, "half")):
        left.mkdir()
        (left / "a").write_text(text)
    recover_folder(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "old"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / f"folder.partial-{os.getppid()}"
    partial.mkdir()
    recover_folder(tmp_path / "folder")
    assert partial.is_dir()


def test_json_and_arrays_name_what_is_wrong(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"emoji": "🧶", "n": 1.5})
    assert read_json(tmp_path / "a.json") == {"emoji": "🧶", "n": 1.5}
    (tmp_path / "b.json").write_text('{"half": ')
    (tmp_path / "c.json").write_text("[]")
    for name in ("b.json", "c.json", "none.json"):
        with pytest.raises(ArtifactError, match=name):
            read_json(tmp_path / name)
    write_array(tmp_path / "a.npy", np.arange(3))
    assert read_array(tmp_path / "a.npy").tolist() == [0, 1, 2]
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"a\.npy"):
        read_array(tmp_path / "a.npy")


def test_hash_counts_the_borders_of_pieces() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash("é") == content_hash("é".encode())


def test_ragged_gather(tmp_path: Path) -> None:
    ragged = RaggedArray(np.array([1, 2, 3, 4]), np.array([0, 2, 2, 4]))
    ragged.save(tmp_path, "x")
    picked = RaggedArray.load(tmp_path, "x").gather(np.array([2, 1, 0, 0]))
    assert picked.values.tolist() == [3, 4, 1, 2, 1, 2]
    assert picked.lengths.tolist() == [2, 0, 2, 2]
