"""A small real feed, small real encoders and runs trained on them in a second, shared by the whole session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from data_tools.prepare import PrepareOptions, SplitPlan, prepare
from mmrec.commands.train import train_run
from mmrec.config import Config, validate
from mmrec.inference.recommender import Recommender
from tests.encoders.tiny_models import bert_folder, open_clip_folder

NUM_ITEMS, NUM_USERS, NUM_EVENTS = 30, 20, 6
SIDE = 32
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}
THINGS = ("scarf", "jumper", "dress")
CAPTION_ONLY, PICTURE_ONLY, TWO_PICTURES, SAME_CAPTION = "p02", "p03", "p05", "p06"
ONE_THREAD = {"batch_users": 8, "history_length": 8, "workers": 0, "trackers": [], "metric": "ndcg@10"}


@dataclass(frozen=True)
class TinyFeed:
    """A raw feed and what was prepared from it."""

    raw: Path
    prepared: Path

    def image(self, item_id: str, number: int = 0) -> Path:
        """A picture file as the raw feed holds it."""
        return self.raw / "images" / (f"{item_id}-b.png" if number else f"{item_id}.png")

    def caption(self, item_id: str) -> str:
        return str(items_table().set_index("item_id").loc[item_id, "caption"])


@dataclass(frozen=True)
class TinyEncoders:
    """Folders of encoders made on the spot."""

    bert: Path
    pair: Path


def draw(row: int, *, second: bool = False) -> Image.Image:
    """A wide or tall picture: a bar on a background of the item's colour, no two alike."""
    height, width = (24, SIDE) if row % 2 else (SIDE, 24)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = list(COLOURS.values())[row % 3]
    canvas[4 : 8 + row % 9, (16 if second else 2) : (20 if second else 6 + row % 11)] = 255 - 8 * row
    return Image.fromarray(canvas)


def items_table() -> pd.DataFrame:
    """One row an item: caption (or none), pictures, and attributes of several types."""
    rows = []
    for row in range(NUM_ITEMS):
        item_id, colour, thing = f"p{row:02}", list(COLOURS)[row % 3], THINGS[row // 3 % 3]
        words = ["small", "large", "soft", "striped"][row % 4]
        caption = f"A {words} {colour} {thing} with {'wool' if row % 5 else 'silk'}"
        pictures = [] if item_id == CAPTION_ONLY else [f"images/{item_id}.png"]
        if item_id == TWO_PICTURES:
            pictures.append(f"images/{item_id}-b.png")
        rows.append(
            {
                "item_id": item_id,
                "caption": None if item_id == PICTURE_ONLY else caption,
                "image": pictures,
                "colour": colour,
                "price": 1.5 * row,
                "stock": row,
                "tags": [colour, thing][: row % 3],
            }
        )
    rows[int(SAME_CAPTION[1:])]["caption"] = rows[int(TWO_PICTURES[1:])]["caption"]
    return pd.DataFrame(rows)


def interactions_table() -> pd.DataFrame:
    """Users who walk through the items of one colour, three steps at a time."""
    rows = []
    for user in range(NUM_USERS):
        chosen = [(user % 3 + 3 * ((user // 3 + 3 * step) % 10)) % NUM_ITEMS for step in range(NUM_EVENTS)]
        rows += [
            {"user_id": f"u{user:02}", "item_id": f"p{item:02}", "timestamp": step} for step, item in enumerate(chosen)
        ]
    return pd.DataFrame(rows)


def write_raw(folder: Path, items: pd.DataFrame, interactions: pd.DataFrame) -> Path:
    """Write a raw feed and the pictures of its items."""
    (folder / "images").mkdir(parents=True)
    items.to_parquet(folder / "items.parquet")
    interactions.to_parquet(folder / "interactions.parquet")
    for row in range(NUM_ITEMS):
        draw(row).save(folder / "images" / f"p{row:02}.png")
    draw(int(TWO_PICTURES[1:]), second=True).save(folder / "images" / f"{TWO_PICTURES}-b.png")
    return folder


def prepare_tiny(raw: Path, out: Path, *, unit: str = "order") -> TinyFeed:
    """Prepare a raw feed with a leave-last-out split."""
    options = PrepareOptions(
        image_side=SIDE, timestamp_unit=unit, split=SplitPlan(kind="leave_last_out"), workers=1, max_bad=0.2
    )
    prepare(raw, out, options=options)
    return TinyFeed(raw, out)


def tiny_config(encoders: TinyEncoders, *, ids: bool = True, train: Mapping[str, object] | None = None) -> Config:
    """Frozen BERT and ViT, one layer of everything else."""
    return validate(
        {
            "encoders": {
                "text": {"kind": "transformers", "model": str(encoders.bert), "max_tokens": 16},
                "image": {"kind": "timm", "model": "test_vit", "random_weights": True, "side": SIDE},
                **({"item_id": {"kind": "item_id"}} if ids else {}),
            },
            "model": {"dim": 16, "fusion": {"latents": 2, "heads": 2}, "user": {"layers": 1, "heads": 2}},
            "objective": {"negatives": 8, "contrastive_items": 16},
            "train": ONE_THREAD | {"epochs": 2} | dict(train or {}),
        },
        where="test",
    )


def changed(config: Config, **groups: Mapping[str, object]) -> Config:
    """A config with some settings of some groups replaced."""
    values = config.model_dump(mode="json")
    return validate(values | {name: values[name] | dict(new) for name, new in groups.items()}, where="test")


def write_config(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> TinyEncoders:
    root = tmp_path_factory.mktemp("encoders")
    return TinyEncoders(bert_folder(root / "bert"), open_clip_folder(root / "pair"))


@pytest.fixture(scope="session")
def tiny_feed(tmp_path_factory: pytest.TempPathFactory) -> TinyFeed:
    root = tmp_path_factory.mktemp("feed")
    return prepare_tiny(write_raw(root / "raw", items_table(), interactions_table()), root / "prepared")


@pytest.fixture(scope="session")
def rich_feed(tmp_path_factory: pytest.TempPathFactory) -> TinyFeed:
    """The same items and choices, with real times, names of events, and values."""
    root = tmp_path_factory.mktemp("rich")
    table = interactions_table()
    step = table["timestamp"]
    table["event"] = [("click", "like")[number % 2] for number in step]
    table["value"] = [float(number % 2) for number in step]
    table["timestamp"] = 1_600_000_000 + 86_400 * step**2 + 60 * table["user_id"].str[1:].astype(int)
    return prepare_tiny(write_raw(root / "raw", items_table(), table), root / "prepared", unit="s")


@pytest.fixture(scope="session")
def tiny_run(tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with item ids.  Tests read it; those that change it copy it first."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(tiny_config(tiny_encoders), feed=tiny_feed.prepared, out=run, device="cpu")
    return run


@pytest.fixture(scope="session")
def content_run(tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run without item ids: what a post shows decides its vector."""
    run = tmp_path_factory.mktemp("runs") / "content"
    train_run(tiny_config(tiny_encoders, ids=False), feed=tiny_feed.prepared, out=run, device="cpu")
    return run


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run, device="cpu")


@pytest.fixture(scope="module")
def content_recommender(content_run: Path) -> Recommender:
    return Recommender.load(content_run, device="cpu")
