"""The exported side of what the service offers: vectors, attributes and index of an export, beside its run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmrec import columns
from mmrec.inference.export_index import CONTENT_HASH
from mmrec.inference.projection import Projection
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import VectorFormat
from mmrec.search.index import Mask, Store, Vectors
from mmrec.search.where import where_mask

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
