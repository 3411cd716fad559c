"""Which interactions are learnt from and which are asked about.

A *case* is one question: given the history of a user up to an event, which items come at the next instant?  A target
event is never in its own history, and events of one instant never see each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from mmrec.errors import FeedError, near_names
from mmrec.feed.catalogue import read_manifest
from mmrec.feed.histories import Histories
from mmrec.storage import RaggedArray, read_array, read_json

SPLITS = "splits"
WARM, VALIDATION_COLD, TEST_COLD = 0, 1, 2
Part = Literal["validation", "test", "warm", "calibration"]
Kind = Literal["global_time", "last_day", "leave_last_out", "cold_items"]
_TARGET_ROLES: Mapping[Part, int] = {
    "validation": VALIDATION_COLD,
    "test": TEST_COLD,
    "warm": WARM,
    "calibration": WARM,
}
KINDS: tuple[Kind, ...] = ("global_time", "last_day", "leave_last_out", "cold_items")


@dataclass(frozen=True)
class Cases:
    """Questions of one part of a split.

    History of case ``c``: the events ``offsets[user] .. history_stops[c]`` whose item has role ``WARM``.
    Targets of case ``c``: the events ``target_starts[c] .. target_stops[c]`` whose item has role ``target_role``.

    Args:
        user_rows: shape (cases,).
        history_stops: shape (cases,), exclusive event position.
        target_starts: shape (cases,), event position.
        target_stops: shape (cases,), exclusive event position.
        target_role: role of the items asked about.
        item_roles: shape (items,), uint8.
    """

    user_rows: npt.NDArray[np.int64]
    history_stops: npt.NDArray[np.int64]
    target_starts: npt.NDArray[np.int64]
    target_stops: npt.NDArray[np.int64]
    target_role: int
    item_roles: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.user_rows)

    def take(self, index: npt.NDArray[np.int64]) -> Cases:
        """Return some of the cases, in the order given."""
        return Cases(
            self.user_rows[index],
            self.history_stops[index],
            self.target_starts[index],
            self.target_stops[index],
            self.target_role,
            self.item_roles,
        )

    def _events(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], histories: Histories, role: int
    ) -> RaggedArray:
        lengths = stops - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        kept = self.item_roles[histories.item_rows[events]] == role
        counts = np.add.reduceat(np.append(kept, False).astype(np.int64), offsets[:-1]) if len(starts) else lengths
        counts = np.where(lengths > 0, counts, 0)
        return RaggedArray(events[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def histories(self, histories: Histories, *, length: int | None = None) -> RaggedArray:
        """Return the event positions of every case's history, oldest first, the most recent ``length`` of them."""
        ragged = self._events(histories.offsets[self.user_rows], self.history_stops, histories, WARM)
        if length is None:
            return ragged
        kept = np.minimum(ragged.lengths, length)
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(ragged.offsets[1:] - kept - offsets[:-1], kept)
        return RaggedArray(ragged.values[index], offsets)

    def targets(self, histories: Histories) -> RaggedArray:
        """Return the event positions of every case's targets."""
        return self._events(self.target_starts, self.target_stops, histories, self.target_role)

    def times(self, histories: Histories) -> npt.NDArray[np.int64]:
        """Return the time of each question, shape (cases,): the timestamp of its first target event."""
        targets = self.targets(histories)
        return np.asarray(histories.timestamps[targets.values[targets.offsets[:-1]]], dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """A division of a prepared feed.

    Args:
        name: its name in the feed.
        kind: how it was made.
        parameters: the choices made (times, shares, seeds, ``existing_only``, ``minimum_history``, ...).
        train_events: shape (events,), True where training may use the event.
        item_roles: shape (items,), ``WARM``, ``VALIDATION_COLD`` or ``TEST_COLD``.
        validation: cases for selection.
        test: cases for the final figure.
        warm: cases about warm items, of a ``cold_items`` split that holds some out: what cold items cost them.
        calibration: further ones, by which training chooses how much that may be.
    """

    name: str
    kind: Kind
    parameters: Mapping[str, object]
    train_events: npt.NDArray[np.bool_]
    item_roles: npt.NDArray[np.uint8]
    validation: Cases
    test: Cases
    warm: Cases | None = None
    calibration: Cases | None = None

    @property
    def parts(self) -> Mapping[Part, Cases]:
        """The parts that the split has."""
        found: dict[Part, Cases | None] = {
            "validation": self.validation,
            "test": self.test,
            "warm": self.warm,
            "calibration": self.calibration,
        }
        return {name: cases for name, cases in found.items() if cases is not None}

    def part(self, name: Part) -> Cases:
        """Return the cases of a part.

        Raises:
            FeedError: the split has no such part.
        """
        if name not in self.parts:
            raise FeedError(
                f"a split with a part {name!r}",
                got=f"{self.name!r} with {', '.join(self.parts)}",
                where="the prepared feed",
                fix="Make one: mmrec-data split FEED --kind cold_items --warm-share 0.1 --name NAME, and train on it.",
            )
        return self.parts[name]

    @property
    def existing_only(self) -> bool:
        """Whether an item is a candidate only from ``first_seen`` on."""
        return bool(self.parameters.get("existing_only", False))

    def trainable_items(self, histories: Histories, first_seen: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which items training may take as not chosen, shape (items,): warm, and there while it was recorded.

        Args:
            histories: the feed's interactions.
            first_seen: shape (items,), of the catalogue.
        """
        warm = self.item_roles == WARM
        events = np.flatnonzero(self.train_events)
        if not histories.has_time or len(events) == 0:
            return np.asarray(warm)
        return np.asarray(warm & (first_seen <= histories.timestamps[events].max()))

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> Split:
        """Read a split of a prepared feed; None takes the feed's default.

        Raises:
            FeedError: the feed has no such split.
            ArtifactError: a file is missing or damaged.
        """
        manifest = read_manifest(folder)
        name = name or str(manifest["default_split"])
        path = folder / SPLITS / name
        if not (path / "split.json").is_file():
            names = [entry.parent.name for entry in (folder / SPLITS).glob("*/split.json")]
            raise FeedError("a split of the feed", got=repr(name), where=str(folder), fix=near_names(name, names))
        about = read_json(path / "split.json")
        roles = cast("npt.NDArray[np.uint8]", read_array(path / "item_roles.npy"))
        cold = about["kind"] == "cold_items"

        def cases(part: Part) -> Cases:
            table = np.asarray(read_array(path / f"{part}.npy"), dtype=np.int64)
            role = _TARGET_ROLES[part] if cold else WARM
            return Cases(table[:, 0], table[:, 1], table[:, 2], table[:, 3], role, roles)

        def some(part: Part) -> Cases | None:
            return cases(part) if (path / f"{part}.npy").is_file() else None

        return cls(
            name=name,
            kind=cast("Kind", about["kind"]),
            parameters=cast("dict[str, object]", about["parameters"]),
            train_events=cast("npt.NDArray[np.bool_]", read_array(path / "train_events.npy")),
            item_roles=roles,
            validation=cases("validation"),
            test=cases("test"),
            warm=some("warm"),
            calibration=some("calibration"),
        )
