"""Ranks of targets by inner products: many users at once, by tiles of items that stay in the processor's cache.

Whole rows of scores are never made: a product of few users with a large catalogue waits for memory.  Each tile is
looked at while it is warm; only what is above a target's score is counted, and only what could change a list is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrec.errors import ArtifactError
from mmrec.evaluation.metrics import UNREACHABLE
from mmrec.evaluation.standing import Exact, Pairs, Standing, Tile
from mmrec.evaluation.tally import Tally
from mmrec.storage import RaggedArray
from mmrec.threads import one_thread_each

USERS = 2048
FEW_USERS = 256
TILE_ELEMENTS = 1 << 20
"""Scores of one tile on a CPU: what its cache holds."""


@runtime_checkable
class VectorCaseScorer(Protocol):
    """A scorer of cases whose scores are inner products, the best over a user's interests, and a bonus on some items."""

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Score the whole catalogue for the given cases (positions in the cases it was built for), higher is better."""
        ...

    def case_vectors(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases interests width"]:
        """Return the vectors of some cases, on the device where they are to be compared."""
        ...

    def item_vectors(self, rows: slice | Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Return the vectors of some items, on the same device; a view where that is enough."""
        ...

    def repeat_items(self, cases: npt.NDArray[np.int64]) -> RaggedArray:
        """Return the item rows that gain the bonus in each of some cases; repetitions are harmless."""
        ...

    def repeat_bonus(self) -> float:
        """Return the bonus."""
        ...


