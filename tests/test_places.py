"""Paths and URLs: which are on this machine, what every process calls them, and which cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrec.errors import RequestError
from mmrec.places import full_place, local_path, reach


def test_local_paths_are_the_same_for_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_place("blocks") == full_place(Path("blocks")) == str(tmp_path / "blocks")
    assert full_place("s3://bucket/blocks") == "s3://bucket/blocks"


def test_what_is_on_this_machine() -> None:
    assert local_path("a/b") == Path("a/b")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("s3://bucket/b") is None


def test_places_that_cannot_be_reached(tmp_path: Path) -> None:
    assert reach(f"file://{tmp_path}", where="--out")[1] == str(tmp_path)
    with pytest.raises(RequestError, match=r"got 'nowhere://x': Protocol not known.*in --out.*s3fs for s3://"):
        reach("nowhere://x", where="--out")
