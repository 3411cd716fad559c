"""The user side of a prepared feed: every interaction, by user and time, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.errors import RequestError
from mmrec.feed.catalogue import USERS, read_manifest
from mmrec.storage import read_array

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Histories:
    """Interactions sorted by user, then time, then input order.  An *event* is a position in these arrays.

    Args:
        user_ids: shape (users,), ids as text.
        offsets: shape (users + 1,); user ``u`` owns events ``offsets[u]`` to ``offsets[u + 1]``.
        item_rows: shape (events,).
        timestamps: shape (events,), milliseconds since 1970 where ``has_time``, otherwise a rank within the user.
        has_time: whether timestamps are real.
        event_names: names of the event codes; empty where the feed has none.
        event_codes: shape (events,), index in ``event_names``, or None.
        values: shape (events,), NaN where unknown, or None.
        user_id_type: ``string`` or ``integer``, the type ids came in.
    """

    user_ids: npt.NDArray[np.object_]
    offsets: npt.NDArray[np.int64]
    item_rows: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.int64]
    has_time: bool
    event_names: Sequence[str]
    event_codes: npt.NDArray[np.int16] | None
    values: npt.NDArray[np.float32] | None
    user_id_type: str = "string"

    @classmethod
    def load(cls, folder: Path) -> Histories:
        """Map the interactions of a prepared feed.

        Raises:
            FeedError: not a prepared feed, or of another schema version.
            ArtifactError: a file is missing or damaged.
        """
        manifest = read_manifest(folder)
        names = cast("list[str]", manifest.get("event_names", []))
        has_values = bool(manifest.get("has_values", False))
        users = pd.read_parquet(folder / USERS, columns=[columns.USER_ID])
        return cls(
            user_ids=users[columns.USER_ID].to_numpy(dtype=object),
            offsets=np.asarray(read_array(folder / "events.offsets.npy"), dtype=np.int64),
            item_rows=cast("npt.NDArray[np.int64]", read_array(folder / "events.item_rows.npy")),
            timestamps=cast("npt.NDArray[np.int64]", read_array(folder / "events.timestamps.npy")),
            has_time=manifest["timestamp_unit"] != "order",
            event_names=names,
            event_codes=cast("npt.NDArray[np.int16]", read_array(folder / "events.codes.npy")) if names else None,
            values=cast("npt.NDArray[np.float32]", read_array(folder / "events.values.npy")) if has_values else None,
            user_id_type=str(manifest.get("user_id_type", "string")),
        )

    @property
    def num_users(self) -> int:
        """Users with at least one interaction."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Interactions."""
        return len(self.item_rows)

    @cached_property
    def user_rows(self) -> npt.NDArray[np.int64]:
        """User of every event, shape (events,)."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {str(user_id): row for row, user_id in enumerate(self.user_ids)}

    def __contains__(self, user_id: object) -> bool:
        return str(user_id) in self._rows

    def row(self, user_id: object) -> int:
        """Return the row of a user id.

        Raises:
            RequestError: no such user.
        """
        try:
            return self._rows[str(user_id)]
        except KeyError:
            raise RequestError(
                "the id of a known user", got=repr(user_id), fix="Give a history instead of an id for a new user."
            ) from None

    def instants(self, *, days: bool = False) -> npt.NDArray[np.int64]:
        """Return the key by which events are simultaneous, shape (events,): the timestamp, or its UTC day."""
        return self.timestamps // DAY_MS if days and self.has_time else np.asarray(self.timestamps)
