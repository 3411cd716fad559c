"""Say what is in a prepared feed, what was refused and why, and how it is divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from data_tools.audit import feed_figures, split_names
from data_tools.prepare_report import REPORT
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import SPLITS
from mmrec.storage import read_json

EXAMPLES: Final = 3
EXAMPLE_CHARACTERS: Final = 160
EXAMPLE_HISTORY: Final = 5


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: ``low`` to ``high``, both included, holds ``count``."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Example:
    """A post as its readers see it.

    Args:
        item_id: its id.
        caption: its caption, cut to a line; None where it has none.
        pictures: width x height of each picture.
        interactions: how often it was chosen.
    """

    item_id: str
    caption: str | None
    pictures: tuple[str, ...]
    interactions: int


@dataclass(frozen=True)
class Description:
    """What a prepared feed holds.

    Args:
        feed: its folder.
        manifest: its manifest.
        report: what preparing it kept and refused; empty where there is no report.
        figures: sizes, coverage, concentration.
        first: first interaction, ISO; None where there are no real times.
        last: last interaction.
        events: interactions by event name.
        histograms: by title.
        splits: ``split.json`` of every split.
        examples: the most chosen posts.
        history: one user's last posts, oldest first: user id, then captions or ids.
    """

    feed: Path
    manifest: Mapping[str, object]
    report: Mapping[str, object]
    figures: Mapping[str, object]
    first: str | None
    last: str | None
    events: Mapping[str, int]
    histograms: Mapping[str, tuple[Bin, ...]]
    splits: tuple[Mapping[str, object], ...]
    examples: tuple[Example, ...]
    history: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the description as a JSON object."""
        return {
            "feed": str(self.feed),
            "manifest": dict(self.manifest),
            "report": dict(self.report),
            "figures": dict(self.figures),
            "first_interaction": self.first,
            "last_interaction": self.last,
            "events": dict(self.events),
            "histograms": {
                title: [{"low": bar.low, "high": bar.high, "count": bar.count} for bar in bars]
                for title, bars in self.histograms.items()
            },
            "splits": [dict(split) for split in self.splits],
            "examples": [
                {
                    "item_id": post.item_id,
                    "caption": post.caption,
                    "pictures": list(post.pictures),
                    "interactions": post.interactions,
                }
                for post in self.examples
            ],
            "example_history": list(self.history),
        }


def describe(folder: Path) -> Description:
    """Describe a prepared feed.

    Raises:
        FeedError: not a prepared feed.
        ArtifactError: a file is missing or damaged.
    """
    catalogue, histories = Catalogue.load(folder), Histories.load(folder)
    counts = np.bincount(histories.item_rows, minlength=len(catalogue))
    first, last = _span(histories)
    codes = histories.event_codes
    return Description(
        feed=folder,
        manifest=catalogue.manifest,
        report=read_json(folder / REPORT) if (folder / REPORT).is_file() else {},
        figures=feed_figures(catalogue, histories),
        first=first,
        last=last,
        events=dict(zip(histories.event_names, np.bincount(codes).tolist(), strict=False)) if codes is not None else {},
        histograms={
            "interactions of a user": doubling_histogram(np.diff(histories.offsets)),
            "interactions of a post": doubling_histogram(counts),
            "bytes of a distinct caption": doubling_histogram(catalogue.captions.text.lengths),
            "pictures of a post": doubling_histogram(catalogue.item_images.lengths),
            "longest side of a picture": doubling_histogram(np.asarray(catalogue.pictures.shapes).max(axis=1)),
        },
        splits=tuple(read_json(folder / SPLITS / name / "split.json") for name in split_names(folder)),
        examples=tuple(_example(catalogue, int(row), counts) for row in np.argsort(-counts, kind="stable")[:EXAMPLES]),
        history=_example_history(catalogue, histories),
    )


def doubling_histogram(values: npt.NDArray[np.integer]) -> tuple[Bin, ...]:
    """Count whole numbers in the bins 0, 1, 2-3, 4-7, 8-15, ...; empty bins at both ends are left out."""
    if not len(values):
        return ()
    places = np.where(values > 0, np.frexp(values.astype(np.float64))[1], 0)
    counts = np.bincount(places)
    filled = np.flatnonzero(counts)
    return tuple(
        Bin(2 ** (place - 1) if place else 0, 2**place - 1, int(counts[place]))
        for place in range(int(filled[0]), int(filled[-1]) + 1)
    )


def _span(histories: Histories) -> tuple[str | None, str | None]:
    if not histories.has_time or not histories.num_events:
        return None, None
    ends = (int(histories.timestamps.min()), int(histories.timestamps.max()))
    first, last = (datetime.fromtimestamp(end / 1000, tz=UTC).isoformat(timespec="seconds") for end in ends)
    return first, last


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"


def _example(catalogue: Catalogue, row: int, counts: npt.NDArray[np.int64]) -> Example:
    caption = catalogue.caption(row)
    shapes = np.asarray(catalogue.pictures.shapes)[catalogue.item_images[row]]
    return Example(
        item_id=str(catalogue.item_ids[row]),
        caption=None if caption is None else _line(caption),
        pictures=tuple(f"{width} x {height}" for height, width in shapes.tolist()),
        interactions=int(counts[row]),
    )


def _example_history(catalogue: Catalogue, histories: Histories) -> tuple[str, ...]:
    """Return the user whose history is of median length, and their last posts."""
    if not histories.num_users:
        return ()
    lengths = np.diff(histories.offsets)
    user = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    stop = int(histories.offsets[user + 1])
    start = max(int(histories.offsets[user]), stop - EXAMPLE_HISTORY)
    rows = [int(row) for row in histories.item_rows[start:stop]]
    return (str(histories.user_ids[user]), *(_line(catalogue.caption(r) or str(catalogue.item_ids[r])) for r in rows))
