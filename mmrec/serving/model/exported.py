"""The exported side of what the service offers: vectors, attributes and index of an export, beside its run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec import columns
from mmrec.assembly import Meter, Notify, ignore, silent_meter
from mmrec.errors import ArtifactError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import CONTENT_HASH
from mmrec.inference.projection import Projection, read_projection
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import VectorFormat
from mmrec.search.index import Mask, Store, Vectors
from mmrec.search.where import where_mask
from mmrec.serving.model.catalogue_index import OpenIndex, exported_index

_MASKS = 64


class Exported:
    """Items of an export by row, which is also their row in the feed's catalogue.

    Args:
        layout: how the export's vectors are written.
        store: finds rows by such vectors.
        full: shape (items, width), score-ready vectors.
        table: id, caption and attributes, one row an item.
        row_of: row of an id, -1 for one that is not exported.
        projection: where the items lie on a map, None of an export without one.
    """

    def __init__(
        self,
        layout: VectorFormat,
        store: Store,
        full: Vectors,
        table: pd.DataFrame,
        row_of: Callable[[str], int],
        projection: Projection | None = None,
    ) -> None:
        self.layout, self.store, self.table, self.row_of = layout, store, table, row_of
        # Still mapped into memory, but a plain array: taking a row off numpy's own class for that costs four times as much.
        self.full: Vectors = np.asarray(full)
        self.projection = projection
        self.item_ids = [str(item_id) for item_id in table[columns.ITEM_ID]]
        self.attributes = [name for name in table.columns if name not in _NOT_ATTRIBUTES]
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.item_ids)

    def mask(self, where: str) -> Mask | None:
        """Return which rows meet some conditions, None where there are none; the last answers are kept.

        Raises:
            RequestError: conditions that are none.
        """
        if not where.strip():
            return None
        with self._lock:
            found = self._masks.get(where)
        if found is None:
            found = where_mask(self.table, where)
        with self._lock:
            self._masks[where] = found
            self._masks.move_to_end(where)
            while len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        return found


_NOT_ATTRIBUTES = {columns.ITEM_ID, columns.CAPTION, CONTENT_HASH}


@dataclass(frozen=True)
class Pair:
    """A run and an export that belong together.

    Args:
        recommender: the run on the exported feed.
        exported: the export.
        vectors: name of the export's folder.
    """

    recommender: Recommender
    exported: Exported
    vectors: str = ""


def load_pair(
    run: Path,
    vectors: Path,
    *,
    feed: Path | None = None,
    device: str = "auto",
    open_index: OpenIndex = exported_index,
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> Pair:
    """Load a run and an export as one pair.

    Args:
        run: run folder.
        vectors: folder of an export of that run.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        open_index: opens what finds candidates.
        notify: told what is about to be done.
        meter: shows progress.

    Raises:
        ArtifactError: no run or no export, or one of another model or feed than the other.
    """
    folder = VectorFolder.open(vectors)
    place = feed or Path(str(folder.manifest["feed"]))
    recommender = Recommender.load(run, feed=place, device=device, notify=notify, meter=meter)
    folder.require_model(recommender.model_hash)
    catalogue = recommender.assembly.catalogue
    if catalogue.feed_hash != folder.manifest["feed_hash"]:
        raise ArtifactError(
            "vectors of the feed that is served",
            got="vectors of another feed, or of an earlier state of it",
            where=str(vectors),
            fix=f"Export again: mmrec export {run} --out {vectors}.",
        )
    # Exports may be cut, quantised or normalised; what the index finds is scored with these, so that all verbs agree.
    full = recommender.item_embeddings(meter=meter)
    # Mapped into memory, and so there once however many processes serve them.
    store = open_index(folder, full if folder.format.whole else folder.items()[1], notify)
    table = folder.table()
    if len(table) != len(catalogue):
        raise ArtifactError(
            f"{len(catalogue)} exported items",
            got=str(len(table)),
            where=str(vectors),
            fix=f"Export again: mmrec export {run} --out {vectors}.",
        )
    return Pair(
        recommender,
        Exported(
            folder.format,
            store,
            full,
            table,
            catalogue.find,
            read_projection(folder),
        ),
        vectors.resolve().name,
    )
