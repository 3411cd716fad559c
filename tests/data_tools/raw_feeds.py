"""Small raw feeds for the tests of preparation: tables in any of the four formats, and a folder of pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_tools.prepare import PrepareOptions

DAY = 86_400
START = 1_600_000_000
"""2020-09-13 12:26:40 UTC, in seconds."""
Row = Mapping[str, object]
PLAIN = PrepareOptions(split=None, workers=1)
"""Options of most tests: no split, no worker processes."""
ITEMS = [
    {"item_id": "007", "title": "Wool jumper", "description": "Striped."},
    {"item_id": "042", "title": "Red scarf!", "description": "Soft"},
    {"item_id": "100", "title": "Green hat", "description": ""},
]
INTERACTIONS = [
    {"user_id": "b", "item_id": "042", "timestamp": START + 2 * DAY},
    {"user_id": "a", "item_id": "007", "timestamp": START},
    {"user_id": "b", "item_id": "007", "timestamp": START + DAY},
    {"user_id": "a", "item_id": "100", "timestamp": START + 3 * DAY},
]


def write_table(folder: Path, name: str, rows: Sequence[Row], *, suffix: str = ".csv") -> Path:
    """Write rows as one of the formats; the first row names the columns of text files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    match suffix:
        case ".parquet":
            pd.DataFrame(list(rows)).to_parquet(path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case _:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return path


def write_picture(path: Path, colour: tuple[int, int, int], *, width: int = 12, height: int = 8) -> None:
    """Write a picture of one colour, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def write_raw_feed(
    folder: Path,
    *,
    items: Sequence[Row] = ITEMS,
    interactions: Sequence[Row] = INTERACTIONS,
    suffix: str = ".csv",
    pictures: Sequence[str] = ("007", "042", "100"),
) -> Path:
    """Write a feed; each picture has its own shade of red."""
    write_table(folder, "items", items, suffix=suffix)
    write_table(folder, "interactions", interactions, suffix=suffix)
    for number, name in enumerate(pictures):
        write_picture(folder / "images" / f"{name}.png", (10 + number, 0, 0))
    return folder


def many(count: int) -> tuple[list[Row], list[Row]]:
    """Return ``count`` captioned items and, for each, one interaction of one of two users."""
    items: list[Row] = [{"item_id": f"i{row:03}", "caption": f"post {row}"} for row in range(count)]
    interactions: list[Row] = [
        {"user_id": f"u{row % 2}", "item_id": f"i{row:03}", "timestamp": START + row} for row in range(count)
    ]
    return items, interactions


def quarantined(folder: Path) -> list[tuple[str, int, str, str]]:
    """Return table, row, identity and reason of every refusal, and check that each has a message."""
    table = pd.read_parquet(folder / "quarantine.parquet")
    assert all(message.startswith("expected ") for message in table["error_message"])
    columns = (table["table"], table["row"], table["identity"], table["reason"])
    return [
        (str(name), int(row), str(identity), str(reason)) for name, row, identity, reason in zip(*columns, strict=True)
    ]


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    others = sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    return names == others and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """Return a random picture."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
