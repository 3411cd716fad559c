"""Captions end to end through a transformer: products run over the tokens of all, attention within each.

There is no padding and there are no buckets, whose small products leave a processor half idle; on a CPU a few captions
take half the time.  A caption's states do not depend on its neighbours: each product has the same rows whatever else it
holds, and captions of one length attend together.  In one thread of a processor with AVX-512 that is so to the last bit;
with AVX2 the last rows of a product are added up in another order, and so may be those that several threads share out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmrec.encoders.buckets import SMALL_PRODUCT
from mmrec.encoders.pieces import run_pieces
from mmrec.encoders.work import EncodingWork
from mmrec.threads import count_pieces

TOKENS_AT_ONCE = 1 << 12
"""Of a CPU: what a block makes of more tokens leaves its caches."""
TOKENS_FOR_A_THREAD = 1 << 9
"""Tokens that are worth a thread of their own."""
RunPacked = Callable[[Tensor, npt.NDArray[np.int64]], Tensor]
"""From what is known of each token of some captions, shape (total, ...), and their lengths to states, (total, dim)."""


@dataclass(frozen=True)
class Packing:
    """Where captions lie that are end to end.

    Args:
        lengths: shape (captions,), at least 1 each.
        groups: rows of the tokens of all captions of one length, shape (captions of it, length).
        back: shape (total,), where each token is once groups lie end to end.
    """

    lengths: npt.NDArray[np.int64]
    groups: tuple[Int[Tensor, "_ _"], ...]
    back: Int[Tensor, " total"]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> Packing:
        """Group captions by length."""
        starts = np.cumsum(lengths) - lengths
        groups = [starts[lengths == length, None] + np.arange(length) for length in np.unique(lengths)]
        order = np.concatenate([group.reshape(-1) for group in groups])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return cls(lengths, tuple(map(torch.from_numpy, groups)), torch.from_numpy(back))

    def positions(self, *, first: int) -> Int[Tensor, "1 total"]:
        """Return the place of each token in its caption; the first has number ``first``."""
        starts = np.cumsum(self.lengths) - self.lengths
        places = np.arange(self.lengths.sum()) - np.repeat(starts, self.lengths) + first
        return torch.from_numpy(places).unsqueeze(0)

    def attend(
        self,
        query: Float[Tensor, "1 heads total inner"],
        key: Float[Tensor, "1 heads total inner"],
        value: Float[Tensor, "1 heads total inner"],
        *,
        scaling: float | None,
    ) -> Float[Tensor, "1 total heads inner"]:
        """Let every token see those of its caption."""
        rows = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]
        found = []
        for group in self.groups:
            asking, asked, told = (states[group].transpose(1, 2) for states in rows)
            attended = scaled_dot_product_attention(asking, asked, told, scale=scaling)
            found.append(attended.transpose(1, 2).flatten(0, 1))
        return torch.cat(found).index_select(0, self.back).unsqueeze(0)


_PACKING: ContextVar[Packing | None] = ContextVar("packing", default=None)


def current_packing() -> Packing | None:
    """Return how the captions lie that the calling thread is running, None where they are padded."""
    return _PACKING.get()


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """Tell a model's masks, and through them its attention, how captions lie."""
    token = _PACKING.set(packing)
    try:
        yield
    finally:
        _PACKING.reset(token)


def run_packed(
    values: Tensor,
    lengths: Int[Tensor, " captions"],
    *,
    run: RunPacked,
    dim: int,
    work: EncodingWork,
    max_tokens: int | None = None,
    threads: int = 1,
) -> Float[Tensor, "total dim"]:
    """Run captions through a network, as many at once as suits a processor.

    Args:
        values: shape (total, ...), tokens or what blocks made of them, captions end to end.
        lengths: of the captions, on the CPU.
        run: takes those of some captions and their lengths, gives states.
        dim: width of the states.
        work: counts what was run.
        max_tokens: bound on the tokens of one run; a single longer caption still makes a run.
        threads: that are free for it.

    Returns:
        States in the order of ``values``.
    """
    sizes = lengths.numpy().astype(np.int64)
    if not len(sizes):
        return torch.zeros(0, dim, device=values.device)
    work.add(real_tokens=int(sizes.sum()), padded_tokens=int(sizes.sum()))
    ends = np.cumsum(sizes)
    stops = _cut(sizes, most=max_tokens or TOKENS_AT_ONCE, threads=threads)

    def piece(captions: slice) -> Tensor:
        some, first = sizes[captions], int(ends[captions.start] - sizes[captions.start])
        total = int(some.sum())
        # Few rows would take other code paths.
        repeats = -(-SMALL_PRODUCT // total)
        return run(torch.cat([values[first : first + total]] * repeats), np.tile(some, repeats))[:total]

    return torch.cat(run_pieces(piece, [slice(*pair) for pair in pairwise([0, *stops])], threads=threads))


def _cut(sizes: npt.NDArray[np.int64], *, most: int, threads: int) -> list[int]:
    """Return where pieces of captions in a row end, of at most so many tokens each, or of one caption.

    Of several threads each gets equally many, if there is enough for all.
    """
    ends, stops = np.cumsum(sizes), [0]
    total, longest = int(ends[-1]), int(sizes.max())
    if threads > 1 and longest < most:
        # A piece ends with the caption in which its share of the tokens does.
        count = count_pieces(total, most=most - longest, least=TOKENS_FOR_A_THREAD, threads=threads)
        if count >= threads:
            shares = total * np.arange(1, count + 1) / count
            return [int(stop) for stop in np.unique(np.searchsorted(ends, shares) + 1)]
    while stops[-1] < len(sizes):
        before = int(ends[stops[-1] - 1]) if stops[-1] else 0
        stops.append(max(stops[-1] + 1, int(np.searchsorted(ends, before + most, side="right"))))
    return stops[1:]
