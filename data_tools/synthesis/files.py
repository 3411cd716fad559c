"""Write the raw feed: tables as a team would export them, pictures, and a few faults on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from PIL import Image

from data_tools.synthesis.captions import MAKERS, write_caption
from data_tools.synthesis.pictures import draw_picture
from data_tools.synthesis.truth import Clicks, Posts
from mmrec import columns

IMAGES: Final = "images"
QUALITY: Final = 90
PNG_EVERY: Final = 10
"""Every tenth picture is a PNG, the others are JPEG."""
PICTURES_STREAM, CAPTIONS_STREAM, SHELF_STREAM, FAULTS_STREAM = 2, 3, 4, 5


def write_pictures(
    folder: Path,
    posts: Posts,
    *,
    looks: int,
    side: int,
    difficulty: float,
    damaged: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Draw every post's pictures into ``images/`` and return the ``image`` cell of each post.

    The first ``damaged`` posts without a picture get a file that cannot be read.
    """
    (folder / IMAGES).mkdir()
    cells = []
    for row in range(len(posts)):
        names = []
        for number in range(int(posts.pictures[row])):
            generator = np.random.default_rng([seed, PICTURES_STREAM, row, number])
            look = int(posts.looks[row])
            picture = draw_picture(look, looks=looks, side=side, difficulty=difficulty, generator=generator)
            names.append(_save(folder, picture, _stem(posts, row, number), png=row % PNG_EVERY == 0))
        cells.append("|".join(names))
        if progress is not None and (row + 1) % 100 == 0:
            progress(row + 1, len(posts))
    for fault, row in enumerate(np.flatnonzero(posts.pictures == 0)[:damaged]):
        cells[row] = _save_damaged(folder, _stem(posts, int(row), 0), side=side, fault=fault)
    return cells


def _stem(posts: Posts, row: int, number: int) -> str:
    return f"{posts.item_ids[row]}-{number + 1}" if number else str(posts.item_ids[row])


def _save(folder: Path, picture: Image.Image, stem: str, *, png: bool) -> str:
    name = f"{IMAGES}/{stem}.{'png' if png else 'jpg'}"
    if png:
        picture.save(folder / name, compress_level=1)
    else:
        picture.save(folder / name, quality=QUALITY)
    return name


def _save_damaged(folder: Path, stem: str, *, side: int, fault: int) -> str:
    """Write a file that ends too early, one that is no picture, or an empty one, in turn."""
    name = f"{IMAGES}/{stem}.jpg"
    pixels = np.random.default_rng(fault).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes((whole[: len(whole) // 3], b"<html>404 Not Found</html>", b"")[fault % 3])
    return name


def write_items(folder: Path, posts: Posts, images: list[str], *, empty: int, seed: int) -> None:
    """Write ``items.csv``; ``empty`` further posts have neither caption nor picture."""
    texts = [
        write_caption(int(subject), generator=np.random.default_rng([seed, CAPTIONS_STREAM, row]))
        if posts.captioned[row]
        else ("", "")
        for row, subject in enumerate(posts.subjects)
    ]
    generator = np.random.default_rng([seed, SHELF_STREAM])
    total = len(posts) + empty
    table = pd.DataFrame(
        {
            columns.ITEM_ID: [*posts.item_ids, *(f"empty{number}" for number in range(empty))],
            "title": [*(title for title, _ in texts), *[""] * empty],
            "description": [*(description for _, description in texts), *[""] * empty],
            columns.IMAGE: [*images, *[""] * empty],
            columns.PUBLISHED_AT: [*posts.published, *[int(posts.published.min())] * empty],
            "maker": [MAKERS[pick] for pick in generator.integers(len(MAKERS), size=total)],
            "price": generator.integers(3, 60, total),
        }
    )
    table.to_csv(folder / "items.csv", index=False, lineterminator="\n")


def write_interactions(folder: Path, posts: Posts, clicks: Clicks, *, faulty: int, seed: int) -> None:
    """Write ``interactions.csv`` by time; ``faulty`` further rows are unknown items, missing times and duplicates."""
    table = pd.DataFrame(
        {
            columns.USER_ID: np.repeat(clicks.user_ids, clicks.lengths),
            columns.ITEM_ID: posts.item_ids[clicks.items],
            columns.TIMESTAMP: [str(time) for time in clicks.times],
        }
    )
    table = table.iloc[np.argsort(clicks.times, kind="stable")]
    generator = np.random.default_rng([seed, FAULTS_STREAM])
    faults = table.iloc[generator.integers(len(table), size=faulty)].reset_index(drop=True)
    faults.loc[faults.index % 3 == 0, columns.ITEM_ID] = "withdrawn"
    faults.loc[faults.index % 3 == 1, columns.TIMESTAMP] = ""
    pd.concat([table, faults]).to_csv(folder / "interactions.csv", index=False, lineterminator="\n")
