"""How targets and lists stand after each tile of scores, exact in spite of float32.

A product in float32 rounds one pair of vectors differently in tiles of different shapes.  Scores further from the
target's than any rounding are counted as they come; the few in between are settled in float64, where equal vectors tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PENDING = 1 << 16
"""Near scores that wait to be settled together."""
CROWD = 1 << 13
"""Places of near scores in one tile from which on a product in float64 is cheaper than pair after pair."""
MOST_TILES, WORD = 255, 8
"""What a byte counts, and bytes in a word."""
PAIRS = 1 << 9
"""Pairs settled at once on a CPU: what its cache holds."""


class Pairs:
    """Pairs of a user's row and an item's position, by position; repetitions count once.

    Args:
        rows: shape (pairs,).
        positions: shape (pairs,).
        num_rows: users.
        device: where they are needed.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        *,
        num_rows: int,
        device: torch.device,
    ) -> None:
        keys = np.unique(positions * num_rows + rows)
        self._num_rows = num_rows
        self._sorted = keys // num_rows
        self._keys = torch.from_numpy(keys).to(device)
        self._rows, self._positions = self._keys % num_rows, self._keys // num_rows

    def within(self, start: int, stop: int) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Return rows and columns of the pairs in a tile."""
        if not len(self._sorted):
            return self._rows, self._positions
        first, last = np.searchsorted(self._sorted, (start, stop))
        return self._rows[first:last], self._positions[first:last] - start

    def holds(self, rows: Int[Tensor, " asked"], positions: Int[Tensor, " asked"]) -> Bool[Tensor, " asked"]:
        """Return whether each pair is among them."""
        if not len(self._keys):
            return torch.zeros_like(rows, dtype=torch.bool)
        keys = positions * self._num_rows + rows
        found = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return self._keys[found] == keys


@dataclass(frozen=True)
class Tile:
    """Scores of some users for neighbouring items.

    Args:
        scores: shape (users, items), -inf where an item is not offered.
        items: shape (items, width).
        start: position of the first item.
        had_rows: shape (pairs,), users of the scores that hold the bonus.
        had_columns: shape (pairs,), items of these.
    """

    scores: Float[Tensor, "users items"]
    items: Float[Tensor, "items width"]
    start: int
    had_rows: Int[Tensor, " pairs"]
    had_columns: Int[Tensor, " pairs"]


class Exact:
    """Scores in float64, and how far those in float32 may be from them.

    Args:
        item_vectors: gives the vectors of item rows.
        vectors: shape (users, interests, width).
        order: shape (positions,), item rows.
        longest: greatest length of an item's vector.
        bonus: added to the pairs of ``had``.
        had: pairs with the bonus.
    """

    def __init__(
        self,
        item_vectors: Callable[[Tensor], Tensor],
        vectors: Float[Tensor, "users interests width"],
        order: Int[Tensor, " positions"],
        *,
        longest: float,
        bonus: float,
        had: Pairs,
    ) -> None:
        self._item_vectors, self._users, self._order = item_vectors, vectors.double(), order
        self._bonus, self._had = bonus, had
        self.num_users, self.dtype = len(vectors), vectors.dtype
        reach = torch.linalg.vector_norm(self._users, dim=2).amax(dim=1) * longest * 1.001
        # n additions in any order are wrong by at most n roundings of |u||v| (Higham 2002, section 3.1); two more for
        # the bonus and for the limits themselves.
        rounding = vectors.shape[2] / 2 + 2
        self.margins = torch.finfo(vectors.dtype).eps * (rounding * reach + 2 * abs(bonus))
        self.tolerances = torch.finfo(torch.float64).eps * 2 * (rounding * reach + 2 * abs(bonus))

    def pairs(self, rows: Int[Tensor, " pairs"], positions: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Return the scores of single pairs."""
        scores = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        step = PAIRS if rows.device.type == "cpu" else PENDING
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            items = self._item_vectors(self._order[positions[part]]).unsqueeze(1)
            scores[part] = (self._users[rows[part]] * items).sum(dim=2).amax(dim=1)
        return scores + self._bonus * self._had.holds(rows, positions)

    def block(self, rows: Int[Tensor, " rows"], tile: Tile) -> Float[Tensor, "rows items"]:
        """Return the scores of some users for all items of a tile."""
        users = self._users[rows]
        products = users.flatten(0, 1) @ tile.items.double().T
        extra = torch.zeros_like(tile.scores)
        extra[tile.had_rows, tile.had_columns] = self._bonus
        return products.view(*users.shape[:2], -1).amax(dim=1) + extra[rows]


