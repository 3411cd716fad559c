"""Ragged rows through a network that wants rectangles: bucketed by length, padded little, laid end to end again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.encoders.work import EncodingWork
from mmrec.host import on_device

SLACK_SHARE = 0.1
SLACK_TOKENS, SLACK_TOKENS_ON_DEVICE = 64, 4096
"""A bucket may hold this share of padding, or this many padded tokens: very small buckets cost more than padding.  A
device works such tokens off while the host is still starting the small operations that one more bucket takes."""
TOKENS_AT_ONCE, TOKENS_AT_ONCE_ON_DEVICE = 1 << 14, 1 << 17
"""Tokens of a bucket at most, padding included."""
STEP = 4
SMALL_PRODUCT = 16
"""Matrix products with fewer rows than this take other code paths on a CPU with AVX-512, which differ in the last bit."""


def plan_buckets(
    lengths: npt.NDArray[np.int64], *, max_tokens: int, slack_tokens: int = SLACK_TOKENS
) -> list[npt.NDArray[np.int64]]:
    """Split rows into buckets of similar length, longest first.

    Args:
        lengths: shape (rows,), all >= 1.
        max_tokens: most tokens of one bucket, padding included; a single longer row still makes a bucket.
        slack_tokens: padded tokens that every bucket may hold.

    Returns:
        Row numbers of each bucket, the longest row of each first.
    """
    order = np.argsort(-lengths, kind="stable")
    buckets: list[npt.NDArray[np.int64]] = []
    start, real, ordered = 0, 0, lengths[order].tolist()
    for end, length in enumerate(ordered):
        padded = ordered[start] * (end - start + 1)
        padding = padded - real - length
        if end > start and (padded > max_tokens or padding > max(slack_tokens, SLACK_SHARE * padded)):
            buckets.append(order[start:end])
            start, real = end, 0
        real += length
    if len(order):
        buckets.append(order[start:])
    return buckets


def plan_exact(lengths: npt.NDArray[np.int64], *, max_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Split rows into buckets whose padded length is each row's own length, rounded up to a multiple of ``STEP``.

    Sums over a row then run over the same numbers in the same order whatever its neighbours are, which is what makes
    a frozen trunk's output the same to the last bit in a cache and in a live run (in one thread of a CPU with AVX-512;
    elsewhere rounding to half precision turns differences of 1e-6 into differences of 1e-3, in two of a thousand values).

    Args:
        lengths: shape (rows,), all >= 1.
        max_tokens: most tokens of one bucket, padding included; a single longer row still makes a bucket.
    """
    widths = _round_up(lengths)
    buckets = []
    for width in np.unique(widths)[::-1]:
        rows = np.flatnonzero(widths == width)
        size = max(1, max_tokens // int(width))
        buckets += [rows[start : start + size] for start in range(0, len(rows), size)]
    return buckets


def run_ragged(
    values: Tensor,
    lengths: Int[Tensor, " rows"],
    *,
    run: Callable[[Tensor, Bool[Tensor, "batch time"] | None], Tensor],
    dim: int,
    work: EncodingWork,
    max_tokens: int | None = None,
    longest: int | None = None,
) -> Float[Tensor, "total dim"]:
    """Run a network over ragged rows, bucket by bucket.

    Args:
        values: shape (total, ...), rows end to end.
        lengths: shape (rows,), on the CPU.
        run: takes padded rows and a mask that is True at real tokens (None where there is no padding) and gives
            states of shape (batch, time, dim).
        dim: width of the states.
        work: counts what was run.
        max_tokens: bound on one bucket; None for what suits the device.
        longest: longest row the network takes; given, rows are bucketed as :func:`plan_exact` says.

    Returns:
        States in the order of ``values``.  Padding holds copies of real tokens, so nothing undefined is ever computed.
    """
    sizes = lengths.numpy().astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    exact, on_cpu = longest is not None, values.device.type == "cpu"
    most = max_tokens or (TOKENS_AT_ONCE if on_cpu else TOKENS_AT_ONCE_ON_DEVICE)
    slack = SLACK_TOKENS if on_cpu else SLACK_TOKENS_ON_DEVICE
    plan = plan_exact(sizes, max_tokens=most) if exact else plan_buckets(sizes, max_tokens=most, slack_tokens=slack)
    if not plan:
        return torch.zeros(0, dim, device=values.device)
    indices, masks, slots, places, first = [], [], [], [], 0
    for rows in plan:
        width = int(sizes[rows].max())
        width = width if longest is None else min(int(_round_up(np.asarray(width))), longest)
        valid = np.arange(width) < sizes[rows, None]
        index = starts[rows, None] + np.where(valid, np.arange(width), 0)
        repeats = -(-SMALL_PRODUCT // index.size) if exact and on_cpu else 1
        indices.append(np.tile(index, (repeats, 1)))
        masks.append(np.tile(valid, (repeats, 1)))
        slots.append(first + np.flatnonzero(valid))
        places.append(index[valid])
        first += index.size
        work.add(real_tokens=int(valid.sum()), padded_tokens=valid.size)
    back = np.empty(int(sizes.sum()), np.int64)
    back[np.concatenate(places)] = np.concatenate(slots)
    there = on_device(values.device, *map(torch.from_numpy, (back, *indices, *masks)))
    pieces = []
    for rows, places_there, mask, hidden in zip(
        plan, there[1 : len(plan) + 1], there[len(plan) + 1 :], [not mask.all() for mask in masks], strict=True
    ):
        padded = values.index_select(0, places_there.flatten()).view(*places_there.shape, *values.shape[1:])
        pieces.append(run(padded, mask if hidden else None)[: len(rows)].flatten(0, 1))
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).index_select(0, there[0])


def _round_up(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.asarray(-(-lengths // STEP) * STEP)
