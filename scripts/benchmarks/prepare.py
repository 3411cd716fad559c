"""``mmrec-data prepare`` on many JPEGs: speed a core over a bare loop of decoding, and memory that must not grow."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from field.decoding import decode_all
from PIL import Image

from benchmarks.made_captions import item_id
from benchmarks.made_run import jpeg
from benchmarks.measure import Row, ratios
from benchmarks.processes import run_python

COUNTS = {"small": 300, "cpu": 20_000, "gpu": 20_000}
WIDTH, HEIGHT = 400, 533
SIDE = 224
VARIANTS = 100
"""Files made of one encoded picture."""
MOST_ROUNDS = 3
"""A turn of twenty thousand pictures takes minutes."""
LEAST_SPEED = 0.9
MOST_GROWTH = 1.1
AT_ONCE = "bare at once"
CODE = """
import sys, time
from pathlib import Path
from data_tools.prepare import PrepareOptions, SplitPlan, prepare
options = PrepareOptions(timestamp_unit="order", split=SplitPlan(kind="leave_last_out"), workers=int(sys.argv[3]))
start = time.perf_counter()
report = prepare(Path(sys.argv[1]), Path(sys.argv[2]), options=options)
print(report.distinct_pictures, time.perf_counter() - start)
"""
"""Runs in a process that, like the command's, imports nothing of the benchmark: workers begin by importing it again."""


@dataclass(frozen=True)
class Prepared:
    """A preparation.

    Args:
        distinct: pictures kept.
        seconds: it took, the start of its workers included and that of the process left out.
        peak_mb: most memory of the process and its workers.
    """

    distinct: int
    seconds: float
    peak_mb: float


def photo(number: int) -> Image.Image:
    """Draw what compresses like a photograph: large shapes, edges, texture at several scales, grain."""
    generator = np.random.default_rng(number)
    canvas = np.zeros((HEIGHT, WIDTH, 3))
    for cells in (3, 12, 48):
        coarse = generator.normal(0, 150 / cells**0.5, (cells, cells, 3)) + 128
        layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        canvas += np.asarray(layer, dtype=np.float64) - 128
    canvas[generator.integers(100, HEIGHT) :, generator.integers(100, WIDTH) :] += 60
    canvas += generator.normal(0, 5, canvas.shape)
    return Image.fromarray((canvas + 128).clip(0, 255).astype(np.uint8))


def variant(data: bytes, number: int) -> bytes:
    """Return a JPEG whose every pixel decodes a little otherwise, without encoding anew.

    One of the first entries of its quantisation table is larger: decoding costs the same, the pixels differ.
    """
    table = data.index(b"\xff\xdb") + 5
    place, more = table + 1 + number % 10, 1 + number // 10
    return data[:place] + bytes([min(255, data[place] + more)]) + data[place + 1 :]


