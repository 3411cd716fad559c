"""What a run knows of the items that it was trained on, by id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.feed.catalogue import Catalogue
from mmrec.storage import atomic_file

COUNT, TREND = "count", "trend"


@dataclass(frozen=True)
class Ids:
    """The items that have an id vector, in the order of the vectors.

    Args:
        item_ids: shape (ids,), as text.
        counts: shape (ids,), how often training saw each.
        trends: shape (ids,), how far each one's popularity rose in the last days of training.
    """

    item_ids: npt.NDArray[np.object_]
    counts: npt.NDArray[np.int64]
    trends: npt.NDArray[np.float32]

    @property
    def signals(self) -> npt.NDArray[np.float32]:
        """What validation may weigh of each item, shape (ids, 2): its trend, and 1 where training saw it."""
        return np.stack([self.trends, self.counts > 0], axis=1).astype(np.float32)

    @classmethod
    def load(cls, path: Path) -> Ids:
        """Read what :meth:`save` wrote."""
        table = pd.read_parquet(path)
        return cls(
            table[columns.ITEM_ID].to_numpy(dtype=object),
            table[COUNT].to_numpy(dtype=np.int64),
            table[TREND].to_numpy(dtype=np.float32),
        )

    def save(self, path: Path) -> None:
        """Write a parquet table, whole or not at all."""
        table = pd.DataFrame({columns.ITEM_ID: self.item_ids, COUNT: self.counts, TREND: self.trends})
        with atomic_file(path) as partial:
            table.to_parquet(partial)

    def rows(self, catalogue: Catalogue) -> npt.NDArray[np.int64]:
        """Return the id vector of every item of a catalogue, -1 where training saw none of it; shape (items,)."""
        known = {str(item_id): row for row, item_id in enumerate(self.item_ids) if self.counts[row] > 0}
        return np.array([known.get(str(item_id), -1) for item_id in catalogue.item_ids], dtype=np.int64)
