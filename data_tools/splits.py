"""Divide a prepared feed into what is learnt from and what is asked about.

Everything is arithmetic on *instants*: runs of events of one user at one time.  A history ends where its target's
instant begins, so that no target sees itself or anything simultaneous.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from data_tools.cold import Pick, Rows, SortIds, cold_roles, sorted_rows
from mmrec.errors import FeedError, near_names
from mmrec.feed.catalogue import MANIFEST, Catalogue, read_manifest
from mmrec.feed.histories import Histories
from mmrec.feed.splits import KINDS, SPLITS, TEST_COLD, VALIDATION_COLD, WARM, Kind, Part, Split
from mmrec.storage import atomic_folder, write_array, write_json

WindowTargets = Literal["first", "successive"]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
CALIBRATION_SHARE = 1 / 3
"""Of the users whose last warm items are held out."""
EXISTING_ONLY: Final[dict[Kind, bool]] = {
    "global_time": True,
    "last_day": False,
    "leave_last_out": False,
    "cold_items": False,
}


@dataclass(frozen=True, kw_only=True)
class SplitChoices:
    """What the maker of a split may choose; each kind reads the choices that concern it.

    Args:
        validation_share: share of the events between the two times of ``global_time``.
        test_share: share of the events after the second time of ``global_time``.
        validation_from: first millisecond of the validation window, instead of a share.
        test_from: first millisecond of the test window, instead of a share.
        window_targets: what ``global_time`` asks for in a window: the ``first`` event of each user, or ``successive``
            ones, each with everything before it as history.
        cold_share: share of the items that ``cold_items`` tests on.
        validation_cold_share: share of all items that it selects on.
        cold_count: number of test-cold items, instead of a share.
        validation_cold_count: number of validation-cold items, instead of a share.
        cold_seed: seed of the draw of test-cold items.
        validation_seed: seed of the draw of validation-cold items.
        warm_share: share of the users of ``cold_items`` whose last instant of warm items is held out and asked about too,
            a third of them for calibration.
        warm_seed: seed of the draw of these users.
        cold_ids: the test-cold items themselves, instead of a draw.
        validation_cold_ids: the validation-cold items themselves, instead of a draw.
        sort_ids: order of the ids before a draw; None: as integers where every id is a plain integer, else as text.
        minimum_history: items a case's history must hold at least.
        existing_only: whether items are candidates only once they exist; None: only in ``global_time``.
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: int | None = None
    test_from: int | None = None
    window_targets: WindowTargets = "first"
    cold_share: float = 0.2
    validation_cold_share: float = 0.1
    cold_count: int | None = None
    validation_cold_count: int | None = None
    cold_seed: int = 7
    validation_seed: int = 8
    warm_share: float = 0.0
    warm_seed: int = 9
    cold_ids: tuple[str, ...] | None = None
    validation_cold_ids: tuple[str, ...] | None = None
    sort_ids: SortIds | None = None
    minimum_history: int = 1
    existing_only: bool | None = None


@dataclass(frozen=True)
class Instants:
    """Runs of simultaneous events of one user, in the order of the events.

    Args:
        user_rows: shape (instants,).
        starts: shape (instants,), first event.
        stops: shape (instants,), one past the last event.
        times: shape (instants,), milliseconds, days or order.
        of_event: shape (events,), the instant of every event.
    """

    user_rows: Rows
    starts: Rows
    stops: Rows
    times: Rows
    of_event: Rows

    @classmethod
    def of(cls, histories: Histories, *, days: bool = False) -> Instants:
        """Find the instants (or UTC days) of a feed."""
        users, keys = histories.user_rows, histories.instants(days=days)
        begins = np.ones(len(users), dtype=np.bool_)
        begins[1:] = (users[1:] != users[:-1]) | (keys[1:] != keys[:-1])
        starts = np.flatnonzero(begins).astype(np.int64)
        stops = np.append(starts[1:], len(users)).astype(np.int64)
        return cls(users[starts], starts, stops, keys[starts], np.cumsum(begins) - 1)


