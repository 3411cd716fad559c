"""A description counts what can be counted by hand and is JSON all through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.describe import Bin, describe, doubling_histogram
from data_tools.render import figure_rows, histogram_rows, report_rows
from mmrec.errors import FeedError
from mmrec.storage import read_json, write_array, write_json
from tests.feeds import write_feed

EVENTS = [("u", "a", 0), ("u", "b", 86_400), ("u", "a", 90_000), ("v", "a", 10), ("v", "c", 20)]


def test_counts_examples_and_span(tmp_path: Path) -> None:
    feed = write_feed(
        tmp_path / "f",
        interactions=EVENTS,
        captions={"a": "Red\n scarf " + "x" * 300, "b": "hat"},
        pictures={"a": [np.zeros((20, 30, 3), np.uint8), np.ones((5, 4, 3), np.uint8)]},
        unit="s",
    )
    description = describe(feed)
    assert (description.first, description.last) == ("1970-01-01T00:00:00+00:00", "1970-01-02T01:00:00+00:00")
    assert description.figures["caption_share"] == pytest.approx(2 / 3)
    assert description.figures["picture_share"] == pytest.approx(1 / 3)
    assert description.figures["history_length"] == pytest.approx(
        {"mean": 2.5, "min": 2, "p1": 2.01, "p25": 2.25, "p50": 2.5, "p75": 2.75, "p95": 2.95, "p99": 2.99, "max": 3}
    )
    first = description.examples[0]
    assert (first.item_id, first.interactions, first.pictures) == ("a", 3, ("30 x 20", "4 x 5"))
    assert first.caption is not None
    assert first.caption.startswith("Red scarf x")
    assert len(first.caption) == 160
    assert description.history[0] == "u", "of two users, the one with the longer history is the median"
    assert description.history[2] == "hat"
    assert description.histograms["interactions of a post"] == (Bin(1, 1, 2), Bin(2, 3, 1))
    assert description.histograms["longest side of a picture"] == (Bin(4, 7, 1), Bin(8, 15, 0), Bin(16, 31, 1))
    assert [split["name"] for split in description.splits] == ["leave_last_out"]
    write_json(tmp_path / "description.json", description.to_json())
    assert read_json(tmp_path / "description.json")["example_history"] == list(description.history)


def test_feeds_without_time_content_or_report(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=EVENTS, unit="order", split=None)
    description = describe(feed)
    assert (description.first, description.splits, description.report) == (None, (), {})
    assert description.examples[0].caption is None
    assert description.history[-1] == "a", "an item without a caption goes by its id"


def test_events_are_counted_by_name(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=EVENTS, split=None)
    write_json(feed / "manifest.json", {**read_json(feed / "manifest.json"), "event_names": ["click", "like"]})
    write_array(feed / "events.codes.npy", np.array([0, 1, 0, 0, 1], dtype=np.int16))
    assert describe(feed).events == {"click": 3, "like": 2}


def test_not_a_prepared_feed(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=r"without manifest\.json"):
        describe(tmp_path)


def test_doubling_histogram() -> None:
    bars = doubling_histogram(np.array([0, 1, 1, 2, 3, 4, 7, 8, 16]))
    assert [(bar.low, bar.high, bar.count) for bar in bars] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 3, 2),
        (4, 7, 2),
        (8, 15, 1),
        (16, 31, 1),
    ]
    assert doubling_histogram(np.array([], dtype=np.int64)) == ()


def test_histogram_rows_draw_every_filled_bin() -> None:
    rows = histogram_rows((Bin(0, 0, 0), Bin(1, 1, 1), Bin(2, 3, 1000)))
    assert [(row[0], row[1], len(str(row[2]))) for row in rows] == [("0", 0, 0), ("1", 1, 1), ("2 to 3", 1000, 40)]


def test_report_rows_keep_counts_and_leave_listings_out() -> None:
    report = {"items": {"given": 3, "kept": 1, "refused": {"no_content": 2}}, "listed": [{"row": 1}], "status": "x"}
    assert report_rows(report) == [
        ["items: given", "3"],
        ["items: kept", "1"],
        ["items: refused, no content", "2"],
    ]
    assert figure_rows({"a": None, "b": {}, "c_d": 0.5}) == [["c d", ".5000"]]
