"""Logarithm of a sum over many candidates, without ever holding all of their scores.

The forward pass keeps a running sum and a running mean candidate (the gradient to the target), so that a frozen
catalogue costs two matrix products; candidates that learn cost two more in the backward pass, which scores each block
again.  The running rescaling is that of online softmax (Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec.objectives.negatives import Pairs
from mmrec.objectives.row_softmax import fuses, softmax_rows
from mmrec.objectives.terms import wide
from mmrec.threads import count_pieces, map_pieces

_Piece = TypeVar("_Piece")
CPU_BLOCK = (512, 1024)
"""Targets and candidates of a block that stays in a core's cache: scores and probabilities, 4 MB in float32."""
THREAD_SCORES = 1 << 24
"""Scores that are worth a thread on a CPU, which starts cold: with an eighth of them it takes half as long again."""
DEVICE_BLOCK = 1 << 25
"""Scores of a block elsewhere: 128 MB in float32.  Smaller blocks would stay in a GPU's cache between product and softmax,
but are worked off before the host has started what comes next: at 2^21 scores an H200 waited most of the time."""
DEVICE_COLUMNS = 1 << 13
"""Candidates of a block elsewhere, at most: rows that the softmax does in one pass."""


def weighted_logsumexp(
    target_vectors: Float[Tensor, "targets dim"],
    candidates: Float[Tensor, "candidates dim"],
    *,
    chunk: int,
    log_weights: Float[Tensor, " candidates"] | None = None,
    unweighted: Pairs | None = None,
    excluded: Pairs | None = None,
    window: Window | None = None,
) -> Float[Tensor, " targets"]:
    """Return ``log sum_j w_j exp(target . candidate_j)`` for each target, in float32 or wider; -inf for no candidate.

    Gradients go to ``target_vectors`` and ``candidates`` and are exact; there is none of second order.

    Args:
        target_vectors: shape (targets, dim).
        candidates: shape (candidates, dim); any float type if they need no gradient.
        chunk: candidates scored at once, at most.
        log_weights: shape (candidates,), log w_j, -inf leaves a candidate out; None weighs all alike.
        unweighted: pairs whose weight is 1 whatever ``log_weights`` says.
        excluded: pairs left out, whatever else is said of them.
        window: leaves out the candidates that did not exist yet.
    """
    target_vectors = wide(target_vectors)
    if candidates.requires_grad:
        candidates = candidates.to(target_vectors.dtype)
    if log_weights is not None:
        log_weights = log_weights.detach().to(target_vectors.dtype).clamp_min(_lowest(target_vectors))
    plan = _Plan.make(target_vectors, candidates, chunk, log_weights, unweighted, excluded, window)
    needs_mean = torch.is_grad_enabled() and target_vectors.requires_grad
    result = _LogSumExp.apply(target_vectors, candidates, plan, needs_mean)
    return cast(Tensor, result)


@dataclass(frozen=True)
class Window:
    """Who existed when: a candidate counts for a target only where ``since <= until``.

    Args:
        since: shape (candidates,), time from which each exists.
        until: shape (targets,), time of each question.
    """

    since: Int[Tensor, " candidates"]
    until: Int[Tensor, " targets"]

    def hide(self, scores: Float[Tensor, "rows columns"], *, row: int, column: int) -> None:
        """Take the scores of a block, which starts at a row and a column, out of the sum where they do not count."""
        since = self.since[column : column + scores.shape[1]]
        until = self.until[row : row + scores.shape[0]]
        scores.masked_fill_(since > until.unsqueeze(1), _lowest(scores))


