"""Which items a split holds back from training: a draw by seed from sorted ids, or a list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.splits import TEST_COLD, VALIDATION_COLD, WARM

Rows = npt.NDArray[np.int64]
SortIds = Literal["text", "integer"]
PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Pick:
    """Items to hold back: ``item_ids`` where given, otherwise ``count`` drawn with ``seed``.

    Args:
        count: how many to draw.
        seed: of ``numpy.random.default_rng``.
        item_ids: the items themselves.
    """

    count: int
    seed: int
    item_ids: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Number of items held back."""
        return self.count if self.item_ids is None else len(set(self.item_ids))

    def rows(self, catalogue: Catalogue, free: Rows) -> Rows:
        """Return the rows picked; a draw takes from ``free``, a list from the whole catalogue."""
        if self.item_ids is None:
            return np.random.default_rng(self.seed).choice(free, self.count, replace=False).astype(np.int64)
        return np.array([catalogue.row(item_id) for item_id in dict.fromkeys(self.item_ids)], dtype=np.int64)


def cold_roles(catalogue: Catalogue, *, test: Pick, validation: Pick, order: Rows) -> npt.NDArray[np.uint8]:
    """Return the role of every item, shape (items,): lists first, then draws from what is left in ``order``.

    Raises:
        FeedError: too few or too many cold items, or one item in both lists.
        RequestError: a listed id that the catalogue does not hold.
    """
    size, where = len(catalogue), str(catalogue.folder)
    if test.size < 1 or validation.size < 0 or test.size + validation.size >= size:
        raise FeedError(
            f"between 1 and {size - 1} cold items, validation-cold ones included",
            got=f"{test.size} test-cold and {validation.size} validation-cold",
            where=where,
            fix="Change the shares or counts: warm items must be left to train on.",
        )
    roles = np.full(size, WARM, dtype=np.uint8)
    picks = sorted([(TEST_COLD, test), (VALIDATION_COLD, validation)], key=lambda pick: pick[1].item_ids is None)
    for role, pick in picks:
        rows = pick.rows(catalogue, order[roles[order] == WARM])
        if np.any(roles[rows] != WARM):
            got = repr(str(catalogue.item_ids[rows[roles[rows] != WARM][0]]))
            raise FeedError("items that are either test-cold or validation-cold", got=f"{got} in both", where=where)
        roles[rows] = role
    return roles


def sorted_rows(catalogue: Catalogue, sort_ids: SortIds | None) -> tuple[Rows, SortIds]:
    """Return item rows in the order of their ids, and how the ids were compared.

    None compares them as integers where every id is a plain one (no leading zeros), otherwise as text.

    Raises:
        FeedError: integers are asked for and an id is none.
    """
    ids = catalogue.item_ids.astype(str)
    plain = all(PLAIN_INTEGER.fullmatch(item_id) for item_id in ids)
    if sort_ids == "integer" and not plain:
        where = str(catalogue.folder)
        raise FeedError("ids that are plain integers", got="other ids", where=where, fix="Sort them as text.")
    if sort_ids == "integer" or (sort_ids is None and plain):
        return np.array(sorted(range(len(ids)), key=lambda row: int(ids[row])), dtype=np.int64), "integer"
    return np.argsort(ids, kind="stable").astype(np.int64), "text"
