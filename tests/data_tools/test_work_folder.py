"""The hash that tells whether a feed has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_tools.work_folder import tree_hash
from mmrec.storage import content_hash


def slow_hash(root: Path, *, tables: frozenset[str]) -> str:
    """Add up the hashes of all files, named relative to the root."""
    total = 0
    for path in root.rglob("*"):
        if path.is_file() and os.path.relpath(path, root) not in tables:
            status = path.stat()
            name = os.path.relpath(path, root)
            total += int(content_hash(f"0 {status.st_size} {status.st_mtime_ns}", os.fsencode(name)), 16)
    return f"{total % 2**128:032x}"


@pytest.mark.parametrize("given", ["{0}", "{0}/", ".", "./", "../feed", "deep/.."])
def test_hash_does_not_depend_on_how_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    feed = tmp_path / "feed"
    for name in ("items.csv", "images/a.png", "images/items.csv", "deep/er/b.png", "deep/é\udcff.png"):
        path = feed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    monkeypatch.chdir(feed)
    tables = frozenset({"items.csv"})
    expected = slow_hash(feed, tables=tables)
    assert tree_hash((Path(given.format(feed)),), skip=tmp_path / "out", tables=tables) == expected
    (feed / "images" / "a.png").rename(feed / "images" / "c.png")
    assert tree_hash((Path(given.format(feed)),), skip=tmp_path / "out", tables=tables) != expected
