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
from mmrec.storage import RaggedArray

SHAPES = {"small": (5_000, 32, 300, 50), "cpu": (1_000_000, 256, 10_000, 16), "gpu": (1_000_000, 256, 10_000, 64)}
"""Items, width, users, and users whom the field's way is timed on (it would take an hour for all)."""
HISTORY = 20
USERS, TILE = 1024, 256
"""Of the bare product, on a CPU: the fastest of those that were tried."""


class VectorScorer:
    """Scores by inner product, as a model's vectors are scored."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self._users, self._items = users, items

    def scores(self, cases: npt.NDArray[np.int64]) -> Tensor:
        """Score the whole catalogue."""
        return self._users[torch.from_numpy(cases).to(self._users.device)] @ self._items.T

    def case_vectors(self, cases: npt.NDArray[np.int64]) -> Tensor:
        """Return users' vectors, one interest each."""
        return self._users[torch.from_numpy(cases).to(self._users.device)].unsqueeze(1)

    def item_vectors(self, rows: slice | Tensor) -> Tensor:
        """Return items' vectors."""
        return self._items[rows]

    def repeat_items(self, cases: npt.NDArray[np.int64]) -> RaggedArray:
        """Return nothing."""
        return RaggedArray(np.zeros(0, np.int64), np.zeros(len(cases) + 1, np.int64))

    def repeat_bonus(self) -> float:
        """Return no bonus."""
        return 0.0


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
    columns = min(num_items, TILE if device == "cpu" else 32 * TILE)
    room = torch.empty(min(USERS, num_users) * columns, device=device)

    def bare() -> None:
        for start in range(0, num_users, USERS):
            part = users[start : start + USERS]
            for first in range(0, num_items, columns):
                block = items[first : first + columns]
                torch.mm(part, block.T, out=room[: len(part) * len(block)].view(len(part), len(block)))

    own = rank_cases(scorer, few, histories, setting)
    # In float32 a sort orders the closest scores by how they were rounded.
    theirs = ranks_by_sorting(users[:sorted_users].double(), items.double(), few, histories)
    exact = float(np.mean(own.places.ranks == theirs[own.cases]))
    yield Row(
        "evaluate",
        f"ranks equal to those of a full sort in float64, {sorted_users} users",
        (exact,),
        target=1.0,
        unit="share",
    )
    seconds = alternate(
        {
            "mmrec": lambda: rank_cases(scorer, cases, histories, setting),
            "bare": bare,
            "field": lambda: ranks_by_sorting(users[:sorted_users], items, few, histories),
        },
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
    share = num_users / sorted_users
    yield Row(
        "evaluate",
        f"faster for each user than one argsort a user ({sorted_users} users sorted)",
        tuple(share * ratio for ratio in ratios(seconds["field"], seconds["mmrec"])),
        target=None if size == "small" else 6.0,
        details={"mmrec s": min(seconds["mmrec"]), f"field s, {sorted_users} users": min(seconds["field"])},
    )