def write_feed(folder: Path, count: int) -> list[Path]:
    """Write a raw feed of ``count`` posts with a picture each; return the pictures."""
    (folder / "images").mkdir(parents=True)
    ids = [item_id(row) for row in range(count)]
    paths = [folder / "images" / f"{name}.jpg" for name in ids]
    for start in range(0, count, VARIANTS):
        data = jpeg(photo(start // VARIANTS))
        for number, path in enumerate(paths[start : start + VARIANTS]):
            path.write_bytes(variant(data, number))
    write_tables(folder, ids)
    return paths


def write_tables(folder: Path, ids: list[str]) -> None:
    """Write the tables: a caption an item, and a few interactions, which are not what is measured here."""
    captions = [f"post number {row}" for row in range(len(ids))]
    pd.DataFrame({"item_id": ids, "caption": captions}).to_csv(folder / "items.csv", index=False)
    events = {"user_id": ["a", "a", "b", "b"], "item_id": [ids[0], ids[1], ids[1], ids[0]], "timestamp": [1, 2, 1, 2]}
    pd.DataFrame(events).to_csv(folder / "interactions.csv", index=False)


def run_prepare(feed: Path, out: Path, *, workers: int) -> Prepared:
    """Prepare a feed as the command does, and remove what was prepared."""
    found = run_python(CODE, str(feed), str(out), str(workers))
    shutil.rmtree(out)
    distinct, seconds = found.output.split()
    return Prepared(int(distinct), float(seconds), found.peak_mb)


def decode_at_once(paths: list[Path], *, processes: int) -> None:
    """Decode pictures in as many bare loops at once, each with its share: what the machine has to give."""
    with get_context("fork").Pool(processes) as pool:
        pool.map(partial(decode_all, side=SIDE), [paths[start::processes] for start in range(processes)], chunksize=1)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prepare(*, size: str, device: str, rounds: int, count: int | None = None) -> Iterator[Row]:
    """Time one worker and one for every core over a bare loop, then compare the memory of N / 4 and N pictures.

    Where others use the machine, or its cores share what they have, as many bare loops at once are not as fast a core
    as one either; how fast they are is said beside the figure.

    Args:
        size: small, cpu or gpu.
        device: not used: pictures are decoded by the processor.
        rounds: turns of each side.
        count: pictures, in place of the size's.
    """
    count = count or COUNTS[size]
    cores = os.cpu_count() or 1
    with TemporaryDirectory() as name:
        root = Path(name)
        paths = write_feed(root / "feed", count)
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        workers = {"one worker": 1, "every core": cores}
        seconds: dict[str, list[float]] = {side: [] for side in ("bare", *workers, AT_ONCE)}
        distinct = 0
        for turn in range(min(rounds, MOST_ROUNDS)):
            for side in list(seconds)[:: 1 if turn % 2 == 0 else -1]:
                if side == "bare":
                    seconds[side].append(timed(lambda: decode_all(paths, side=SIDE)))
                elif side == AT_ONCE:
                    seconds[side].append(timed(lambda: decode_at_once(paths, processes=cores)))
                else:
                    done = run_prepare(root / "feed", root / "out", workers=workers[side])
                    seconds[side].append(done.seconds)
                    distinct = done.distinct
        yield Row("prepare", "distinct pictures kept, of all", (distinct / count,), target=1.0, unit="share")
        for who, number in workers.items():
            yield Row(
                "prepare",
                f"pictures a second and core over a bare loop, {who} ({number}), {count:,} JPEGs of {WIDTH} x {HEIGHT}",
                tuple(ratio / number for ratio in ratios(seconds["bare"], seconds[who])),
                target=None if size == "small" else LEAST_SPEED,
                details={f"{side} s": min(values) for side, values in seconds.items()}
                | {"MB a JPEG": megabytes / count},
            )
        yield Row(
            "prepare",
            f"pictures a second and core of {cores} bare loops at once over one alone: what the machine has to give",
            tuple(ratio / cores for ratio in ratios(seconds["bare"], seconds[AT_ONCE])),
        )
        yield _memory(root, paths, workers=cores, size=size)


def _memory(root: Path, paths: list[Path], *, workers: int, size: str) -> Row:
    """Compare the peak memory of preparing a quarter of the pictures and all of them, workers included."""
    quarter = paths[: len(paths) // 4]
    (root / "quarter" / "images").mkdir(parents=True)
    for path in quarter:
        (root / "quarter" / "images" / path.name).hardlink_to(path)
    write_tables(root / "quarter", [path.stem for path in quarter])
    peaks = {feed: run_prepare(root / feed, root / "out", workers=workers).peak_mb for feed in ("quarter", "feed")}
    return Row(
        "prepare",
        f"peak memory of {len(paths):,} pictures over that of {len(quarter):,}, workers included",
        (peaks["feed"] / peaks["quarter"],),
        bound="at most",
        target=None if size == "small" else MOST_GROWTH,
        details={f"{len(quarter):,} MB": peaks["quarter"], f"{len(paths):,} MB": peaks["feed"]},
    )
