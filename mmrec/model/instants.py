"""Who sees whom in a history: pure functions of ``UserBatch``.

Events of one instant have no order.  The state after an instant knows the whole instant as a set, everything before
it, and nothing after it; targets are predicted from states of strictly earlier instants.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.batch import UserBatch

GAP_BUCKETS = 33
"""Buckets of ``gap_buckets``: 0 for unknown, then one for each doubling of seconds."""


def instant_ranks(users: UserBatch) -> Int[Tensor, "users time"]:
    """Return each slot's instant counted from the first slot of the window, 0, 1, 2, ... without gaps."""
    changes = users.instants[:, 1:] != users.instants[:, :-1]
    first = torch.zeros_like(users.instants[:, :1])
    return torch.cat([first, changes.to(first.dtype).cumsum(dim=1)], dim=1)


def visible(ranks: Int[Tensor, "users time"], valid: Bool[Tensor, "users time"]) -> Bool[Tensor, "users time time"]:
    """Return whether slot i may see slot j: a real event of the same or an earlier instant."""
    return valid.unsqueeze(1) & (ranks.unsqueeze(1) <= ranks.unsqueeze(2))


def simultaneous(
    ranks: Int[Tensor, "users time"], valid: Bool[Tensor, "users time"]
) -> Bool[Tensor, "users time time"]:
    """Return whether slot j is a real event of slot i's instant."""
    return valid.unsqueeze(1) & (ranks.unsqueeze(1) == ranks.unsqueeze(2))


def mean_over(
    seen: Bool[Tensor, "users time time"], values: Float[Tensor, "users time dim"]
) -> Float[Tensor, "users time dim"]:
    """Average for each slot the values of the slots it sees; zero where it sees none."""
    weights = seen.to(values.dtype)
    return (weights / weights.sum(dim=2, keepdim=True).clamp(min=1)) @ values


def gap_buckets(
    timestamps: Int[Tensor, "users time"], ranks: Int[Tensor, "users time"], valid: Bool[Tensor, "users time"]
) -> Int[Tensor, "users time"]:
    """Return 1 + floor(log2(1 + seconds)) since the previous instant, 0 for the window's first instant.

    The time of an instant is that of its earliest event, so that all its events get the same bucket.
    """
    latest = torch.iinfo(timestamps.dtype).max
    starts = torch.full_like(timestamps, latest).scatter_reduce(
        1, ranks, timestamps.masked_fill(~valid, latest), reduce="amin"
    )
    gaps = starts.gather(1, ranks) - starts.gather(1, (ranks - 1).clamp(min=0))
    known = valid & (ranks > 0)
    seconds = gaps.where(known, 0).clamp(min=0) // 1000
    doublings = 2 ** torch.arange(1, GAP_BUCKETS - 1, device=seconds.device)
    return (1 + torch.bucketize(seconds + 1, doublings, right=True)).where(known, 0)