@dataclass(frozen=True)
class Plan:
    """A split before it is written: its tables have columns user, history stop, target start, target stop."""

    validation: Rows
    test: Rows
    train_events: npt.NDArray[np.bool_]
    item_roles: npt.NDArray[np.uint8]
    parameters: dict[str, object]
    warm: Rows | None = None
    calibration: Rows | None = None

    @property
    def tables(self) -> dict[Part, Rows]:
        """The parts that it has."""
        found: dict[Part, Rows | None] = {
            "validation": self.validation,
            "test": self.test,
            "warm": self.warm,
            "calibration": self.calibration,
        }
        return {name: rows for name, rows in found.items() if rows is not None}


def write_split(folder: Path, *, name: str, kind: str, choices: SplitChoices) -> Split:
    """Divide the prepared feed in ``folder`` and write ``splits/<name>``, replacing a split of that name.

    Args:
        folder: a prepared feed.
        name: name of the split: letters, digits, dot, dash and underscore.
        kind: ``global_time``, ``last_day``, ``leave_last_out`` or ``cold_items``.
        choices: shares, times, seeds.

    Raises:
        FeedError: the feed cannot be divided so, or a choice is out of range.
    """
    where = str(folder)
    if not NAME.fullmatch(name):
        raise FeedError("a split name of letters, digits, '.', '-' and '_'", got=repr(name), where=where)
    if kind not in KINDS:
        raise FeedError("a kind of split", got=repr(kind), where=where, fix=near_names(kind, KINDS).capitalize())
    catalogue, histories = Catalogue.load(folder), Histories.load(folder)
    existing_only = EXISTING_ONLY[kind] if choices.existing_only is None else choices.existing_only
    _check_feed(catalogue, histories, kind=kind, existing_only=existing_only, choices=choices)
    plan = _plan(catalogue, histories, kind=kind, choices=choices)
    _check_plan(plan, kind=kind, where=where)
    parameters = {**plan.parameters, "minimum_history": choices.minimum_history, "existing_only": existing_only}
    about: dict[str, object] = {
        "name": name,
        "kind": kind,
        "parameters": parameters,
        "feed_hash": catalogue.feed_hash,
        "train_events": int(plan.train_events.sum()),
        **{f"{part}_cases": len(rows) for part, rows in plan.tables.items()},
    }
    with atomic_folder(folder / SPLITS / name) as partial:
        write_array(partial / "train_events.npy", plan.train_events)
        write_array(partial / "item_roles.npy", plan.item_roles)
        for part, rows in plan.tables.items():
            write_array(partial / f"{part}.npy", rows)
        write_json(partial / "split.json", about)
    return Split.load(folder, name)


def set_default(folder: Path, name: str) -> None:
    """Make a split the one that is read where none is named.

    Raises:
        FeedError: the feed has no such split.
    """
    Split.load(folder, name)
    write_json(folder / MANIFEST, {**read_manifest(folder), "default_split": name})


def _plan(catalogue: Catalogue, histories: Histories, *, kind: Kind, choices: SplitChoices) -> Plan:
    match kind:
        case "global_time":
            return _plan_global_time(catalogue, histories, choices)
        case "last_day":
            return _plan_last_day(catalogue, histories, choices)
        case "leave_last_out":
            return _plan_leave_last_out(catalogue, histories, choices)
        case "cold_items":
            return _plan_cold_items(catalogue, histories, choices)


def _check_feed(
    catalogue: Catalogue, histories: Histories, *, kind: Kind, existing_only: bool, choices: SplitChoices
) -> None:
    where = str(catalogue.folder)
    if len(catalogue) < 2:
        raise FeedError("a catalogue of at least two items", got=f"{len(catalogue)} item(s)", where=where)
    lengths = np.diff(histories.offsets)
    if not np.any(lengths >= 2):
        got = f"{histories.num_users} users with one interaction each" if len(lengths) else "no interactions"
        raise FeedError("a user with at least two interactions", got=got, where=where, fix="Bring longer histories.")
    if not histories.has_time and (kind in ("global_time", "last_day") or existing_only):
        raise FeedError(
            f"real timestamps for {kind if kind in ('global_time', 'last_day') else 'existing_only'}",
            got="timestamps that are only an order",
            where=where,
            fix="Use leave_last_out or cold_items without existing_only, or prepare the feed with real timestamps.",
        )
    if not 0 <= choices.warm_share <= 1:
        raise FeedError("a warm_share between 0 and 1", got=str(choices.warm_share), where=where)
    if choices.minimum_history < 1:
        raise FeedError("a minimum_history of at least 1", got=str(choices.minimum_history), where=where)


