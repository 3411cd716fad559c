"""What a process of a service serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrec.serving.limits import Limits
from mmrec.serving.stores.store_place import StorePlace

IndexPlace = Literal["export", "store"]


@dataclass(frozen=True)
class ServingPlan:
    """What a process serves; the same for all processes of a service.

    Args:
        run: run folder.
        vectors: folder of an export of that run.
        store: where writes go.
        keys: file of keys, or None.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        limits: what a request may ask.
        keep_served: keep what every answer shows.
        reveal_ids: write user ids to the log as they are.
        models: folder of runs and exports that may take the place of this pair; None for none.
        studio: serve the page at / too.
        index: whose index finds candidates: the export's or the store's.
    """

    run: Path
    vectors: Path
    store: StorePlace
    keys: Path | None
    feed: Path | None
    device: str
    limits: Limits
    keep_served: bool
    reveal_ids: bool
    models: Path | None
    studio: bool
    index: IndexPlace