@torch.inference_mode()
def rank_tiles(
    scorer: VectorCaseScorer, tallies: Sequence[Tally], wanted: npt.NDArray[np.int64], *, chunk_elements: int
) -> None:
    """Fill the tallies for the wanted cases.

    Args:
        scorer: gives the vectors.
        tallies: what is asked.
        wanted: shape (wanted,), cases.
        chunk_elements: scores held at once, at most.

    Raises:
        ArtifactError: a vector is not finite.
    """
    if not len(wanted):
        return
    times = next((tally.times for tally in tallies if tally.times is not None), None)
    if times is not None:
        # Cases of one time share what existed, so that few tiles have to be masked.
        wanted = wanted[np.argsort(times[wanted], kind="stable")]
    longest = _longest(scorer, tallies[0].num_items)
    cpu = scorer.item_vectors(slice(0, 1)).device.type == "cpu"
    layout = _Layout(tallies)
    most = min(USERS, max(1, 2 * isqrt(chunk_elements)))
    # One thread a chunk: half of the work between two products is done by one core at a time otherwise.
    threads = max(1, min(torch.get_num_threads(), len(wanted) // FEW_USERS)) if cpu else 1
    chunks = np.array_split(wanted, threads * -(-len(wanted) // (threads * most)))
    with one_thread_each(threads) as run:
        for group in range(0, len(chunks), threads):
            some = [chunk for chunk in chunks[group : group + threads] if len(chunk)]
            # A model need not bear two threads.
            vectors = [scorer.case_vectors(chunk) for chunk in some]
            list(
                run(
                    lambda chunk, users: _rank_chunk(scorer, tallies, layout, chunk, users, longest, chunk_elements),
                    some,
                    vectors,
                )
            )


@dataclass(frozen=True)
class _Stretch:
    """Neighbours in the layout that lie in the same pools; ``earliest`` and ``latest`` of their ``first_seen``."""

    start: int
    stop: int
    rows: slice | Tensor
    active: npt.NDArray[np.bool_]
    earliest: int
    latest: int


class _Layout:
    """The order in which items are gone through: by the pools they are in, then by ``first_seen`` where it is asked for.

    Items in no pool are left out.
    """

    def __init__(self, tallies: Sequence[Tally]) -> None:
        pools = np.stack([tally.pool for tally in tallies])
        first_seen = next((tally.first_seen for tally in tallies if tally.first_seen is not None), None)
        codes, group = np.unique(pools, axis=1, return_inverse=True) if not pools.all() else (pools[:, :1], None)
        self.pools = codes.T
        order = np.arange(pools.shape[1])
        if first_seen is not None:
            order = np.argsort(first_seen, kind="stable")
        if group is not None:
            order = order[np.argsort(group.reshape(-1)[order], kind="stable")]
            order = order[pools[:, order].any(axis=0)]
        self.order = order
        self.positions = np.full(pools.shape[1], -1, np.int64)
        self.positions[order] = np.arange(len(order))
        groups = np.zeros(len(order), np.int64) if group is None else group.reshape(-1)[order]
        self._borders = np.append(np.flatnonzero(np.diff(groups, prepend=-1)), len(order))
        self._group = groups
        self._first_seen = np.zeros(len(order), np.int64) if first_seen is None else np.asarray(first_seen)[order]
        self._plain = bool((np.diff(order) == 1).all())

    def first_seen(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the time of each item of a stretch, ascending."""
        return self._first_seen[start:stop]

    def stretches(self, size: int, device: torch.device) -> list[_Stretch]:
        """Cut the layout into stretches of at most ``size`` items, in random order.

        A catalogue is often sorted by what raises scores; in its order every tile would change the lists.
        """
        cuts = [
            (start, min(start + size, int(after)))
            for before, after in zip(self._borders[:-1], self._borders[1:], strict=True)
            for start in range(int(before), int(after), size)
        ]
        shuffled = np.random.default_rng(0).permutation(len(cuts))
        return [self._stretch(start, stop, device) for start, stop in (cuts[index] for index in shuffled)]

    def _stretch(self, start: int, stop: int, device: torch.device) -> _Stretch:
        rows: slice | Tensor = slice(int(self.order[start]), int(self.order[stop - 1]) + 1)
        if not self._plain:
            rows = torch.from_numpy(self.order[start:stop]).to(device)
        seen = self._first_seen
        return _Stretch(start, stop, rows, self.pools[self._group[start]], int(seen[start]), int(seen[stop - 1]))


def _longest(scorer: VectorCaseScorer, num_items: int) -> float:
    """Return the greatest length of an item's vector, which bounds the rounding of every score."""
    longest = 0.0
    for start in range(0, num_items, USERS * 8):
        vectors = scorer.item_vectors(slice(start, min(start + USERS * 8, num_items)))
        longest = max(_checked_length(vectors), longest)
    return longest


def _checked_length(vectors: Float[Tensor, "*rows width"]) -> float:
    length = float(torch.linalg.vector_norm(vectors, dim=-1).max())
    if not np.isfinite(length):
        raise ArtifactError(
            "vectors that can be compared",
            got="NaN or infinity",
            where="ranking",
            fix="The model has diverged; train it again.",
        )
    return length


@torch.inference_mode()
def _rank_chunk(
    scorer: VectorCaseScorer,
    tallies: Sequence[Tally],
    layout: _Layout,
    chunk: npt.NDArray[np.int64],
    vectors: Float[Tensor, "users interests width"],
    longest: float,
    chunk_elements: int,
) -> None:
    _checked_length(vectors)
    device, (number, interests, _) = vectors.device, vectors.shape
    bonus = scorer.repeat_bonus()
    had = Pairs(*_pairs(scorer.repeat_items(chunk) if bonus else None, layout), num_rows=number, device=device)
    exact = Exact(
        scorer.item_vectors, vectors, torch.from_numpy(layout.order).to(device), longest=longest, bonus=bonus, had=had
    )
    elements = min(chunk_elements, TILE_ELEMENTS) if device.type == "cpu" else chunk_elements
    size = max(1, min(elements // (number * interests), len(layout.order)))
    standings = [_standing(tally, layout, chunk, exact, size) for tally in tallies]
    seen = [
        Pairs(*_pairs(tally.seen(chunk), layout), num_rows=number, device=device) for tally in tallies if tally.filters
    ]
    times = next((tally.times[chunk] for tally in tallies if tally.times is not None), None)
    product = _Product(vectors, size)
    for stretch in layout.stretches(size, device):
        open_ = [
            bool(stretch.active[index]) and (tally.times is None or times is None or stretch.earliest <= times.max())
            for index, tally in enumerate(tallies)
        ]
        if not any(open_):
            continue
        items = scorer.item_vectors(stretch.rows)
        scores = product(items)
        tile = Tile(scores, items, stretch.start, *had.within(stretch.start, stretch.stop))
        if len(tile.had_rows):
            scores[tile.had_rows, tile.had_columns] += bonus
        for existing in (False, True):
            asked = [
                index for index, tally in enumerate(tallies) if open_[index] and (tally.times is not None) == existing
            ]
            if existing and asked and times is not None and stretch.latest > times.min():
                visible = np.searchsorted(layout.first_seen(stretch.start, stretch.stop), times, side="right")
                limits = torch.from_numpy(visible).to(device).unsqueeze(1)
                scores.masked_fill_(torch.arange(scores.shape[1], device=device) >= limits, -torch.inf)
            for index in asked:
                if not tallies[index].filters:
                    standings[index].add(tile)
            filtering = [index for index in asked if tallies[index].filters]
            if filtering:
                # Histories are the same in every setting that filters them.
                cells = seen[0].within(stretch.start, stretch.stop)
                kept = scores[cells]
                scores[cells] = -torch.inf
                for index in filtering:
                    standings[index].add(tile)
                if not existing:
                    scores[cells] = kept
    for tally, standing in zip(tallies, standings, strict=True):
        _write(tally, standing, layout, chunk)


class _Product:
    """Multiplies the vectors of some users with tile after tile, in the same memory."""

    def __init__(self, vectors: Float[Tensor, "users interests width"], size: int) -> None:
        self._users, self._flat = vectors.shape[:2], vectors.flatten(0, 1)
        self._room = vectors.new_empty(len(self._flat) * size)
        self._best = vectors.new_empty(len(vectors) * size) if vectors.shape[1] > 1 else self._room

    def __call__(self, items: Float[Tensor, "items width"]) -> Float[Tensor, "users items"]:
        users, interests = self._users
        room = self._room[: len(self._flat) * len(items)].view(len(self._flat), len(items))
        torch.mm(self._flat, items.T, out=room)
        if interests == 1:
            return room
        best = self._best[: users * len(items)].view(users, len(items))
        return torch.amax(room.view(users, interests, len(items)), dim=1, out=best)


def _pairs(ragged: RaggedArray | None, layout: _Layout) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows and positions in the layout, without the items that are not in it."""
    if ragged is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = np.repeat(np.arange(len(ragged)), ragged.lengths)
    positions = layout.positions[ragged.values.astype(np.int64)]
    return rows[positions >= 0], positions[positions >= 0]


def _standing(tally: Tally, layout: _Layout, chunk: npt.NDArray[np.int64], exact: Exact, size: int) -> Standing:
    places, owners = tally.places(chunk)
    targets = tally.targets[places]
    reachable = tally.offered(chunk[owners], targets)
    return Standing(exact, owners[reachable], layout.positions[targets[reachable]], top_k=tally.top_k, size=size)


def _write(tally: Tally, standing: Standing, layout: _Layout, chunk: npt.NDArray[np.int64]) -> None:
    places, owners = tally.places(chunk)
    reachable = tally.offered(chunk[owners], tally.targets[places])
    tally.above[places] = UNREACHABLE
    tally.above[places[reachable]], tally.tied[places[reachable]] = standing.places()
    values, positions = standing.lists.result()
    tally.top_scores[chunk] = np.where(np.isneginf(values), np.nan, values)
    tally.top_items[chunk] = np.where(np.isneginf(values), -1, layout.order[positions])
    tally.num_candidates[chunk] = _num_candidates(tally, chunk)


def _num_candidates(tally: Tally, chunk: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    number = np.full(len(chunk), np.count_nonzero(tally.pool))
    if tally.first_seen is not None and tally.times is not None:
        number = np.searchsorted(np.sort(tally.first_seen[tally.pool]), tally.times[chunk], side="right")
    seen = tally.seen(chunk)
    keys = np.unique(np.repeat(np.arange(len(chunk)), seen.lengths) * tally.num_items + seen.values.astype(np.int64))
    rows, items = keys // tally.num_items, keys % tally.num_items
    return np.asarray(number - np.bincount(rows[tally.offered(chunk[rows], items)], minlength=len(chunk)))