class Flags:
    """Memory for comparing one tile.

    Args:
        elements: most scores of a tile.
        device: where they are compared.
    """

    def __init__(self, elements: int, *, device: torch.device) -> None:
        self._above, self._least = (
            torch.zeros(-(-elements // WORD) * WORD, dtype=torch.bool, device=device) for _ in range(2)
        )

    def above(self, scores: Float[Tensor, "rows items"], limits: Float[Tensor, "rows 1"]) -> Bool[Tensor, "rows items"]:
        """Return which scores are above their row's limit, in memory that the next call takes back."""
        found = self._above[: scores.numel()].view(scores.shape)
        if scores.device.type != "cpu":
            return torch.gt(scores, limits, out=found)
        # numpy compares into bools at less than half of torch's time.
        np.greater(scores.numpy(), limits.numpy(), out=found.numpy())
        return found

    def near(
        self,
        scores: Float[Tensor, "rows items"],
        low: Float[Tensor, "rows 1"],
        above: Bool[Tensor, "rows items"],
    ) -> Bool[Tensor, "rows items"]:
        """Return which scores are at least ``low`` and not ``above``, in memory that the next call takes back."""
        found = self._least[: scores.numel()].view(scores.shape)
        if scores.device.type != "cpu":
            torch.ge(scores, low, out=found)
            return torch.logical_xor(above, found, out=found)
        np.greater_equal(scores.numpy(), low.numpy(), out=found.numpy())
        np.logical_xor(above.numpy(), found.numpy(), out=found.numpy())
        return found

    def near_cells(self, number: int) -> Int[Tensor, " near"] | None:
        """Return the cells (flat) of what :meth:`near` found in ``number`` scores, None where it is a crowd."""
        return _cells(self._least, number, most=CROWD)

    def cells_above(
        self, scores: Float[Tensor, "rows items"], limits: Float[Tensor, "rows 1"]
    ) -> Int[Tensor, " above"]:
        """Return the cells (flat) of the scores that are above their row's limit."""
        self.above(scores, limits)
        cells = _cells(self._above, scores.numel(), most=scores.numel())
        assert cells is not None
        return cells


def _cells(flags: Bool[Tensor, " memory"], number: int, *, most: int) -> Int[Tensor, " cells"] | None:
    """Return where the first ``number`` flags, nearly all False, are True; None where that is in more than ``most``."""
    if flags.device.type != "cpu":
        found = flags[:number].nonzero().squeeze(1)
        return found if len(found) <= most else None
    used = flags[: -(-number // WORD) * WORD].numpy()
    used[number:] = False
    octets = np.flatnonzero(used.view(np.int64) != 0)
    if len(octets) > most:
        return None
    which, within = used.reshape(-1, WORD)[octets].nonzero()
    return torch.from_numpy(octets[which] * WORD + within)


class _Places:
    """Counts what scores above and level with some targets.

    Args:
        exact: scores in float64.
        owners: shape (targets,), whose each is.
        positions: shape (targets,), of the targets.
        flags: memory for comparisons.
        size: most columns of a tile.
    """

    def __init__(
        self,
        exact: Exact,
        owners: Int[Tensor, " targets"],
        positions: Int[Tensor, " targets"],
        flags: Flags,
        size: int,
    ) -> None:
        self._exact, self._owners, self._flags = exact, owners, flags
        self._own = exact.pairs(owners, positions)
        margins = exact.margins[owners]
        self._low, self._high = ((self._own + sign * margins).to(exact.dtype).unsqueeze(1) for sign in (-1, 1))
        self.above, self.tied = torch.zeros_like(self._own), torch.zeros_like(self._own)
        self._counts = torch.zeros(len(owners), size, dtype=torch.uint8, device=owners.device)
        self._tiles = 0
        self._near: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    def add(self, tile: Tile, *, gathered: bool) -> None:
        """Look at one tile; ``gathered`` where the targets are not one a user in the users' order."""
        scores = tile.scores.index_select(0, self._owners) if gathered else tile.scores
        above = self._flags.above(scores, self._high)
        found = self._flags.near(scores, self._low, above)
        # Adding bytes column by column is far cheaper than counting each row of each tile; numpy is faster at it.
        counts, more = self._counts[:, : scores.shape[1]], above.view(torch.uint8)
        if counts.device.type == "cpu":
            np.add(counts.numpy(), more.numpy(), out=counts.numpy())
        else:
            counts += more
        self._tiles += 1
        if self._tiles == MOST_TILES:
            self._count()
        near = self._flags.near_cells(scores.numel())
        if near is None:
            self._settle_crowd(found, tile)
        elif len(near):
            self._near.append((near // scores.shape[1], near % scores.shape[1] + tile.start))
            self._waiting += len(near)
            if self._waiting > PENDING:
                self._settle()

    def finish(self) -> None:
        """Count and decide what waits."""
        self._count()
        self._settle()

    def _count(self) -> None:
        self.above += self._counts.sum(dim=1)
        self._counts.zero_()
        self._tiles = 0

    def _settle(self) -> None:
        if not self._waiting:
            return
        targets, positions = (torch.cat(parts) for parts in zip(*self._near, strict=True))
        self._near, self._waiting = [], 0
        gaps = self._exact.pairs(self._owners[targets], positions) - self._own[targets]
        tolerances = self._exact.tolerances[self._owners[targets]]
        self.above.index_add_(0, targets, (gaps > tolerances).double())
        self.tied.index_add_(0, targets, (gaps.abs() <= tolerances).double())

    def _settle_crowd(self, found: Bool[Tensor, "targets items"], tile: Tile) -> None:
        some = found.any(dim=1).nonzero().squeeze(1)
        owners, found = self._owners[some], found[some]
        gaps = self._exact.block(owners, tile) - self._own[some].unsqueeze(1)
        tolerances = self._exact.tolerances[owners].unsqueeze(1)
        self.above[some] += (found & (gaps > tolerances)).sum(dim=1)
        self.tied[some] += (found & (gaps.abs() <= tolerances)).sum(dim=1)


class Lists:
    """Keeps the best items of each user.

    Args:
        num_users: users.
        top_k: length of the lists.
        flags: memory for comparisons.
        dtype: of scores.
        device: of scores.
    """

    def __init__(self, num_users: int, top_k: int, flags: Flags, *, dtype: torch.dtype, device: torch.device) -> None:
        self._flags = flags
        self._values = torch.full((num_users, top_k), -torch.inf, dtype=dtype, device=device)
        self._positions = torch.zeros(num_users, top_k, dtype=torch.int64, device=device)
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting, self._started = 0, False

    def add(self, tile: Tile) -> None:
        """Look at one tile: take what beats the last of a list as it was when lists were last brought up to date."""
        if not self._started:
            self._started = True
            columns = torch.arange(tile.scores.shape[1], device=tile.scores.device) + tile.start
            self._merge(tile.scores, columns.expand_as(tile.scores))
            return
        last = self._values[:, -1]
        some = (tile.scores.amax(dim=1) > last).nonzero().squeeze(1)
        if not len(some):
            return
        scores, limits = tile.scores.index_select(0, some), last[some].unsqueeze(1)
        cells = self._flags.cells_above(scores, limits)
        rows, columns = cells // scores.shape[1], cells % scores.shape[1]
        self._found.append((some[rows], scores.view(-1)[cells], columns + tile.start))
        self._waiting += len(rows)
        # As many as the lists hold: at random, that many turn up each time the items seen double.
        if self._waiting > self._values.numel():
            self._update()

    def result(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return values, -inf where there are fewer, and positions, shape (users, top_k), best first."""
        self._update()
        return self._values.float().cpu().numpy(), self._positions.cpu().numpy()

    def _update(self) -> None:
        if not self._waiting:
            return
        rows, values, positions = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        self._found, self._waiting = [], 0
        values, order = values.sort(descending=True)
        rows, again = rows[order].sort(stable=True)
        order = order[again]
        rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        kept = rank < self._values.shape[1]
        cells = rows[kept], rank[kept]
        new_values = torch.full_like(self._values, -torch.inf).index_put_(cells, values[again][kept])
        self._merge(new_values, torch.zeros_like(self._positions).index_put_(cells, positions[order][kept]))

    def _merge(self, values: Float[Tensor, "users new"], positions: Int[Tensor, "users new"]) -> None:
        self._values, chosen = torch.cat([self._values, values], dim=1).topk(self._values.shape[1], dim=1)
        self._positions = torch.cat([self._positions, positions], dim=1).gather(1, chosen)


class Standing:
    """Where the targets and the lists of some users stand under one setting.

    Args:
        exact: scores in float64.
        owners: shape (targets,), users of the reachable targets, ascending.
        positions: shape (targets,), of these targets.
        top_k: length of the lists.
        size: most items of a tile.
    """

    def __init__(
        self,
        exact: Exact,
        owners: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        *,
        top_k: int,
        size: int,
    ) -> None:
        users, device = exact.num_users, exact.margins.device
        self._gathered = not np.array_equal(owners, np.arange(users))
        flags = Flags(users * size, device=device)
        self._parts = [
            _Places(
                exact,
                torch.from_numpy(owners[start : start + users]).to(device),
                torch.from_numpy(positions[start : start + users]).to(device),
                flags,
                size,
            )
            for start in range(0, len(owners), users)
        ]
        self.lists = Lists(users, top_k, flags, dtype=exact.dtype, device=device)

    def add(self, tile: Tile) -> None:
        """Look at one tile."""
        for part in self._parts:
            part.add(tile, gathered=self._gathered)
        self.lists.add(tile)

    def places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return how many candidates are above each target, and how many others are level with it."""
        for part in self._parts:
            part.finish()
        counts = [torch.stack([part.above, part.tied - 1]) for part in self._parts]
        above, tied = torch.cat([torch.zeros(2, 0), *(count.cpu() for count in counts)], dim=1).long().numpy()
        return above, tied
