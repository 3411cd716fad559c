"""Ranks among a million items against one matrix product, and against a sort for every user."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from field.evaluation import ranks_by_sorting
from torch import Tensor

from benchmarks.measure import Row, alternate, ratios
from mmrec.evaluation.ranking import Setting, rank_cases
from mmrec.feed.histories import Histories
from mmrec.feed.splits import WARM, Cases

SHAPES = {"small": (5_000, 32, 300, 50), "cpu": (1_000_000, 256, 10_000, 16), "gpu": (1_000_000, 256, 10_000, 64)}
"""Items, width, users, and users whom the field's way is timed on (it would take an hour for all)."""
HISTORY = 20


class VectorScorer:
    """Scores by inner product, as a model's vectors are scored."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self._users, self._items = users, items

    def scores(self, cases: npt.NDArray[np.int64]) -> Tensor:
        """Score the whole catalogue."""
        return self._users[torch.from_numpy(cases).to(self._users.device)] @ self._items.T


def random_cases(num_users: int, num_items: int) -> tuple[Cases, Histories]:
    """Users with a short history and one item to be found."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, num_items, num_users * (HISTORY + 1))
    starts = np.arange(num_users, dtype=np.int64) * (HISTORY + 1)
    histories = Histories(
        user_ids=np.arange(num_users).astype(str).astype(object),
        offsets=np.append(starts, len(rows)),
        item_rows=rows,
        timestamps=np.tile(np.arange(HISTORY + 1, dtype=np.int64), num_users),
        has_time=False,
        event_names=(),
        event_codes=None,
        values=None,
    )
    cases = Cases(
        user_rows=np.arange(num_users, dtype=np.int64),
        history_stops=starts + HISTORY,
        target_starts=starts + HISTORY,
        target_stops=starts + HISTORY + 1,
        target_role=WARM,
        item_roles=np.full(num_items, WARM, np.uint8),
    )
    return cases, histories


def evaluate(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Exact ranks, history filtered, against the bare product and against one argsort a user."""
    num_items, dim, num_users, sorted_users = SHAPES[size]
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(num_items, dim, generator=generator).to(device)
    users = torch.randn(num_users, dim, generator=generator).to(device)
    cases, histories = random_cases(num_users, num_items)
    setting = Setting("filtered", filter_seen=True)
    scorer = VectorScorer(users, items)
    few = cases.take(np.arange(sorted_users))
    block = max(1, (1 << 24) // num_items)
    room = torch.empty(block, num_items, device=device)

    def bare(count: int) -> None:
        for start in range(0, count, block):
            part = users[start : min(start + block, count)]
            torch.mm(part, items.T, out=room[: len(part)])

    own = rank_cases(scorer, few, histories, setting)
    theirs = ranks_by_sorting(users[:sorted_users], items, few, histories)
    exact = float(np.mean(own.places.ranks == theirs[own.cases]))
    yield Row(
        "evaluate", f"ranks equal to those of a full sort, {sorted_users} users", (exact,), target=1.0, unit="share"
    )
    seconds = alternate(
        {"mmrec": lambda: rank_cases(scorer, cases, histories, setting), "bare": lambda: bare(num_users)},
        rounds=rounds,
        device=device,
    )
    where = f"{num_items:,} items x {dim}, {num_users:,} users"
    yield Row(
        "evaluate",
        f"over one bare product, {where}",
        ratios(seconds["mmrec"], seconds["bare"]),
        bound="at most",
        target=None if size == "small" else 1.25,
        details={"mmrec s": min(seconds["mmrec"]), "bare product s": min(seconds["bare"])},
    )
    seconds = alternate(
        {
            "mmrec": lambda: rank_cases(scorer, few, histories, setting),
            "field": lambda: ranks_by_sorting(users[:sorted_users], items, few, histories),
        },
        rounds=rounds,
        device=device,
    )
    yield Row(
        "evaluate",
        f"faster than one argsort a user, {sorted_users} users",
        ratios(seconds["field"], seconds["mmrec"]),
        target=None if size == "small" else 6.0,
        details={name + " s": min(values) for name, values in seconds.items()},
    )
