"""Small prepared feeds for tests, written directly in the format that mmrec.feed reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec import columns
from mmrec.feed.catalogue import ITEMS, MANIFEST, NEVER, NO_CAPTION, SCHEMA_VERSION, USERS
from mmrec.storage import RaggedArray, content_hash, write_array, write_json

MS = {"s": 1000, "ms": 1, "order": 1}


def write_feed(
    folder: Path,
    *,
    interactions: Sequence[tuple[str, str, int]],
    item_ids: Sequence[str] | None = None,
    captions: Mapping[str, str] | None = None,
    pictures: Mapping[str, np.ndarray | list[np.ndarray]] | None = None,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
    unit: str = "ms",
    split: str | None = "leave_last_out",
) -> Path:
    """Write a valid prepared feed and, unless ``split`` is None, a split of that kind under the same name.

    Items come in the order of ``item_ids`` (default: of first appearance), users in the order of first appearance.
    Timestamps are ``unit`` (``s``, ``ms`` or ``order``); pictures are uint8 (height, width, 3); attributes are text by
    column and item.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions, pictures, attributes = captions or {}, pictures or {}, attributes or {}
    appearing = [item_id for _, item_id, _ in interactions]
    ids = list(item_ids) if item_ids is not None else list(dict.fromkeys([*appearing, *captions, *pictures]))
    item_of = {item_id: row for row, item_id in enumerate(ids)}
    user_of = {user_id: row for row, user_id in enumerate(dict.fromkeys(user for user, _, _ in interactions))}
    users = np.array([user_of[user] for user, _, _ in interactions], dtype=np.int64)
    items = np.array([item_of[item] for item in appearing], dtype=np.int64)
    times = np.array([time * MS[unit] for _, _, time in interactions], dtype=np.int64)
    order = np.lexsort((times, users))
    users, items, times = users[order], items[order], times[order]
    _write_events(folder, users=users, items=items, times=times, num_users=len(user_of))
    first_seen = np.full(len(ids), NEVER)
    np.minimum.at(first_seen, items, times)
    caption_rows = _write_captions(folder, [captions.get(item_id) for item_id in ids])
    _write_pictures(folder, [pictures.get(item_id, []) for item_id in ids])
    table = {columns.ITEM_ID: ids, columns.CAPTION_ROW: caption_rows, columns.FIRST_SEEN: first_seen}
    table |= {name: [cells.get(item_id) for item_id in ids] for name, cells in attributes.items()}
    pd.DataFrame(table).to_parquet(folder / ITEMS)
    pd.DataFrame({columns.USER_ID: list(user_of)}).to_parquet(folder / USERS)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "feed_hash": content_hash(repr((list(interactions), ids, captions, sorted(pictures)))),
        "timestamp_unit": unit,
        "default_split": split or "",
        "item_id_type": "string",
        "user_id_type": "string",
        "event_names": [],
        "has_values": False,
    }
    write_json(folder / MANIFEST, manifest)
    if split is not None:
        from data_tools.split_choices import SplitChoices
        from data_tools.splits import write_split

        write_split(folder, name=split, kind=split, choices=SplitChoices())
    return folder


def _write_events(folder: Path, *, users: np.ndarray, items: np.ndarray, times: np.ndarray, num_users: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))]).astype(np.int64)
    write_array(folder / "events.offsets.npy", offsets)
    write_array(folder / "events.item_rows.npy", items)
    write_array(folder / "events.timestamps.npy", times)


def _ragged(rows: list[np.ndarray], dtype: type) -> RaggedArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return RaggedArray(np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype), offsets)


def _hashes(pieces: list[bytes]) -> np.ndarray:
    joined = b"".join(bytes.fromhex(content_hash(piece)) for piece in pieces)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)


def _write_captions(folder: Path, texts: list[str | None]) -> np.ndarray:
    """Write distinct captions and return the caption row of every item."""
    distinct = list(dict.fromkeys(text for text in texts if text is not None))
    encoded = [text.encode("utf-8") for text in distinct]
    _ragged([np.frombuffer(text, dtype=np.uint8) for text in encoded], np.uint8).save(folder, "captions")
    write_array(folder / "captions.hashes.npy", _hashes(encoded))
    row_of = {text: row for row, text in enumerate(distinct)}
    return np.array([NO_CAPTION if text is None else row_of[text] for text in texts], dtype=np.int64)


def _write_pictures(folder: Path, given: list[np.ndarray | list[np.ndarray]]) -> None:
    """Write distinct pictures and the picture rows of every item."""
    lists = [[one] if isinstance(one, np.ndarray) else list(one) for one in given]
    row_of: dict[tuple[tuple[int, ...], bytes], int] = {}
    rows = [
        np.array([row_of.setdefault((picture.shape, picture.tobytes()), len(row_of)) for picture in pictures], np.int64)
        for pictures in lists
    ]
    _ragged(rows, np.int64).save(folder, "item_images")
    pixels = [np.frombuffer(data, dtype=np.uint8) for _, data in row_of]
    ragged = _ragged(pixels, np.uint8)
    (folder / "images.bin").write_bytes(ragged.values.tobytes())
    write_array(folder / "images.offsets.npy", ragged.offsets)
    write_array(folder / "images.shapes.npy", np.array([shape[:2] for shape, _ in row_of], np.int32).reshape(-1, 2))
    write_array(folder / "images.hashes.npy", _hashes([repr(shape).encode() + data for shape, data in row_of]))