def _check_plan(plan: Plan, *, kind: Kind, where: str) -> None:
    if not len(plan.test):
        fix = "Choose another kind of split, other times, more cold items or a smaller minimum_history."
        raise FeedError(f"at least one test case of {kind}", got="none", where=where, fix=fix)
    if plan.warm is not None and not (len(plan.warm) and len(plan.tables["calibration"])):
        raise FeedError("at least one warm case", got="none", where=where, fix="Choose a larger warm_share.")
    if not plan.train_events.any():
        fix = "Choose a smaller share for validation and test."
        raise FeedError("events to train on", got="a split that tests all of them", where=where, fix=fix)


def _cases(histories: Histories, table: Rows, *, roles: npt.NDArray[np.uint8], minimum: int) -> Rows:
    """Keep the rows (user, history stop, target start, target stop) whose history has enough warm items."""
    warm = np.concatenate([[0], np.cumsum(roles[histories.item_rows] == WARM)])
    lengths = warm[table[:, 1]] - warm[histories.offsets[table[:, 0]]]
    return np.asarray(table[lengths >= minimum], dtype=np.int64)


def _instant_rows(instants: Instants, chosen: Rows) -> Rows:
    starts = instants.starts[chosen]
    return np.stack([instants.user_rows[chosen], starts, starts, instants.stops[chosen]], axis=1)


def _outside(num_events: int, *tables: Rows) -> npt.NDArray[np.bool_]:
    """Return True for every event that is no target of the tables, shape (events,)."""
    edges = np.zeros(num_events + 1, dtype=np.int64)
    for table in tables:
        np.add.at(edges, table[:, 2], 1)
        np.add.at(edges, table[:, 3], -1)
    return np.asarray(np.cumsum(edges)[:-1] == 0)


def _last_of_user(users: Rows) -> npt.NDArray[np.bool_]:
    """Return True where a sorted array's next entry is another user, shape (entries,)."""
    return np.append(users[1:] != users[:-1], np.ones(min(len(users), 1), dtype=np.bool_))


def _plan_last_day(catalogue: Catalogue, histories: Histories, choices: SplitChoices) -> Plan:
    roles = np.zeros(len(catalogue), dtype=np.uint8)
    days = Instants.of(histories, days=True)
    last = np.flatnonzero(_last_of_user(days.user_rows))
    before = last[last > 0] - 1
    before = before[~_last_of_user(days.user_rows)[before]]  # a single day's predecessor belongs to another user
    test = _cases(histories, _instant_rows(days, last), roles=roles, minimum=choices.minimum_history)
    validation = _cases(histories, _instant_rows(days, before), roles=roles, minimum=choices.minimum_history)
    return Plan(validation, test, _outside(histories.num_events, validation, test), roles, {})


def _plan_leave_last_out(catalogue: Catalogue, histories: Histories, choices: SplitChoices) -> Plan:
    roles = np.zeros(len(catalogue), dtype=np.uint8)
    instants = Instants.of(histories)

    def rows(back: int) -> Rows:
        users = np.flatnonzero(np.diff(histories.offsets) >= back)
        events = histories.offsets[users + 1] - back
        table = np.stack([users, instants.starts[instants.of_event[events]], events, events + 1], axis=1)
        return _cases(histories, table, roles=roles, minimum=choices.minimum_history)

    test, validation = rows(1), rows(2)
    return Plan(validation, test, _outside(histories.num_events, validation, test), roles, {})


def _plan_global_time(catalogue: Catalogue, histories: Histories, choices: SplitChoices) -> Plan:
    roles = np.zeros(len(catalogue), dtype=np.uint8)
    first, second = _window_times(histories, choices, where=str(catalogue.folder))
    instants = Instants.of(histories)
    begins = np.append(np.ones(1, dtype=np.bool_), _last_of_user(instants.user_rows)[:-1])
    previous = np.append(instants.times[:1], instants.times[:-1])

    def rows(start: int, stop: int | None) -> Rows:
        inside = (instants.times >= start) & (True if stop is None else instants.times < stop)
        asked = inside if choices.window_targets == "successive" else inside & (begins | (previous < start))
        return _cases(
            histories, _instant_rows(instants, np.flatnonzero(asked)), roles=roles, minimum=choices.minimum_history
        )

    train = np.asarray(np.asarray(histories.timestamps) < first)
    parameters: dict[str, object] = {
        "validation_from": first,
        "test_from": second,
        "window_targets": choices.window_targets,
    }
    return Plan(rows(first, second), rows(second, None), train, roles, parameters)


