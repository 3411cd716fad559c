"""What the model is asked to encode: users by their history, items of the feed by some of what they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.search.index import Vectors


@dataclass(frozen=True)
class Times:
    """When and how the events of a history happened, one entry an event, oldest first.

    Args:
        instants: shape (events,), rank of each event's instant.
        timestamps: shape (events,), milliseconds; None where the feed knows only an order.
        codes: shape (events,), codes of the events' names; None where the feed has none.
        values: shape (events,), NaN where unknown; None where the feed has none.
    """

    instants: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.int64] | None
    codes: npt.NDArray[np.int64] | None
    values: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class UserJob:
    """A user who is to be encoded.

    Args:
        items: shape (events, width), score-ready vectors of the history, oldest first.
        times: of the same events; None of a bare order.
    """

    items: Vectors
    times: Times | None


@dataclass(frozen=True)
class ItemJob:
    """An item of the feed that is to be encoded from some of what it has.

    Args:
        row: in the catalogue.
        kept: the modalities that are read.
    """

    row: int
    kept: tuple[str, ...]
