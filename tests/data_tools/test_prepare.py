"""Preparing good feeds: what is written, in every format a feed may come in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from data_tools.captions import join_fields
from data_tools.prepare import PrepareOptions, SplitPlan, prepare
from data_tools.prepare_report import PrepareReport
from data_tools.split_choices import SplitChoices
from mmrec.errors import FeedError
from mmrec.feed.catalogue import NEVER, Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Split
from tests.data_tools.raw_feeds import (
    DAY,
    INTERACTIONS,
    ITEMS,
    PLAIN,
    START,
    many,
    noise,
    quarantined,
    same_files,
    write_picture,
    write_raw_feed,
    write_table,
)

CAPTION = replace(PLAIN, caption=("title", "description"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_table_format_gives_the_same_feed(tmp_path: Path, suffix: str) -> None:
    feed = write_raw_feed(tmp_path / "feed", suffix=suffix)
    report = prepare(feed, tmp_path / "out", options=CAPTION)
    catalogue, histories = Catalogue.load(tmp_path / "out"), Histories.load(tmp_path / "out")
    assert list(catalogue.item_ids) == ["007", "042", "100"]
    assert [catalogue.caption(row) for row in range(3)] == ["Wool jumper. Striped.", "Red scarf! Soft", "Green hat"]
    assert [catalogue.images(row)[0][0, 0].tolist() for row in range(3)] == [[10, 0, 0], [11, 0, 0], [12, 0, 0]]
    assert catalogue.images(0)[0].shape == (8, 12, 3)
    ms = [1000 * (START + days * DAY) for days in range(4)]
    assert list(catalogue.first_seen) == [ms[0], ms[2], ms[3]]
    assert list(histories.user_ids) == ["b", "a"]  # the order of first appearance
    assert list(histories.offsets) == [0, 2, 4]
    assert list(histories.item_rows) == [0, 1, 0, 2]
    assert list(histories.timestamps) == [ms[1], ms[2], ms[0], ms[3]]
    assert histories.has_time
    assert (histories.event_codes, histories.values) == (None, None)
    assert (report.items.kept, report.interactions.kept, report.pictures.kept) == (3, 4, 3)
    assert (report.times.source_unit, report.times.detected) == ("s", True)
    assert catalogue.attributes["title"].tolist() == [row["title"] for row in ITEMS]


def test_feed_hash_is_the_content_not_the_file(tmp_path: Path) -> None:
    hashes = []
    for suffix in (".csv", ".parquet"):
        feed = write_raw_feed(tmp_path / suffix[1:], suffix=suffix)
        prepare(feed, tmp_path / f"out{suffix}", options=CAPTION)
        hashes.append(Catalogue.load(tmp_path / f"out{suffix}").feed_hash)
    changed = [*INTERACTIONS[:3], {**INTERACTIONS[3], "timestamp": START + 4 * DAY}]
    prepare(write_raw_feed(tmp_path / "changed", interactions=changed), tmp_path / "other", options=CAPTION)
    assert hashes[0] == hashes[1] != Catalogue.load(tmp_path / "other").feed_hash


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["a", "b"], "a. b"),
        (["a.", "b!", "c?", "d"], "a. b! c? d"),
        (["a. ", "b"], "a.  b"),
        (["", "a", "  ", "b"], "a. b"),
        ([" a ", ""], " a "),
        (["", " \n"], ""),
    ],
)
def test_join_fields(fields: list[str], expected: str) -> None:
    assert join_fields(fields) == expected


def test_join_fields_with_another_separator() -> None:
    assert join_fields(["a.", "b"], " | ") == "a. | b"


def test_integer_ids_come_back_as_integers(tmp_path: Path) -> None:
    big = 2**63 - 1
    items = [{"item_id": big, "caption": "big"}, {"item_id": 7, "caption": "small"}]
    rows = [
        {"user_id": -3, "item_id": big, "timestamp": START},
        {"user_id": 2**40, "item_id": 7, "timestamp": START + 1},
    ]
    for suffix in (".parquet", ".jsonl"):
        feed = write_raw_feed(tmp_path / suffix[1:], items=items, interactions=rows, suffix=suffix, pictures=())
        out = tmp_path / f"out{suffix}"
        prepare(feed, out, options=PLAIN)
        catalogue, histories = Catalogue.load(out), Histories.load(out)
        assert catalogue.external_ids(np.arange(2)) == [big, 7]
        assert (list(histories.user_ids), histories.user_id_type) == (["-3", str(2**40)], "integer")


def test_integers_beyond_64_bits(tmp_path: Path) -> None:
    huge = 10**30
    items = [{"item_id": huge, "caption": "x"}, {"item_id": 1, "caption": "y"}]
    rows = [{"user_id": 1, "item_id": huge, "timestamp": START}, {"user_id": 1, "item_id": 1, "timestamp": START + 1}]
    prepare(
        write_raw_feed(tmp_path / "feed", items=items, interactions=rows, suffix=".jsonl", pictures=()),
        tmp_path / "out",
        options=PLAIN,
    )
    assert Catalogue.load(tmp_path / "out").external_ids(np.arange(1)) == [huge]


def test_content_is_stored_once(tmp_path: Path) -> None:
    items = [{"item_id": name, "caption": "same"} for name in "abc"]
    rows = [{"user_id": "u", "item_id": name, "timestamp": START + at} for at, name in enumerate("abc")]
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    for name, colour in (("a", 1), ("b", 2), ("c", 1)):
        write_picture(feed / "images" / f"{name}.png", (colour, 0, 0))
    report = prepare(feed, tmp_path / "out", options=PLAIN)
    catalogue = Catalogue.load(tmp_path / "out")
    assert (report.distinct_pictures, report.captions.distinct) == (2, 1)
    assert list(catalogue.item_images.values) == [0, 1, 0]
    assert list(catalogue.caption_rows) == [0, 0, 0]
    assert len(catalogue.pictures.pixels) == 2 * 8 * 12 * 3
    assert catalogue.pictures.hashes.shape == (2, 16)


def test_pictures_shrink_to_the_side_and_are_never_enlarged(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed", pictures=())
    for name, size in (("007", (60, 30)), ("042", (10, 30)), ("100", (20, 20))):
        write_picture(feed / "images" / f"{name}.png", (5, 5, 5), width=size[0], height=size[1])
    prepare(feed, tmp_path / "out", options=replace(CAPTION, image_side=20))
    shapes = Catalogue.load(tmp_path / "out").pictures.shapes
    assert shapes.tolist() == [[10, 20], [20, 7], [20, 20]]  # 10 * 20 / 30 = 6.67


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_none_one_and_several_pictures(tmp_path: Path, suffix: str) -> None:
    lists: dict[str, list[str]] = {"007": ["images/a.png", "pics/b.jpg"], "042": [], "100": ["a.png"]}
    text = suffix in (".csv", ".tsv")
    items = [{**row, "image": "|".join(lists[row["item_id"]]) if text else lists[row["item_id"]]} for row in ITEMS]
    feed = write_raw_feed(tmp_path / "feed", items=items, suffix=suffix, pictures=("a", "042"))
    write_picture(feed / "pics" / "b.jpg", (200, 200, 200))
    prepare(feed, tmp_path / "out", options=CAPTION)
    catalogue = Catalogue.load(tmp_path / "out")
    assert [len(catalogue.images(row)) for row in range(3)] == [2, 0, 1]
    assert catalogue.images(0)[1][0, 0].tolist() == [200, 200, 200]
    assert catalogue.images(2)[0][0, 0].tolist() == [10, 0, 0]  # a path relative to images/
    assert "image" not in catalogue.attributes


@pytest.mark.parametrize("several", [False, True])
def test_pictures_as_bytes(tmp_path: Path, several: bool) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    data = [(feed / "images" / f"{row['item_id']}.png").read_bytes() for row in ITEMS]
    column = pa.array([[one, one] for one in data]) if several else pa.array([data[0], None, data[2]])
    (feed / "items.csv").unlink()
    ids = pa.array([row["item_id"] for row in ITEMS])
    titles = pa.array([row["title"] for row in ITEMS])
    parquet.write_table(pa.table({"item_id": ids, "title": titles, "image": column}), feed / "items.parquet")
    prepare(feed, tmp_path / "out", options=replace(PLAIN, caption=("title",)))
    catalogue = Catalogue.load(tmp_path / "out")
    assert [len(catalogue.images(row)) for row in range(3)] == ([2, 2, 2] if several else [1, 0, 1])
    assert catalogue.images(2)[0][0, 0].tolist() == [12, 0, 0]


def test_another_folder_of_pictures(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed", pictures=())
    write_picture(tmp_path / "elsewhere" / "042.png", (9, 9, 9))
    report = prepare(feed, tmp_path / "out", options=replace(CAPTION, images=tmp_path / "elsewhere"))
    assert report.pictures.kept == 1
    assert Catalogue.load(tmp_path / "out").images(1)[0][0, 0].tolist() == [9, 9, 9]


def test_events_and_values(tmp_path: Path) -> None:
    extra = [("like", "4.5"), ("click", ""), ("like", "1"), ("", "0")]
    rows = [{**row, "event": event, "value": value} for row, (event, value) in zip(INTERACTIONS, extra, strict=True)]
    prepare(write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out", options=CAPTION)
    histories = Histories.load(tmp_path / "out")
    assert histories.event_names == ["", "click", "like"]
    assert histories.event_codes is not None
    assert histories.values is not None
    assert [histories.event_names[code] for code in histories.event_codes] == ["like", "like", "click", ""]
    assert histories.event_codes.dtype == np.int16
    assert histories.values.dtype == np.float32
    assert np.array_equal(histories.values, np.array([1, 4.5, np.nan, 0], np.float32), equal_nan=True)


def test_equal_times_keep_the_order_of_the_table(tmp_path: Path) -> None:
    times = {"042": START, "100": START, "007": START - 1}
    rows = [{"user_id": "u", "item_id": name, "timestamp": times[name]} for name in ("100", "042", "007")]
    prepare(write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out", options=CAPTION)
    assert list(Histories.load(tmp_path / "out").item_rows) == [0, 2, 1]


def test_first_seen_and_published_at(tmp_path: Path) -> None:
    dates = ["2020-09-01", "", "2020-12-24T18:00:00+01:00", "soon"]
    items = [
        {**row, "published_at": date}
        for row, date in zip([*ITEMS, {"item_id": "new", "title": "New", "description": ""}], dates, strict=True)
    ]
    report = prepare(write_raw_feed(tmp_path / "feed", items=items), tmp_path / "out", options=CAPTION)
    catalogue = Catalogue.load(tmp_path / "out")
    september, christmas = 1_598_918_400_000, 1_608_829_200_000  # 2020-09-01T00:00Z, 2020-12-24T17:00Z
    first = 1000 * (START + 3 * DAY)  # item 100 was chosen before its date: it exists from then on
    assert list(catalogue.first_seen) == [september, 1000 * (START + 2 * DAY), first, NEVER]
    published = pd.read_parquet(tmp_path / "out" / "items.parquet")["published_at"]
    assert published.isna().tolist() == [False, True, False, True]
    assert published[[0, 2]].astype("int64").tolist() == [september, christmas]
    counts = (report.times.published_given, report.times.published_unreadable, report.times.published_late)
    assert counts == (3, 1, 1)


def test_order_is_kept_as_it_is(tmp_path: Path) -> None:
    rows = [{**row, "timestamp": position} for position, row in enumerate(INTERACTIONS)]
    out = tmp_path / "out"
    prepare(write_raw_feed(tmp_path / "feed", interactions=rows), out, options=replace(CAPTION, timestamp_unit="order"))
    histories = Histories.load(out)
    assert not histories.has_time
    assert list(histories.timestamps) == [0, 2, 1, 3]


def test_default_split_depends_on_the_clock(tmp_path: Path) -> None:
    items, rows = many(30)
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    prepare(feed, tmp_path / "real", options=PrepareOptions(workers=1))
    prepare(feed, tmp_path / "order", options=PrepareOptions(workers=1, timestamp_unit="order"))
    chosen = SplitPlan(kind="cold_items", name="cold", choices=SplitChoices(cold_share=0.3))
    prepare(feed, tmp_path / "chosen", options=PrepareOptions(workers=1, split=chosen))
    assert Split.load(tmp_path / "real").kind == "global_time"
    assert Split.load(tmp_path / "order").kind == "leave_last_out"
    cold = Split.load(tmp_path / "chosen")
    assert (cold.name, cold.kind, int(np.sum(cold.item_roles == 2))) == ("cold", "cold_items", 9)
    assert json.loads((tmp_path / "chosen" / "manifest.json").read_text())["default_split"] == "cold"


def test_a_split_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    rows = [
        {"user_id": row["item_id"], "item_id": row["item_id"], "timestamp": START + at} for at, row in enumerate(ITEMS)
    ]
    feed = write_raw_feed(tmp_path / "feed", interactions=rows)
    with pytest.raises(FeedError, match="a user with at least two interactions"):
        prepare(feed, tmp_path / "out", options=PrepareOptions(workers=1, caption=("title",)))
    assert not (tmp_path / "out").exists()


def test_catalogue_of_one_item(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": "007", "timestamp": START + at} for at in range(3)]
    prepare(write_raw_feed(tmp_path / "feed", items=ITEMS[:1], interactions=rows), tmp_path / "out", options=CAPTION)
    assert len(Catalogue.load(tmp_path / "out")) == 1


def test_workers_and_block_size_change_nothing(tmp_path: Path) -> None:
    items, rows = many(12)
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    for row in range(12):
        (feed / "images").mkdir(exist_ok=True)
        Image.fromarray(noise(row % 7, 20, 30 + row % 7)).save(feed / "images" / f"i{row:03}.png")
    (feed / "images" / "i004.png").write_bytes(b"no picture")
    options = PrepareOptions(split=None, max_bad=0.2)
    prepare(feed, tmp_path / "one", options=replace(options, workers=1))
    report = prepare(feed, tmp_path / "two", options=replace(options, workers=2, block_size=2))
    assert same_files(tmp_path / "one", tmp_path / "two")
    assert (report.pictures.kept, report.distinct_pictures) == (11, 7)
    assert quarantined(tmp_path / "two") == [("pictures", 5, "images/i004.png", "not_an_image")]


def test_unchanged_feed_does_nothing_and_any_change_does(tmp_path: Path) -> None:
    feed, out = write_raw_feed(tmp_path / "feed"), tmp_path / "out"
    first = prepare(feed, out, options=CAPTION)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare(feed, out, options=replace(CAPTION, workers=2, block_size=1))
    assert again.unchanged
    assert not first.unchanged
    assert replace(again, unchanged=False) == first == PrepareReport.load(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert not prepare(feed, out, options=replace(CAPTION, image_side=6)).unchanged
    write_picture(feed / "images" / "042.png", (99, 0, 0), width=13)
    assert not prepare(feed, out, options=replace(CAPTION, image_side=6)).unchanged
    write_table(feed, "interactions", INTERACTIONS[::-1])
    assert not prepare(feed, out, options=replace(CAPTION, image_side=6)).unchanged
    assert prepare(feed, out, options=replace(CAPTION, image_side=6)).unchanged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed", "out"]


def test_out_inside_the_feed_is_not_part_of_it(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    prepare(feed, feed / "prepared", options=CAPTION)
    assert prepare(feed, feed / "prepared", options=CAPTION).unchanged


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    feed = write_raw_feed(tmp_path / "feed")
    prepare(
        feed, tmp_path / "out", options=CAPTION, progress=lambda stage, done, total: seen.append((stage, done, total))
    )
    assert ("pictures", 3, 3) in seen
    assert ("interactions", 4, 0) in seen
    assert seen[-1] == ("writing", 1, 1)


@pytest.mark.parametrize("change", [{"image_side": 0}, {"max_bad": 1.5}, {"workers": 0}, {"max_caption_bytes": 3}])
def test_wrong_options(change: dict[str, int]) -> None:
    with pytest.raises(FeedError, match="options of prepare"):
        PrepareOptions(**change)
