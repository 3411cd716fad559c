"""A preparation that is killed, or runs out of disk, leaves nothing that could be taken for whole, and goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_tools import picture_blocks, picture_store, prepared_files
from data_tools.prepare import PrepareOptions, prepare
from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from tests.data_tools.raw_feeds import many, noise, same_files, write_raw_feed

ROOT = Path(__file__).parents[2]
OPTIONS = PrepareOptions(split=None, workers=1, block_size=4)
BLOCKS = 5


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    """Return a feed of twenty pictures, one of them twice."""
    items, rows = many(20)
    folder = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    (folder / "images").mkdir()
    for row in range(20):
        Image.fromarray(noise(row % 19, 10, 10 + row % 19)).save(folder / "images" / f"i{row:03}.png")
    return folder


class StoppedError(Exception):
    """Stands for a kill within this process."""


def stop_after(calls: int, feed: Path, out: Path) -> None:
    """Prepare until progress was reported so many times."""
    left = calls

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise StoppedError(stage)

    with pytest.raises(StoppedError):
        prepare(feed, out, options=OPTIONS, progress=progress)


@pytest.mark.parametrize(("workers", "moment"), [(1, "3"), (2, "2"), (1, "interactions"), (1, "writing")])
def test_kill_dash_nine(feed: Path, tmp_path: Path, workers: int, moment: str) -> None:
    out = tmp_path / "out"
    script = Path(__file__).with_name("kill_prepare.py")
    command = [sys.executable, str(script), str(feed), str(out), str(workers), moment]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(FeedError, match="a prepared feed"):
        Catalogue.load(out)
    report = prepare(feed, out, options=OPTIONS)
    assert report.reused_blocks >= (3 if moment == "3" else 1 if moment == "2" else BLOCKS)
    prepare(feed, tmp_path / "whole", options=OPTIONS)
    assert same_files(out, tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed", "out", "whole"]


@pytest.mark.parametrize("calls", range(1, BLOCKS + 3))
def test_every_point_of_interruption_gives_the_same_feed(feed: Path, tmp_path: Path, calls: int) -> None:
    out = tmp_path / "out"
    stop_after(calls, feed, out)
    assert not out.exists()
    report = prepare(feed, out, options=OPTIONS)
    assert report.reused_blocks == min(calls, BLOCKS)
    prepare(feed, tmp_path / "whole", options=OPTIONS)
    assert same_files(out, tmp_path / "whole")


def test_finished_blocks_are_not_decoded_again(feed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(3, feed, tmp_path / "out")
    decoded: list[str] = []
    original = picture_blocks.load_picture

    def counted(source: Path, *, side: int, max_pixels: int) -> object:
        decoded.append(source.name)
        return original(source, side=side, max_pixels=max_pixels)

    monkeypatch.setattr(picture_blocks, "load_picture", counted)
    prepare(feed, tmp_path / "out", options=OPTIONS)
    assert decoded == [f"i{row:03}.png" for row in range(12, 20)]


def test_pictures_that_did_not_reach_the_disk_are_decoded_again(feed: Path, tmp_path: Path) -> None:
    """After a loss of power ``images.bin`` may be shorter, or longer, than its blocks say."""
    prepare(feed, tmp_path / "whole", options=OPTIONS)
    for change in (-5, 7):
        out = tmp_path / f"out{change}"
        stop_after(4, feed, out)
        (pixels,) = out.with_name(f"{out.name}.work").glob("*/images.bin")
        with pixels.open("r+b") as file:
            file.truncate(pixels.stat().st_size + change)
        report = prepare(feed, out, options=OPTIONS)
        assert report.reused_blocks == (3 if change < 0 else 4)
        assert same_files(out, tmp_path / "whole")


@pytest.mark.parametrize("lost", range(4))
def test_blocks_after_a_lost_record_are_decoded_again(feed: Path, tmp_path: Path, lost: int) -> None:
    """Whatever a loss of power leaves: records are taken up to the first gap, pixels of blocks never."""
    out = tmp_path / "out"
    prepare(feed, tmp_path / "whole", options=OPTIONS)
    stop_after(4, feed, out)
    (work,) = (path for path in out.with_name("out.work").iterdir() if path.is_dir())
    (work / f"{lost:08d}.json").unlink()
    (work / "00000004.pixels").write_bytes(b"cut")
    assert prepare(feed, out, options=OPTIONS).reused_blocks == lost
    assert same_files(out, tmp_path / "whole")


def test_a_changed_picture_or_side_starts_anew(feed: Path, tmp_path: Path) -> None:
    stop_after(3, feed, tmp_path / "out")
    assert prepare(feed, tmp_path / "out", options=replace(OPTIONS, image_side=8)).reused_blocks == 0
    stop_after(3, feed, tmp_path / "other")
    Image.fromarray(noise(50, 9, 9)).save(feed / "images" / "i000.png")
    assert prepare(feed, tmp_path / "other", options=OPTIONS).reused_blocks == 0


def test_another_declared_unit_keeps_the_pictures(feed: Path, tmp_path: Path) -> None:
    stop_after(BLOCKS + 1, feed, tmp_path / "out")
    report = prepare(feed, tmp_path / "out", options=replace(OPTIONS, timestamp_unit="s"))
    assert report.reused_blocks == BLOCKS


@pytest.mark.parametrize("module", [picture_blocks, prepared_files])
def test_disk_full(feed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    out = tmp_path / "out"
    prepare(feed, out, options=replace(OPTIONS, image_side=6))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(feed, out, options=OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before  # the old feed is whole
    assert Catalogue.load(out).pictures.shapes.max() == 6
    prepare(feed, out, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed", "out"]


def test_leftovers_of_killed_runs_are_cleared(feed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(feed, out, options=OPTIONS)
    (tmp_path / "out.partial-123").mkdir()
    (tmp_path / "out.partial-123" / "images.bin").touch()
    out.rename(tmp_path / "out.old-123")  # killed between moving the old feed aside and putting the new one there
    assert prepare(feed, out, options=OPTIONS).unchanged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed", "out"]


def test_two_runs_at_once(feed: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FeedError, match="got another run"):
            prepare(feed, tmp_path / "out", options=OPTIONS)


class DeadPool(ProcessPoolExecutor):
    """Workers that end in the middle of their first block, as those do that the system kills for memory."""

    def submit(self, *_: object, **__: object) -> Future[None]:
        return super().submit(os._exit, 1)


def test_a_worker_that_dies_is_told(feed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_store, "ProcessPoolExecutor", DeadPool)
    with pytest.raises(FeedError, match=r"one that was killed, in .*i0\d\d\.png.*fewer --workers"):
        prepare(feed, tmp_path / "out", options=replace(OPTIONS, workers=2))
    monkeypatch.undo()
    assert prepare(feed, tmp_path / "out", options=OPTIONS).pictures.kept == 20
