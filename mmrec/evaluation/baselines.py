"""Recommenders without training that every model has to beat.  Each is a ``CaseScorer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrec.evaluation.ranking import CaseScorer
from mmrec.evaluation.slices import training_counts
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases
from mmrec.storage import RaggedArray

WINDOW = 10
SHRINKAGE = 20.0
REPEAT_BONUS = 2.0
CONTENT_ITEMS = 5
_BLOCK_EVENTS = 1 << 21
_Weighted = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Keys and their weights."""


class Popularity:
    """Every user gets the items that training saw most.

    Args:
        counts: shape (items,), training events of each item.
    """

    def __init__(self, counts: npt.NDArray[np.int64]) -> None:
        self._scores = torch.from_numpy(counts.astype(np.float32))

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Return the same row for every case."""
        return self._scores.expand(len(cases), -1)


class CoOccurrence:
    """Items that came near the user's last items in other histories, and once more the user's own.

    Args:
        cases: the cases to answer.
        histories: where their events are.
        train_events: shape (events,), events that may be counted.
        directed: count only what came later (or at the same instant), not what came before.
        last_items: how many of the most recent items speak.
        recency: the j-th most recent item counts 1 / j instead of 1.
        repeat_bonus: added to the items of the history, which matters wherever they are not filtered.
    """

    def __init__(
        self,
        cases: Cases,
        histories: Histories,
        train_events: npt.NDArray[np.bool_],
        *,
        directed: bool = False,
        last_items: int = 3,
        recency: bool = False,
        repeat_bonus: float = REPEAT_BONUS,
    ) -> None:
        self._num_items = len(cases.item_roles)
        self._rows = np.asarray(histories.item_rows)
        kept = np.asarray(train_events)
        instants = histories.instants()[kept] if directed else None
        self._neighbours, self._weights = neighbours(
            self._rows[kept], histories.user_rows[kept], instants, num_items=self._num_items
        )
        self._histories = cases.histories(histories)
        self._last = cases.histories(histories, length=last_items)
        self._recency, self._repeat_bonus = recency, repeat_bonus

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Add the neighbours' weights of the last items, then the bonus."""
        last = self._last.gather(cases)
        voters = np.asarray(self._rows[last.values])
        backward = np.repeat(last.offsets[1:], last.lengths) - np.arange(len(voters))
        speech = 1 / backward if self._recency else np.ones(len(voters))
        near, weights = self._neighbours.gather(voters), self._weights.gather(voters)
        owner = np.repeat(np.repeat(np.arange(len(cases)), last.lengths), near.lengths)
        share = weights.values * np.repeat(speech, near.lengths)
        cells = owner * self._num_items + np.asarray(near.values, dtype=np.int64)
        flat = np.bincount(cells, share, minlength=len(cases) * self._num_items)
        result = flat.astype(np.float32).reshape(len(cases), self._num_items)
        seen = self._histories.gather(cases)
        result[np.repeat(np.arange(len(cases)), seen.lengths), self._rows[seen.values]] += self._repeat_bonus
        return torch.from_numpy(result)


