"""What each kind of split learns from and asks about.

Everything is arithmetic on *instants*: runs of events of one user at one time.  A history ends where its target's
instant begins, so that no target sees itself or anything simultaneous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools.cold import Pick, Rows, cold_roles, sorted_rows
from data_tools.split_choices import SplitChoices
from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import TEST_COLD, VALIDATION_COLD, WARM, Kind, Part

CALIBRATION_SHARE = 1 / 3
"""Of the users whose last warm items are held out."""


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


def plan_split(catalogue: Catalogue, histories: Histories, *, kind: Kind, choices: SplitChoices) -> Plan:
    """Return what a split of a kind learns from and asks about.

    Raises:
        FeedError: a choice is out of range.
    """
    match kind:
        case "global_time":
            return _plan_global_time(catalogue, histories, choices)
        case "last_day":
            return _plan_last_day(catalogue, histories, choices)
        case "leave_last_out":
            return _plan_leave_last_out(catalogue, histories, choices)
        case "cold_items":
            return _plan_cold_items(catalogue, histories, choices)


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
