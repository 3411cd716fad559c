"""What must happen to bad rows, bad pictures and bad tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from data_tools.prepare import PrepareOptions, prepare
from mmrec.errors import FeedError
from mmrec.feed.catalogue import NO_CAPTION, Catalogue
from mmrec.feed.histories import Histories
from tests.data_tools.raw_feeds import (
    DAY,
    INTERACTIONS,
    ITEMS,
    PLAIN,
    START,
    Row,
    noise,
    quarantined,
    write_picture,
    write_raw_feed,
    write_table,
)

CAPTION = replace(PLAIN, caption=("title", "description"))
TOLERANT = replace(CAPTION, max_bad=1.0)


def one_column(captions: Sequence[str]) -> tuple[list[Row], list[Row]]:
    items: list[Row] = [{"item_id": f"i{row}", "caption": caption} for row, caption in enumerate(captions)]
    rows: list[Row] = [{"user_id": "u", "item_id": f"i{row}", "timestamp": START + row} for row in range(len(captions))]
    return items, rows


def test_bad_pictures_leave_the_post(tmp_path: Path) -> None:
    names = ["cut", "empty", "text", "large", "tiff", "folder", "good"]
    items = [{"item_id": name, "caption": name} for name in names]
    rows = [{"user_id": "u", "item_id": name, "timestamp": START + at} for at, name in enumerate(names)]
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    images = feed / "images"
    images.mkdir()
    Image.fromarray(noise(0, 30, 30)).save(images / "whole.jpg")
    (images / "cut.jpg").write_bytes((images / "whole.jpg").read_bytes()[:600])
    (images / "empty.jpg").touch()
    (images / "text.png").write_text("not found")
    Image.new("RGB", (101, 100)).save(images / "large.png")
    Image.new("RGB", (10, 10)).save(images / "tiff.tiff")
    (images / "folder.jpg").mkdir()
    write_picture(images / "good.webp", (0, 0, 0), width=100, height=100)
    report = prepare(feed, tmp_path / "out", options=replace(TOLERANT, caption=None, max_pixels=10_000))
    expected = ["truncated", "empty", "not_an_image", "too_large", "unsupported_format", "unreadable"]
    assert [reason for _, _, _, reason in quarantined(tmp_path / "out")] == expected
    assert (report.pictures.given, report.pictures.kept) == (7, 1)
    assert report.pictures.refused == dict.fromkeys(sorted(expected), 1)
    catalogue = Catalogue.load(tmp_path / "out")
    assert len(catalogue) == 7
    assert [len(catalogue.images(row)) for row in range(7)] == [0, 0, 0, 0, 0, 0, 1]
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["listed"][3] == {
        "table": "pictures",
        "row": 4,
        "identity": "images/large.png",
        "reason": "too_large",
        "error_message": "expected a whole picture (JPEG, PNG, WEBP, GIF, BMP, AVIF), "
        "got 101 x 100 = 10,100 pixels (at most 10,000)",
    }


def test_paths_and_links_that_leave_the_feed(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png", (1, 1, 1))
    paths = ["../secret.png", str(tmp_path / "secret.png"), "images/link.png", "images/../../secret.png"]
    paths += ["absent.png", "images/loop.png", "nul\0.png", "x" * 300 + ".png", "images/../images/ok.png", "inner.png"]
    items = [{"item_id": f"i{row}", "caption": "c", "image": [path]} for row, path in enumerate(paths)]
    rows = [{"user_id": "u", "item_id": f"i{row}", "timestamp": START + row} for row in range(len(paths))]
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, suffix=".jsonl", pictures=("ok",))
    (feed / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (feed / "images" / "loop.png").symlink_to(feed / "images" / "loop.png")
    (feed / "inner.png").symlink_to(feed / "images" / "ok.png")
    prepare(feed, tmp_path / "out", options=replace(TOLERANT, caption=None))
    reasons = [reason for _, _, _, reason in quarantined(tmp_path / "out")]
    assert reasons[:5] == ["outside_feed"] * 4 + ["missing_file"]
    assert set(reasons[5:]) <= {"unreadable", "missing_file"}
    assert len(reasons) == 8
    catalogue = Catalogue.load(tmp_path / "out")
    assert [len(catalogue.images(row)) for row in (8, 9)] == [1, 1]


def test_item_id_and_folder_link_that_leave_the_feed(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png", (1, 1, 1))
    items = [{"item_id": "../../secret", "caption": "a"}, {"item_id": "b", "caption": "b"}]
    rows = [{"user_id": "u", "item_id": row["item_id"], "timestamp": START + at} for at, row in enumerate(items)]
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=("b",))
    prepare(feed, tmp_path / "out", options=replace(TOLERANT, caption=None))
    assert quarantined(tmp_path / "out") == [("pictures", 1, "images/../../secret.png", "outside_feed")]
    (feed / "images").rename(tmp_path / "pictures")
    (feed / "images").symlink_to(tmp_path / "pictures")
    prepare(feed, tmp_path / "linked", options=replace(TOLERANT, caption=None))
    assert quarantined(tmp_path / "linked") == [("pictures", 2, "images/b.png", "outside_feed")]


AWKWARD = [
    "NA",
    "null",
    "nan",
    "None",
    "0012",
    "🧶👗",
    "سترة صوف",
    " padded ",
    'say "hi", please',
    "two\nlines",
    "x" * 100_000,
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_captions_are_kept_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    items, rows = one_column(AWKWARD)
    prepare(
        write_raw_feed(tmp_path / "feed", items=items, interactions=rows, suffix=suffix, pictures=()),
        tmp_path / "out",
        options=PLAIN,
    )
    catalogue = Catalogue.load(tmp_path / "out")
    assert [catalogue.caption(row) for row in range(len(AWKWARD))] == AWKWARD


def test_ids_that_look_like_something_else(tmp_path: Path) -> None:
    ids = ["NA", "null", "007", "1e5", "1.0", "True", "é"]
    items = [{"item_id": name, "caption": name} for name in ids]
    rows = [{"user_id": f"0{name}", "item_id": name, "timestamp": START + at} for at, name in enumerate(ids)]
    prepare(
        write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=()), tmp_path / "out", options=PLAIN
    )
    assert list(Catalogue.load(tmp_path / "out").item_ids) == ids
    assert list(Histories.load(tmp_path / "out").user_ids) == [f"0{name}" for name in ids]


def test_missing_and_blank_captions(tmp_path: Path) -> None:
    items, rows = one_column(["", "   ", "text", "\t\u00a0"])
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=("i0", "i1"))
    report = prepare(feed, tmp_path / "out", options=replace(TOLERANT, caption=None))
    catalogue = Catalogue.load(tmp_path / "out")
    assert list(catalogue.item_ids) == ["i0", "i1", "i2"]
    assert list(catalogue.caption_rows) == [NO_CAPTION, NO_CAPTION, 0]
    assert catalogue.attributes["caption"].tolist() == ["", "   ", "text"]  # the column itself keeps its bytes
    assert (report.captions.missing, report.captions.blank, report.captions.present) == (1, 2, 1)
    assert quarantined(tmp_path / "out") == [
        ("items", 4, "i3", "no_content"),
        ("interactions", 4, "u i3", "unknown_item"),
    ]


def test_keep_empty(tmp_path: Path) -> None:
    items, rows = one_column(["", "text"])
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    report = prepare(feed, tmp_path / "out", options=replace(PLAIN, keep_empty=True))
    assert (report.items.kept, report.refusals) == (2, 0)
    assert Catalogue.load(tmp_path / "out").caption(0) is None


def test_declared_truncation_is_counted_and_cuts_between_characters(tmp_path: Path) -> None:
    items, rows = one_column(["abcdef", "abcé", "abc"])  # é is two bytes, the fourth and fifth
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    report = prepare(feed, tmp_path / "out", options=replace(PLAIN, max_caption_bytes=4))
    catalogue = Catalogue.load(tmp_path / "out")
    assert [catalogue.caption(row) for row in range(3)] == ["abcd", "abc", "abc"]
    assert report.captions.truncated == 2


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    lines = (feed / "items.csv").read_bytes().splitlines(keepends=True)
    lines[2] = "042,Größe,x\n".encode("latin-1")
    (feed / "items.csv").write_bytes(b"".join(lines))
    with pytest.raises(FeedError, match=r"expected UTF-8 text, got byte 0xf6.*items\.csv, line 3"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    filler = b"x,y,z\n" * 400_000  # longer than one block
    (feed / "items.csv").write_bytes(filler + b"\xff\n")
    with pytest.raises(FeedError, match="line 400001"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    (feed / "items.csv").write_text("item_id,title\n1,x\n", encoding="utf-16")
    with pytest.raises(FeedError, match="line 1"):
        prepare(feed, tmp_path / "out", options=CAPTION)


def test_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl"):
        feed = write_raw_feed(tmp_path / suffix[1:], suffix=suffix)
        path = feed / f"items{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert prepare(feed, tmp_path / f"out{suffix}", options=CAPTION).items.kept == 3


def test_bad_interactions_are_quarantined(tmp_path: Path) -> None:
    good = [{**row, "value": "1"} for row in INTERACTIONS]
    changes: list[Row] = [
        {"item_id": "999"},
        {"timestamp": ""},
        {"timestamp": "yesterday"},
        {"timestamp": "0"},
        {"timestamp": "99999999999"},
        {"user_id": ""},
        {"item_id": ""},
        {"value": "high"},
        {"value": "inf"},
        {},
    ]
    rows = [*good, *({**good[0], **change} for change in changes)]
    feed = write_raw_feed(tmp_path / "feed", interactions=rows)
    report = prepare(feed, tmp_path / "out", options=replace(TOLERANT, timestamp_unit="s"))
    assert sorted(quarantined(tmp_path / "out"), key=lambda entry: entry[1]) == [
        ("interactions", 5, "b 999", "unknown_item"),
        ("interactions", 6, "b 042", "missing_timestamp"),
        ("interactions", 7, "b 042", "unreadable_timestamp"),
        ("interactions", 8, "b 042", "absurd_timestamp"),
        ("interactions", 9, "b 042", "absurd_timestamp"),
        ("interactions", 10, " 042", "missing_user_id"),
        ("interactions", 11, "b ", "missing_item_id"),
        ("interactions", 12, "b 042", "unreadable_value"),
        ("interactions", 13, "b 042", "unreadable_value"),
        ("interactions", 14, "b 042", "exact_duplicate"),
    ]
    assert (report.interactions.given, report.interactions.kept) == (14, 4)
    assert report.interactions.refused["absurd_timestamp"] == 2
    assert list(Histories.load(tmp_path / "out").user_ids) == ["b", "a"]
    table = pd.read_parquet(tmp_path / "out" / "quarantine.parquet").set_index("row")["error_message"]
    assert table[14] == "expected a new interaction, got row 1 once more"
    assert table[7] == "expected a number or an ISO date, got timestamp 'yesterday'"


def test_duplicates_differ_in_nothing(tmp_path: Path) -> None:
    base = {"user_id": "u", "item_id": "007", "timestamp": START, "event": "like", "value": "1"}
    changes: list[Row] = [{}, {"value": "2"}, {"event": "click"}, {"timestamp": START + 1}, {"item_id": "042"}, {}, {}]
    rows = [{**base, **change} for change in changes]
    report = prepare(write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out", options=TOLERANT)
    assert report.interactions.kept == 5
    assert [row for _, row, _, _ in quarantined(tmp_path / "out")] == [6, 7]


def test_malformed_rows_are_counted(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    lines = (feed / "interactions.csv").read_text().splitlines()
    lines[2:2] = ["a,007", "a,007,1,2,3"]
    (feed / "interactions.csv").write_text("\n".join([*lines, "u"]))
    report = prepare(feed, tmp_path / "out", options=TOLERANT)
    assert (report.interactions.given, report.interactions.kept) == (7, 4)
    assert [(row, reason) for _, row, _, reason in quarantined(tmp_path / "out")] == [
        (2, "malformed_row"),
        (3, "malformed_row"),
        (7, "malformed_row"),
    ]
    feed = write_raw_feed(tmp_path / "lines", suffix=".jsonl")
    with (feed / "items.jsonl").open("a") as file:
        file.write('[1, 2]\n{"item_id": \n{"item_id": "\\ud800", "title": "x"}\n\n')
    report = prepare(feed, tmp_path / "out2", options=TOLERANT)
    assert (report.items.given, dict(report.items.refused)) == (6, {"malformed_row": 3})


def test_unclosed_quote_does_not_swallow_the_rest(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    text = (feed / "items.csv").read_text()
    (feed / "items.csv").write_text(text.replace("Striped.", '"Striped.'))
    with pytest.raises(FeedError, match="quote mark"):
        prepare(feed, tmp_path / "out", options=TOLERANT)


def test_duplicate_items(tmp_path: Path) -> None:
    extra = {"item_id": "new", "title": "n", "description": "n"}
    feed = write_raw_feed(tmp_path / "feed", items=[ITEMS[0], ITEMS[1], ITEMS[0], ITEMS[2], extra])
    report = prepare(feed, tmp_path / "out", options=TOLERANT)
    assert quarantined(tmp_path / "out") == [("items", 3, "007", "exact_duplicate")]
    assert list(Catalogue.load(tmp_path / "out").item_ids) == ["007", "042", "100", "new"]
    assert report.items.given == 5
    other = {**ITEMS[0], "title": "Cotton jumper"}
    feed = write_raw_feed(tmp_path / "two", items=[ITEMS[0], ITEMS[1], other, ITEMS[2]])
    with pytest.raises(FeedError, match=r"'007' in row 1 and, with other content, in row 3.*--on-duplicate last"):
        prepare(feed, tmp_path / "out2", options=TOLERANT)
    prepare(feed, tmp_path / "out2", options=replace(TOLERANT, on_duplicate="last"))
    catalogue = Catalogue.load(tmp_path / "out2")
    assert list(catalogue.item_ids) == ["042", "007", "100"]
    assert catalogue.caption(1) == "Cotton jumper. Striped."
    assert quarantined(tmp_path / "out2") == [("items", 1, "007", "replaced_by_later_row")]


def test_too_many_bad_rows(tmp_path: Path) -> None:
    rows: list[Row] = [{"user_id": "u", "item_id": "007", "timestamp": START + at} for at in range(18)]
    rows += [{"user_id": "u", "item_id": "x", "timestamp": START}] * 2
    feed, out = write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out"
    with pytest.raises(
        FeedError, match=r"at most 5\.0% of interactions refused, got 10\.0% \(unknown_item 2\).*--max-bad"
    ):
        prepare(feed, out, options=CAPTION)
    record = json.loads((out / "report.json").read_text())
    assert (record["status"], record["interactions"]["refused"]) == ("refused", {"unknown_item": 2})
    assert len(quarantined(out)) == 2
    with pytest.raises(FeedError, match="a prepared feed"):
        Catalogue.load(out)
    prepare(feed, out, options=replace(CAPTION, max_bad=0.1))
    assert len(Histories.load(out).item_rows) == 18
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(FeedError, match="out.refused"):
        prepare(feed, out, options=replace(CAPTION, max_bad=0.01))
    assert (out / "manifest.json").read_bytes() == before  # the feed that was good stays
    assert json.loads((tmp_path / "out.refused" / "report.json").read_text())["status"] == "refused"


def test_too_many_bad_pictures_and_items(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    (feed / "images" / "007.png").write_bytes(b"")
    with pytest.raises(FeedError, match=r"of pictures refused, got 33\.3% \(empty 1\)"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    items = [*ITEMS, {"item_id": "", "title": "x", "description": "y"}]
    with pytest.raises(FeedError, match=r"of items refused, got 25\.0% \(missing_item_id 1\)"):
        prepare(write_raw_feed(tmp_path / "two", items=items), tmp_path / "out", options=CAPTION)


def test_nothing_left(tmp_path: Path) -> None:
    items, rows = one_column(["", " "])
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows, pictures=())
    with pytest.raises(FeedError, match="expected items that can be used, got none"):
        prepare(feed, tmp_path / "out", options=replace(TOLERANT, caption=None))
    rows = [{**row, "item_id": "x"} for row in INTERACTIONS]
    with pytest.raises(FeedError, match="expected interactions that can be used, got none"):
        prepare(write_raw_feed(tmp_path / "two", interactions=rows), tmp_path / "out", options=TOLERANT)


def test_all_interactions_at_one_time(tmp_path: Path) -> None:
    rows = [{**row, "timestamp": START} for row in INTERACTIONS]
    with pytest.raises(
        FeedError, match=r"interactions at different times, got all 4 at 1600000000000, in .*interactions"
    ):
        prepare(write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out", options=CAPTION)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_missing_column(tmp_path: Path, suffix: str) -> None:
    rows = [{"user": row["user_id"], "item_id": row["item_id"], "timestamp": row["timestamp"]} for row in INTERACTIONS]
    feed = write_raw_feed(tmp_path / "feed", interactions=rows, suffix=suffix)
    with pytest.raises(
        FeedError, match=r"a column 'user_id', got columns user, item_id, timestamp, in .*interactions\..*mean"
    ):
        prepare(feed, tmp_path / "out", options=CAPTION)
    feed = write_raw_feed(tmp_path / "two", suffix=suffix)
    with pytest.raises(FeedError, match=r"a caption column 'tittle'.*--caption"):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=("tittle",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "user_id,item_id,timestamp\n"])
def test_empty_table(tmp_path: Path, content: str) -> None:
    for unit in (None, "s"):
        feed = write_raw_feed(tmp_path / f"feed{unit}")
        (feed / "interactions.csv").write_text(content)
        with pytest.raises(FeedError, match=r"empty table, in .*interactions\.csv"):
            prepare(feed, tmp_path / "out", options=replace(CAPTION, timestamp_unit=unit))
    feed = write_raw_feed(tmp_path / "items")
    (feed / "items.csv").write_text(content.replace("user_id,", ""))
    with pytest.raises(FeedError, match=r"empty table, in .*items\.csv"):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=()))


def test_empty_parquet_and_jsonl(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed", suffix=".parquet")
    empty = pd.DataFrame(INTERACTIONS).iloc[:0]
    empty.to_parquet(feed / "interactions.parquet")
    with pytest.raises(FeedError, match="empty table"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    feed = write_raw_feed(tmp_path / "two", suffix=".jsonl")
    (feed / "interactions.jsonl").write_text("")
    with pytest.raises(FeedError, match="empty table"):
        prepare(feed, tmp_path / "out", options=CAPTION)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("item_id", [1.5, 2.5, 3.5], "text or whole numbers in column 'item_id', got double"),
        ("image", [1, 2, 3], "paths, bytes, or lists of them in column 'image', got int64"),
        ("vector", [b"a", b"b", b"c"], "bytes are for the column 'image'"),
        ("published_at", [[1], [2], [3]], "one value a row in column 'published_at'"),
    ],
)
def test_wrong_type_in_parquet(tmp_path: Path, name: str, values: list[object], expected: str) -> None:
    feed = write_raw_feed(tmp_path / "feed", suffix=".parquet")
    frame = pa.table({"item_id": ["007", "042", "100"], "title": ["a", "b", "c"]})
    frame = frame.drop([name]) if name in frame.column_names else frame
    parquet.write_table(frame.append_column(name, pa.array(values)), feed / "items.parquet")
    with pytest.raises(FeedError, match=expected):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=("title",)))


@pytest.mark.parametrize(
    ("ids", "expected"), [((1.5, "x"), "got 1.5 in row 1"), (("x", 7), "ids of one type"), (([1], "x"), "row 1")]
)
def test_wrong_type_in_json(tmp_path: Path, ids: tuple[object, object], expected: str) -> None:
    items = [{"item_id": item_id, "title": "a"} for item_id in ids]
    feed = write_raw_feed(tmp_path / "feed", items=items, suffix=".jsonl")
    with pytest.raises(FeedError, match=expected):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=("title",)))


def test_no_table_two_tables_no_folder_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="got no folder"):
        prepare(tmp_path / "absent", tmp_path / "out", options=CAPTION)
    feed = write_raw_feed(tmp_path / "feed")
    write_table(feed, "items", ITEMS, suffix=".jsonl")
    with pytest.raises(FeedError, match=r"2: items\.csv, items\.jsonl"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    (feed / "items.csv").unlink()
    (feed / "items.jsonl").unlink()
    with pytest.raises(FeedError, match="got none"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    (feed / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(FeedError, match="a Parquet file"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    (feed / "items.parquet").rename(feed / "items.csv")
    (feed / "items.csv").write_text("item_id,title,title\n1,a,b\n")
    with pytest.raises(FeedError, match="'title' twice"):
        prepare(feed, tmp_path / "out", options=CAPTION)
    (feed / "items.csv").write_text("item_id,title,first_seen\n1,a,b\n")
    with pytest.raises(FeedError, match="no column 'first_seen'"):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=("title",)))


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed", suffix=".parquet")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    parquet.write_table(pa.table({"item_id": ["007"], "title": bad}), feed / "items.parquet")
    with pytest.raises(FeedError, match=r"UTF-8 text.*items\.parquet, row 1"):
        prepare(feed, tmp_path / "out", options=replace(CAPTION, caption=("title",)))


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    feed = write_raw_feed(tmp_path / "feed")
    precious = tmp_path / "runs"
    precious.mkdir()
    for name in ("report.json", "manifest.json", "model.safetensors"):
        (precious / name).write_text("{}")
    with pytest.raises(FeedError, match="a folder with other files"):
        prepare(feed, precious, options=CAPTION)
    assert sorted(path.name for path in precious.iterdir()) == ["manifest.json", "model.safetensors", "report.json"]
    (tmp_path / "empty").mkdir()
    prepare(feed, tmp_path / "empty", options=CAPTION)
    prepare(feed, tmp_path / "empty", options=replace(CAPTION, image_side=4))


def test_report_adds_up_to_the_rows_in(tmp_path: Path) -> None:
    items: list[Row] = [
        *ITEMS,
        ITEMS[0],
        {"item_id": "", "title": "", "description": ""},
        {"item_id": "e", "title": " ", "description": ""},
    ]
    rows: list[Row] = [
        *INTERACTIONS,
        INTERACTIONS[0],
        {**INTERACTIONS[0], "item_id": "e"},
        {**INTERACTIONS[0], "timestamp": -5},
    ]
    feed = write_raw_feed(tmp_path / "feed", items=items, interactions=rows)
    (feed / "images" / "007.png").write_bytes(b"")
    prepare(feed, tmp_path / "out", options=replace(TOLERANT, timestamp_unit="s"))
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    given = {name: record[name]["given"] for name in ("items", "interactions", "pictures")}
    assert given == {"items": len(items), "interactions": len(rows), "pictures": 3}
    for name, count in given.items():
        assert record[name]["kept"] + sum(record[name]["refused"].values()) == count
    refused = sum(sum(record[name]["refused"].values()) for name in given)
    assert refused == record["refusals"] == len(record["listed"]) == len(quarantined(tmp_path / "out")) == 7


def test_only_the_first_thousand_refusals_are_listed(tmp_path: Path) -> None:
    rows: list[Row] = [*INTERACTIONS, *({**INTERACTIONS[0], "item_id": f"x{at}"} for at in range(1500))]
    prepare(write_raw_feed(tmp_path / "feed", interactions=rows), tmp_path / "out", options=TOLERANT)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (len(record["listed"]), record["refusals"], len(quarantined(tmp_path / "out"))) == (1000, 1500, 1500)


def test_days_apart(tmp_path: Path) -> None:
    """The defaults of the command refuse nothing of a good feed."""
    rows = [{"user_id": "u", "item_id": row["item_id"], "timestamp": START + at * DAY} for at, row in enumerate(ITEMS)]
    report = prepare(
        write_raw_feed(tmp_path / "feed", interactions=rows),
        tmp_path / "out",
        options=PrepareOptions(caption=("title",)),
    )
    assert report.refusals == 0