@dataclass(frozen=True)
class _BlockPairs:
    """Pairs by block: those of block ``b`` are ``offsets[bounds[b] : bounds[b + 1]]``, flat places in the block."""

    offsets: Int[Tensor, " pairs"]
    bounds: list[int]

    @classmethod
    def make(
        cls, pairs: Pairs, num_targets: int, num_candidates: int, rows: int, columns: int, device: torch.device
    ) -> _BlockPairs:
        """Sort pairs into blocks where they lie, and send them to the scores' device."""
        row_blocks, column_blocks = -(-num_targets // rows), -(-num_candidates // columns)
        row_block, column_block = pairs.target_index // rows, pairs.item_index // columns
        widths = (num_candidates - column_block * columns).clamp(max=columns)
        offsets = (pairs.target_index % rows) * widths + pairs.item_index % columns
        block = column_block * row_blocks + row_block
        on_host = block.device.type == "cpu"
        # Pairs by target are by block already where one block holds all candidates.
        if not (on_host and bool((block[1:] >= block[:-1]).all())):
            block, order = torch.sort(block)
            offsets = offsets[order]
        edges = torch.arange(row_blocks * column_blocks + 1, device=block.device)
        bounds: list[int] = torch.searchsorted(block, edges).tolist()
        if on_host and device.type == "cuda":
            offsets = offsets.pin_memory()
        return cls(offsets.to(device, non_blocking=device.type != "mps"), bounds)

    def of(self, block: int) -> Int[Tensor, " block_pairs"]:
        return self.offsets[self.bounds[block] : self.bounds[block + 1]]


@dataclass(frozen=True)
class _Plan:
    """How scores are cut into blocks, and what is done to each of them.

    ``together`` counts the targets whose running sums are brought up to date at once.  On a CPU those of one block, while
    they are in its cache; elsewhere all, for a block is over in less time than it takes to start so many small operations.
    On a CPU each of ``threads`` takes blocks of its own, of targets in the forward pass and of candidates in the backward one.
    """

    rows: int
    columns: int
    together: int
    threads: int
    log_weights: Tensor | None
    unweighted: _BlockPairs | None
    excluded: _BlockPairs | None
    window: Window | None

    @classmethod
    def make(
        cls,
        targets: Tensor,
        candidates: Tensor,
        chunk: int,
        log_weights: Tensor | None,
        unweighted: Pairs | None,
        excluded: Pairs | None,
        window: Window | None,
    ) -> _Plan:
        assert chunk > 0
        on_cpu = targets.device.type == "cpu"
        columns = max(min(chunk, len(candidates), CPU_BLOCK[1] if on_cpu else DEVICE_COLUMNS), 1)
        rows = max(min(len(targets), CPU_BLOCK[0] if on_cpu else DEVICE_BLOCK // columns), 1)
        threads = 1
        if on_cpu and min(len(targets), len(candidates)) >= (free := torch.get_num_threads()):
            threads = max(1, min(free, len(targets) * len(candidates) // THREAD_SCORES))
            rows, columns = (
                -(-size // count_pieces(size, most=most, threads=threads))
                for size, most in ((len(targets), rows), (len(candidates), columns))
            )

        def by_block(pairs: Pairs | None) -> _BlockPairs | None:
            if pairs is None or len(pairs) == 0:
                return None
            return _BlockPairs.make(pairs, len(targets), len(candidates), rows, columns, targets.device)

        weighted = by_block(unweighted) if log_weights is not None else None
        together = rows if on_cpu else max(len(targets), 1)
        return cls(rows, columns, together, threads, log_weights, weighted, by_block(excluded), window)

    def groups(self, num_targets: int) -> Iterator[slice]:
        """Yield the targets whose running sums are brought up to date together."""
        for first in range(0, num_targets, self.together):
            yield slice(first, min(first + self.together, num_targets))

    def blocks(
        self, targets: Tensor, chunk: Tensor, start: int, group: slice, buffers: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, probabilities within the block and logarithm of its sum, for each block of one chunk and group.

        The probabilities are overwritten by the next block's.
        """
        for first in range(group.start, group.stop, self.rows):
            rows = slice(first, min(first + self.rows, group.stop))
            scores, probabilities = (flat[: (rows.stop - first) * len(chunk)].view(-1, len(chunk)) for flat in buffers)
            torch.mm(targets[rows], chunk.T, out=scores)
            block = start // self.columns * -(-len(targets) // self.rows) + first // self.rows
            log_weights = self._weigh(scores, block, start)
            if self.window is not None:
                self.window.hide(scores, row=first, column=start)
            yield rows, probabilities, softmax_rows(scores, log_weights, out=probabilities)

    def _weigh(self, scores: Tensor, block: int, start: int) -> Tensor | None:
        """Take out of a block what is excluded; return the weights that are still to be added, if any.

        What is excluded stays so whatever is added to it.  An unweighted pair would not stay as it is.
        """
        flat = scores.view(-1)
        log_weights = None if self.log_weights is None else self.log_weights[start : start + scores.shape[1]]
        if log_weights is not None and self.unweighted is not None:
            places = self.unweighted.of(block)
            if len(places):
                kept = flat[places]
                scores.add_(log_weights)
                flat[places] = kept
                log_weights = None
        if self.excluded is not None:
            flat.index_fill_(0, self.excluded.of(block), _lowest(scores))
        return log_weights

    def share(self, work: Callable[[Sequence[_Piece]], None], pieces: Sequence[_Piece]) -> None:
        """Do some work on pieces that have nothing in common, a stretch of them in each thread."""
        bounds = [number * len(pieces) // self.threads for number in range(self.threads + 1)]
        map_pieces(work, [pieces[first:last] for first, last in pairwise(bounds)], threads=self.threads)

    def buffers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return room for the scores and the probabilities of a block: one and the same where that is fastest."""
        rooms = like.new_empty(1 if fuses(like) else 2, self.rows * self.columns)
        return rooms[0], rooms[-1]


def _lowest(like: Tensor) -> float:
    """Stands for -inf, which would make NaN of a block without a candidate; far enough from overflow to add to."""
    return torch.finfo(like.dtype).min / 4


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, targets: Tensor, candidates: Tensor, plan: _Plan, needs_mean: bool) -> Tensor:
        with torch.autocast(targets.device.type, enabled=False):
            total, mean = _accumulate(targets, candidates, plan, needs_mean=needs_mean)
        ctx.plan = plan
        ctx.save_for_backward(targets, candidates, total, mean)
        return total.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        targets, candidates, total, mean = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        with torch.autocast(targets.device.type, enabled=False):
            to_targets = mean * grad if ctx.needs_input_grad[0] else None
            to_candidates = None
            if ctx.needs_input_grad[1]:
                to_candidates = _candidate_gradient(targets, candidates, total, grad, ctx.plan)
        return to_targets, to_candidates, None, None


def _accumulate(targets: Tensor, candidates: Tensor, plan: _Plan, *, needs_mean: bool) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the sum, shape (targets, 1), and the mean candidate, shape (targets, dim) or empty."""
    total = targets.new_full((len(targets), 1), _lowest(targets))
    mean = torch.zeros_like(targets) if needs_mean else targets.new_empty(0)

    def add_up(groups: Sequence[slice]) -> None:
        buffers, group_mean = plan.buffers(targets), targets.new_empty(plan.together, targets.shape[1])
        for start in range(0, len(candidates), plan.columns):
            chunk = candidates[start : start + plan.columns].to(targets.dtype)
            for group in groups:
                block_totals = []
                for rows, probabilities, block_total in plan.blocks(targets, chunk, start, group, buffers):
                    block_totals.append(block_total)
                    if needs_mean:
                        torch.mm(
                            probabilities, chunk, out=group_mean[rows.start - group.start : rows.stop - group.start]
                        )
                before, here = total[group], torch.cat(block_totals)
                after = torch.logaddexp(before, here)
                if needs_mean:
                    shares = (before - after).exp(), (here - after).exp()
                    mean[group].mul_(shares[0]).addcmul_(group_mean[: len(after)], shares[1])
                total[group] = after

    plan.share(add_up, list(plan.groups(len(targets))))
    none = total <= _lowest(targets) / 2
    return total.masked_fill_(none, -torch.inf), mean.masked_fill_(none, 0.0) if needs_mean else mean


def _candidate_gradient(targets: Tensor, candidates: Tensor, total: Tensor, grad: Tensor, plan: _Plan) -> Tensor:
    """Score every block again and add up each candidate's share of the gradient, shape (candidates, dim)."""
    gradient = torch.zeros_like(candidates)
    scaled = targets * grad
    total = total.masked_fill(total.isneginf(), torch.inf)  # no candidate, no share

    def add_up(starts: Sequence[int]) -> None:
        buffers, every = plan.buffers(targets), slice(0, len(targets))
        for start in starts:
            part = slice(start, start + plan.columns)
            for rows, probabilities, block_total in plan.blocks(targets, candidates[part], start, every, buffers):
                share = (block_total - total[rows]).exp()
                gradient[part].addmm_(probabilities.T, scaled[rows] * share)

    plan.share(add_up, range(0, len(candidates), plan.columns))
    return gradient
