"""Divide a prepared feed into what is learnt from and what is asked about."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_tools.split_choices import EXISTING_ONLY, SplitChoices
from data_tools.split_plans import Plan, plan_split
from mmrec.errors import FeedError, near_names
from mmrec.feed.catalogue import MANIFEST, Catalogue, read_manifest
from mmrec.feed.histories import Histories
from mmrec.feed.splits import KINDS, SPLITS, Kind, Split
from mmrec.storage import atomic_folder, write_array, write_json

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


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
    plan = plan_split(catalogue, histories, kind=kind, choices=choices)
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
