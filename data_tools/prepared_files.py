"""The files of a prepared feed, as :mod:`mmrec.feed` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from data_tools.interactions import Events
from data_tools.items import ItemSide, write_items
from data_tools.tables import Source
from mmrec import columns
from mmrec.feed.catalogue import MANIFEST, SCHEMA_VERSION, USERS
from mmrec.storage import content_hash, write_array, write_json

PREPARE_VERSION: Final = 1
"""Raised when the same feed would be prepared differently."""


@dataclass(frozen=True)
class Origin:
    """What a prepared feed was made from.

    Args:
        tables: content hash of each table file, by name.
        tree: hash of names, sizes and times of all other files of the feed.
        fingerprint: hash of the origin, of all choices and of the version of this code.
    """

    tables: Mapping[str, str]
    tree: str
    fingerprint: str = ""

    def text(self) -> str:
        """Write it as one line."""
        return json.dumps([sorted(self.tables.items()), self.tree])


def write_prepared(
    folder: Path,
    side: ItemSide,
    events: Events,
    items: Source,
    interactions: Source,
    *,
    origin: Origin,
    parameters: Mapping[str, object],
    image_side: int,
    default_split: str,
) -> None:
    """Write all tables and arrays of a prepared feed, the manifest last."""
    has_published = columns.PUBLISHED_AT in items.column_names
    first_seen = side.first_seen(events.item_rows, events.timestamps)
    attributes = write_items(folder, items, side, first_seen=first_seen, has_published=has_published)
    side.captions.save(folder)
    side.pictures.save(folder)
    side.item_images.save(folder, "item_images")
    _write_events(folder, events)
    manifest: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "feed_hash": _feed_hash(side, events, attributes),
        "fingerprint": origin.fingerprint,
        "item_id_type": items.id_type(columns.ITEM_ID),
        "user_id_type": interactions.id_type(columns.USER_ID),
        "timestamp_unit": "ms" if events.has_time else "order",
        "source_timestamp_unit": events.clock.unit,
        "timestamp_unit_detected": events.clock.detected,
        "event_names": events.event_names,
        "has_values": events.has_values,
        "image_side": image_side,
        "default_split": default_split,
        "counts": _counts(side, events),
        "parameters": dict(parameters),
        "source": {"tables": dict(origin.tables), "tree": origin.tree},
    }
    write_json(folder / MANIFEST, manifest)


def _counts(side: ItemSide, events: Events) -> dict[str, int]:
    return {
        "items": len(side.items),
        "users": len(events.user_ids),
        "interactions": len(events),
        "captions": len(side.captions),
        "pictures": len(side.pictures),
        "item_pictures": len(side.item_images.values),
    }


def _write_events(folder: Path, events: Events) -> None:
    parquet.write_table(pa.table({columns.USER_ID: pa.array(events.user_ids, pa.string())}), folder / USERS)
    write_array(folder / "events.offsets.npy", events.offsets())
    write_array(folder / "events.item_rows.npy", events.item_rows)
    write_array(folder / "events.timestamps.npy", events.timestamps)
    if events.event_names:
        write_array(folder / "events.codes.npy", events.codes.astype(np.int16))
    if events.has_values:
        write_array(folder / "events.values.npy", events.values)


def _feed_hash(side: ItemSide, events: Events, attributes: str) -> str:
    """Hash everything a reader of the feed can see, however it was stored or cut."""
    moments = side.first_seen(events.item_rows, events.timestamps)
    arrays = [
        side.caption_rows,
        side.captions.hashes(),
        side.pictures.hashes(),
        side.item_images.values,
        side.item_images.offsets,
        side.published.moments,
        moments,
        events.user_rows,
        events.item_rows,
        events.timestamps,
        events.codes,
        events.values,
    ]
    texts = [*side.items.ids, "", *events.user_ids, "", *events.event_names, "", attributes, str(events.has_time)]
    return content_hash(*texts, *(np.ascontiguousarray(array).tobytes() for array in arrays))