def _window_times(histories: Histories, choices: SplitChoices, *, where: str) -> tuple[int, int]:
    """Return the starts of the validation and the test window, each a time at which something happened or given."""
    if (choices.validation_from is None) != (choices.test_from is None):
        raise FeedError("both validation_from and test_from, or neither", got="one of them", where=where)
    if choices.validation_from is not None and choices.test_from is not None:
        if choices.validation_from >= choices.test_from:
            got = f"{choices.validation_from} and {choices.test_from}"
            raise FeedError("validation_from before test_from", got=got, where=where)
        return choices.validation_from, choices.test_from
    shares = (choices.validation_share, choices.test_share)
    if min(shares) <= 0 or sum(shares) >= 1:
        got = f"{shares[0]} and {shares[1]}"
        raise FeedError("positive validation_share and test_share with a sum below 1", got=got, where=where)
    times, counts = np.unique(np.asarray(histories.timestamps), return_counts=True)
    if len(times) < 3:
        fix = "Declare the right --timestamp-unit, or use leave_last_out."
        raise FeedError("interactions at three different times", got=f"{len(times)}", where=where, fix=fix)
    before = (np.cumsum(counts) - counts) / counts.sum()
    second = 2 + int(np.argmin(np.abs(before[2:] - (1 - shares[1]))))
    first = 1 + int(np.argmin(np.abs(before[1:second] - (1 - sum(shares)))))
    return int(times[first]), int(times[second])


def _plan_cold_items(catalogue: Catalogue, histories: Histories, choices: SplitChoices) -> Plan:
    size, order = len(catalogue), sorted_rows(catalogue, choices.sort_ids)
    test = _pick(choices.cold_share, choices.cold_count, choices.cold_seed, choices.cold_ids, size=size)
    validation = _pick(
        choices.validation_cold_share,
        choices.validation_cold_count,
        choices.validation_seed,
        choices.validation_cold_ids,
        size=size,
    )
    roles = cold_roles(catalogue, test=test, validation=validation, order=order[0])
    instants = Instants.of(histories)
    event_roles = roles[histories.item_rows]

    def rows(role: int, users: npt.NDArray[np.bool_] | None = None) -> Rows:
        asked = np.flatnonzero(np.add.reduceat((event_roles == role).astype(np.int64), instants.starts))
        chosen = asked[_last_of_user(instants.user_rows[asked])]
        if users is not None:
            chosen = chosen[users[instants.user_rows[chosen]]]
        return _cases(histories, _instant_rows(instants, chosen), roles=roles, minimum=choices.minimum_history)

    drawn: dict[str, object] = {
        "cold_count": test.size,
        "validation_cold_count": validation.size,
        "cold_seed": None if test.item_ids else test.seed,
        "validation_seed": None if validation.item_ids else validation.seed,
        "sort_ids": order[1],
    }
    train = np.asarray(event_roles == WARM)
    held_out: list[Rows] = []
    if choices.warm_share:
        number = len(histories.user_ids)
        size = round(choices.warm_share * number)
        chosen = np.random.default_rng(choices.warm_seed).choice(number, size, replace=False)
        first = round(size * CALIBRATION_SHARE)
        held_out = [rows(WARM, np.isin(np.arange(number), part)) for part in (chosen[first:], chosen[:first])]
        for table in held_out:
            train &= _outside(histories.num_events, table)
        drawn |= {"warm_share": choices.warm_share, "warm_seed": choices.warm_seed}
    return Plan(rows(VALIDATION_COLD), rows(TEST_COLD), train, roles, drawn, *held_out)


def _pick(share: float, count: int | None, seed: int, item_ids: tuple[str, ...] | None, *, size: int) -> Pick:
    return Pick(round(share * size) if count is None else count, seed, item_ids)