class ContentKnn:
    """Items that look and read like the user's last ones: mean cosine to each of them.

    Args:
        vectors: modality to shape (items, dim), one vector an item; rows that are not ``present`` are ignored.
        present: modality to shape (items,).
        cases: the cases to answer.
        histories: where their events are.
        last_items: how many of the most recent items are compared with.
    """

    def __init__(
        self,
        vectors: Mapping[str, Float[Tensor, "items _"]],
        present: Mapping[str, Bool[Tensor, " items"]],
        cases: Cases,
        histories: Histories,
        *,
        last_items: int = CONTENT_ITEMS,
    ) -> None:
        sides = [_unit(vectors[name].float()) * present[name].unsqueeze(1) for name in sorted(vectors)]
        self._items = _unit(torch.cat(sides, dim=1))
        self._rows = np.asarray(histories.item_rows)
        self._last = cases.histories(histories, length=last_items)

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Compare the mean of the last items' unit vectors with every item's unit vector."""
        last = self._last.gather(cases)
        owner = torch.from_numpy(np.repeat(np.arange(len(cases)), last.lengths)).to(self._items.device)
        rows = torch.from_numpy(np.asarray(self._rows[last.values], dtype=np.int64)).to(self._items.device)
        total = self._items.new_zeros(len(cases), self._items.shape[1]).index_add(0, owner, self._items[rows])
        number = torch.from_numpy(np.maximum(last.lengths, 1)).to(total)
        return (total / number.unsqueeze(1)) @ self._items.T


def standard_baselines(
    cases: Cases,
    histories: Histories,
    train_events: npt.NDArray[np.bool_],
    *,
    vectors: Mapping[str, Float[Tensor, "items _"]],
    present: Mapping[str, Bool[Tensor, " items"]],
) -> dict[str, CaseScorer]:
    """Return the rows that stand beside every model: name to scorer.

    Without content ``vectors`` the content baseline is left out.  Repeats get their bonus where training has any:
    in a feed without repeats it would only push the history to the top.
    """
    number, kept = len(cases.item_roles), np.asarray(train_events)
    counts = training_counts(train_events, histories, num_items=number)
    repeats = _repeats(np.asarray(histories.item_rows)[kept], histories.user_rows[kept], num_items=number)
    bonus = REPEAT_BONUS if repeats else 0.0
    found: dict[str, CaseScorer] = {
        "popularity": Popularity(counts),
        "co-occurrence": CoOccurrence(cases, histories, train_events, repeat_bonus=bonus),
        "transitions": CoOccurrence(
            cases, histories, train_events, directed=True, last_items=5, recency=True, repeat_bonus=bonus
        ),
    }
    if vectors:
        found["content-kNN"] = ContentKnn(vectors, present, cases, histories)
    if len(vectors) > 1:
        # One modality may do better than both: the other can be noise.
        for name in vectors:
            found[f"content-kNN ({name})"] = ContentKnn({name: vectors[name]}, present, cases, histories)
    return found


def neighbours(
    sequence: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    instants: npt.NDArray[np.int64] | None,
    *,
    num_items: int,
    window: int = WINDOW,
    shrinkage: float = SHRINKAGE,
) -> tuple[RaggedArray, RaggedArray]:
    """Count which items come near which; a pair ``d`` events apart counts 1 / d.

    The weight of j for i is the sum of their pairs / (events of i + shrinkage).

    Args:
        sequence: shape (events,), item rows, user after user, oldest first.
        users: shape (events,), owner of each event, ascending.
        instants: shape (events,): only what comes later or at the same instant is near; None: both directions.
        num_items: items in the catalogue.
        window: longest distance in events.
        shrinkage: keeps items with few events from speaking loudly.

    Returns:
        For each item its neighbours' rows, ascending, and their weights.
    """
    window = max(1, min(window, len(sequence) - 1))
    parts: list[_Weighted] = []
    for start in range(0, len(sequence), _BLOCK_EVENTS):
        block = slice(start, start + _BLOCK_EVENTS + window)
        pairs = _pairs(sequence[block], users[block], None if instants is None else instants[block], num_items, window)
        codes, counts = np.unique(pairs, return_counts=True)
        parts.append(_summed([(codes // window, counts / (codes % window + 1))]))
        # Like the digits of a counter: a pair takes part in few merges, and not in one for each block that follows.
        while len(parts) > 1 and 2 * len(parts[-1][0]) > len(parts[-2][0]):
            parts[-2:] = [_summed(parts[-2:])]
    keys, weights = _summed(parts)
    first, second = keys // num_items, keys % num_items
    weights = weights / (np.bincount(sequence, minlength=num_items)[first] + shrinkage)
    offsets = np.searchsorted(first, np.arange(num_items + 1)).astype(np.int64)
    return RaggedArray(second, offsets), RaggedArray(weights, offsets)


def _summed(parts: Sequence[_Weighted]) -> _Weighted:
    """Return the keys of some parts, ascending, each once, and the sums of their weights."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0)
    keys, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")
    first_of = np.flatnonzero(np.diff(keys[order], prepend=-1))
    return keys[order][first_of], np.add.reduceat(weights[order], first_of) if len(first_of) else weights


def _pairs(
    sequence: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    instants: npt.NDArray[np.int64] | None,
    num_items: int,
    window: int,
) -> npt.NDArray[np.int64]:
    """Return (item * num_items + neighbour) * window + distance - 1 of every pair that starts in the block."""
    found = []
    for distance in range(1, window + 1):
        stop = max(0, min(_BLOCK_EVENTS, len(sequence) - distance))
        before, after = sequence[:stop], sequence[distance : stop + distance]
        near = (users[:stop] == users[distance : stop + distance]) & (before != after)
        turned = near if instants is None else near & (instants[:stop] == instants[distance : stop + distance])
        pairs = np.concatenate([(before * num_items + after)[near], (after * num_items + before)[turned]])
        found.append(pairs * window + distance - 1)
    return np.concatenate(found)


def _repeats(items: npt.NDArray[np.int64], users: npt.NDArray[np.int64], *, num_items: int) -> bool:
    return len(np.unique(users * num_items + items)) < len(items)


def _unit(vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    return torch.nn.functional.normalize(vectors, dim=1)
