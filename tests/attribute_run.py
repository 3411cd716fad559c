"""A small feed whose clicks only an attribute explains, and a run trained on it, shared by the whole session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.train import train_run
from mmrec.config import Config, validate
from tests.feeds import write_feed
from tests.tiny_run import ONE_THREAD, TinyEncoders

BRANDS = ("elm", "oak", "fir", "ash")
CAPTION = "a soft wool scarf"
COLD = {brand: f"new-{brand}" for brand in BRANDS}
"""An item of each brand that nobody ever chose."""


@dataclass(frozen=True)
class AttributeFeed:
    """The prepared feed.

    Args:
        folder: where it is.
        brand: of every item.
    """

    folder: Path
    brand: dict[str, str]


def attribute_config(
    encoders: TinyEncoders, *, columns: tuple[str, ...] = ("brand", "price"), **text: object
) -> Config:
    """Captions (which are all alike) and attributes; no ids, or these could learn what the brands say."""
    return validate(
        {
            "encoders": {
                "text": {"kind": "transformers", "model": str(encoders.bert), "max_tokens": 16} | text,
                "attributes": {"kind": "attributes", "columns": list(columns), "buckets": 4},
            },
            "model": {
                "dim": 16,
                "fusion": {"latents": 2, "heads": 2},
                "user": {"layers": 1, "heads": 2, "dropout": 0.0},
            },
            "objective": {"negatives": 16},
            "train": ONE_THREAD | {"epochs": 8, "learning_rate": 1e-2},
        },
        where="test",
    )


@pytest.fixture(scope="session")
def attribute_feed(tmp_path_factory: pytest.TempPathFactory) -> AttributeFeed:
    """Forty items of four brands, all with one caption; each of forty users chooses six of one brand."""
    generator = np.random.default_rng(0)
    items = [f"i{row:02}" for row in range(40)]
    brand = {item_id: BRANDS[row % 4] for row, item_id in enumerate(items)} | {v: k for k, v in COLD.items()}
    chosen = [
        (f"u{user:02}", items[int(row)], step)
        for user in range(40)
        for step, row in enumerate(generator.permutation(np.arange(user % 4, 40, 4))[:6])
    ]
    folder = write_feed(
        tmp_path_factory.mktemp("attributes") / "feed",
        interactions=chosen,
        item_ids=list(brand),
        captions=dict.fromkeys(brand, CAPTION),
        attributes={
            "brand": brand | {COLD["elm"]: "elm|unheard of"},
            "price": {item_id: str(generator.integers(1, 99) / 2) for item_id in brand},
            "size": dict.fromkeys(brand, "38"),
        },
        unit="order",
    )
    return AttributeFeed(folder, brand)


@pytest.fixture(scope="session")
def attribute_run(
    attribute_feed: AttributeFeed, tiny_encoders: TinyEncoders, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A trained run.  Tests read it; those that change it copy it first."""
    run = tmp_path_factory.mktemp("runs") / "attributes"
    train_run(attribute_config(tiny_encoders), feed=attribute_feed.folder, out=run, device="cpu")
    return run
