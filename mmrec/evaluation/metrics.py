"""Ranking metrics of single cases, from the places of their targets, exact under ties.

A target's place is known as *above* (candidates that score strictly higher) and *tied* (other candidates that score the
same).  Pessimistic ties put the target behind all its equals; expected ties take the mean over every order of them, with
which a model that says the same of all items gets exactly chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

CUTOFFS = (1, 5, 10, 20, 50)
NAMES = ("hr", "ndcg", "mrr", "recall")
UNREACHABLE = 2**31 - 1
"""``above`` of a target that is not among the candidates: a miss at every cut-off."""

Ties = Literal["pessimistic", "expected"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Places of every target of every case, case after case.

    Args:
        offsets: shape (cases + 1,); case ``c`` owns targets ``offsets[c]`` to ``offsets[c + 1]``, at least one.
        above: shape (targets,), candidates that score higher, or ``UNREACHABLE``.
        tied: shape (targets,), other candidates that score the same (other targets of the case among them).
    """

    offsets: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    tied: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Pessimistic rank: 1 + number of other candidates that score at least as high, shape (targets,)."""
        return 1 + self.above + self.tied

    @property
    def expected_ranks(self) -> Floats:
        """Mean rank over all orders of equals, shape (targets,)."""
        return 1.0 + self.above + self.tied / 2

    @property
    def reachable(self) -> npt.NDArray[np.bool_]:
        """Whether the target is a candidate at all, shape (targets,)."""
        return np.asarray(self.above != UNREACHABLE)

    @property
    def case_index(self) -> npt.NDArray[np.int64]:
        """Case of every target, shape (targets,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def only(self, kept: npt.NDArray[np.bool_]) -> tuple[Places, npt.NDArray[np.int64]]:
        """Keep some targets; return the cases that still have one and their positions here."""
        counts = np.bincount(self.case_index[kept], minlength=len(self))
        cases = np.flatnonzero(counts)
        offsets = np.concatenate([[0], np.cumsum(counts[cases])]).astype(np.int64)
        return Places(offsets, self.above[kept], self.tied[kept]), cases


def metric_names(cutoffs: Sequence[int] = CUTOFFS) -> list[str]:
    """Return ``hr@1`` ... ``recall@50``."""
    return [f"{name}@{cutoff}" for name in NAMES for cutoff in cutoffs]


def case_metrics(
    places: Places, *, ties: Ties = "pessimistic", cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute every metric of every case at every cut-off k.

    hr: whether any target is in the first k.  ndcg: binary gains, discount 1 / log2(rank + 1), ideal of
    min(targets, k) hits.  mrr: 1 / rank of the first target, 0 beyond k.  recall: share of the targets in the first k.

    Returns:
        ``name@k`` to shape (cases,).
    """
    above, tied = places.above, places.tied
    if ties == "pessimistic":
        above, tied = np.minimum(above + tied, UNREACHABLE), np.zeros_like(tied)
    depth = max(cutoffs)
    missed = _missed(places, above, tied + 1, depth)
    reciprocal = np.cumsum(-np.diff(missed, axis=1) / np.arange(1, depth + 1), axis=1)
    hits = np.arange(depth + 1, dtype=np.float64)
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, depth + 2)))])
    counts = np.diff(places.offsets)
    result: dict[str, Floats] = {}
    for k in cutoffs:
        result[f"hr@{k}"] = 1 - missed[:, k]
        result[f"mrr@{k}"] = reciprocal[:, k - 1]
        result[f"recall@{k}"] = _sums(places, _share(hits, above, tied + 1, k)) / counts
        result[f"ndcg@{k}"] = _sums(places, _share(gains, above, tied + 1, k)) / gains[np.minimum(counts, k)]
    return {name: result[name] for name in metric_names(cutoffs)}


def _sums(places: Places, values: Floats) -> Floats:
    return np.add.reduceat(values, places.offsets[:-1]) if len(places) else np.zeros(0)


def _share(cumulative: Floats, above: npt.NDArray[np.int64], group: npt.NDArray[np.int64], k: int) -> Floats:
    """Mean gain of a target that is equally likely at each of the ``group`` ranks behind ``above``."""
    return np.asarray((cumulative[np.minimum(above + group, k)] - cumulative[np.minimum(above, k)]) / group)


def _missed(places: Places, above: npt.NDArray[np.int64], group: npt.NDArray[np.int64], depth: int) -> Floats:
    """Probability that none of a case's targets is among the first 0 ... depth, shape (cases, depth + 1).

    Only the case's best group of equals matters: once it is used up, a target has been seen.  Drawing from a group of
    g with t targets without return misses all of them with probability (g-t)/g * (g-t-1)/(g-1) * ...
    """
    result = np.ones((len(places), depth + 1))
    if not len(places):
        return result
    starts = places.offsets[:-1]
    best = np.minimum.reduceat(above, starts)
    is_best = above == best[places.case_index]
    targets = np.add.reduceat(is_best.astype(np.int64), starts)
    size = np.maximum.reduceat(np.where(is_best, group, 0), starts)
    for j in range(1, depth + 1):
        drawn = j - 1 - best
        left = np.maximum(size - drawn, 1)
        factor = np.where(drawn < 0, 1.0, np.clip((size - drawn - targets) / left, 0.0, 1.0))
        result[:, j] = result[:, j - 1] * factor
    return result


def hr_ceiling(places: Places, useful: npt.NDArray[np.bool_] | None = None) -> float:
    """Share of cases with at least one target that is a candidate (and ``useful``, shape (targets,), where given)."""
    if not len(places):
        return 0.0
    kept = places.reachable if useful is None else places.reachable & useful
    return float(np.logical_or.reduceat(kept, places.offsets[:-1]).mean())


def recommendation_counts(top_items: npt.NDArray[np.int32], *, num_items: int) -> npt.NDArray[np.int64]:
    """Count how often each item is recommended, shape (num_items,); -1 in ``top_items`` (cases, k) is no item."""
    return np.bincount(top_items[top_items >= 0].astype(np.int64), minlength=num_items)


def coverage(counts: npt.NDArray[np.int64]) -> float:
    """Share of the candidates, shape (candidates,), that were recommended to anybody."""
    return float((counts > 0).mean()) if len(counts) else 0.0


def gini(counts: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of recommendation counts: 0 all items alike, near 1 one item takes everything."""
    total, number = counts.sum(), len(counts)
    if total == 0:
        return 0.0
    ordered = np.sort(counts)
    weighted = float((np.arange(1, number + 1) * ordered).sum())
    return 2 * weighted / (number * float(total)) - (number + 1) / number
