"""Which items count as negatives, and how likely each of them was to be there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a target and an item; repetitions are harmless.

    They may lie on the CPU where the scores are on a device, which spares the host to wait for their numbers.

    Args:
        target_index: shape (pairs,).
        item_index: shape (pairs,), a position among the items that are scored.
    """

    target_index: Int[Tensor, " pairs"]
    item_index: Int[Tensor, " pairs"]

    def __len__(self) -> int:
        return len(self.target_index)

    def keep(self, kept: Bool[Tensor, " pairs"]) -> Pairs:
        """Return the pairs where ``kept`` is True."""
        return Pairs(self.target_index[kept], self.item_index[kept])

    def without_own(self, item_positions: Int[Tensor, " targets"]) -> Pairs:
        """Return the pairs but those of a target and its own item, given each target's position of it."""
        return self.keep(self.item_index != item_positions[self.target_index])


def log_inclusion_probability(
    users_with_item: Int[Tensor, " items"],
    *,
    num_users: int,
    batch_users: int,
    negatives: int = 0,
    num_items: int = 1,
) -> Float[Tensor, " items"]:
    """Logarithm of :func:`inclusion_probability`, float64; ``-inf`` where an item cannot be there."""
    counts = users_with_item.to(torch.int64)
    others = num_users - 1
    steps = torch.arange(max(int(counts.max()), 1) if len(counts) else 1, dtype=torch.float64, device=counts.device)
    # C(U-1-n, B-1) / C(U-1, B-1) is the product over k < n of (U-B-k) / (U-1-k).  Summing log1p keeps every digit
    # where differences of lgamma lose them all to feeds of 10^8 users.
    missing = torch.log1p(-((batch_users - 1) / (others - steps)).clamp(0.0, 1.0)).cumsum(0)
    missing = torch.where(steps < others - batch_users + 1, missing, -torch.inf)
    log_missing = torch.cat([missing.new_zeros(1), missing])[counts]
    if negatives:
        undrawn = torch.tensor(1.0 - min(negatives / num_items, 1.0), dtype=torch.float64, device=counts.device)
        log_missing = log_missing + undrawn.log()
    return torch.log(-torch.expm1(log_missing))


def inclusion_probability(
    users_with_item: Int[Tensor, " items"],
    *,
    num_users: int,
    batch_users: int,
    negatives: int = 0,
    num_items: int = 1,
) -> Float[Tensor, " items"]:
    """Probability that an item is in a batch, given that a user who does not hold it is.

    ``1 - (1 - p) (1 - m / N)`` with ``p = 1 - C(U-1-n, B-1) / C(U-1, B-1)``: the batch's users are drawn without
    replacement, and so are the further negatives.

    Args:
        users_with_item: shape (items,), n, users whose window holds the item.
        num_users: U, users that batches are drawn from.
        batch_users: B, users of a batch.
        negatives: m, items drawn uniformly beside them.
        num_items: N, items that these are drawn from.
    """
    return log_inclusion_probability(
        users_with_item,
        num_users=num_users,
        batch_users=batch_users,
        negatives=negatives,
        num_items=num_items,
    ).exp()


def exclusion_pairs(
    history_items: Int[Tensor, "users time"],
    valid: Bool[Tensor, "users time"],
    instants: Int[Tensor, "users time"],
    user_index: Int[Tensor, " targets"],
    time_index: Int[Tensor, " targets"],
) -> Pairs:
    """Pair each target with the items of its own history: what its user chose up to the state that predicts it.

    Args:
        history_items: shape (users, time), positions or catalogue rows; the pairs hold whichever was given.
        valid: shape (users, time), True where the slot is a real event.
        instants: shape (users, time), non-decreasing rank of each slot's instant.
        user_index: shape (targets,), row of each target's user.
        time_index: shape (targets,), slot whose state predicts the target, -1 where nothing precedes it; the rest of
            the slot's instant counts as past.
    """
    now = instants[user_index, time_index].unsqueeze(1)
    past = valid[user_index] & (instants[user_index] <= now) & (time_index >= 0).unsqueeze(1)
    target_index, slots = past.nonzero(as_tuple=True)
    return Pairs(target_index, history_items[user_index[target_index], slots])


def window_pairs(
    item_positions: Int[Tensor, "users time"],
    valid: Bool[Tensor, "users time"],
    user_index: Int[Tensor, " targets"],
    target_positions: Int[Tensor, " targets"],
) -> Pairs:
    """Pair each target with every item that its user brings into the batch: the history and all of its targets.

    Args:
        item_positions: shape (users, time), positions in the batch's items.
        valid: shape (users, time), True where the slot is a real event.
        user_index: shape (targets,), row of each target's user.
        target_positions: shape (targets,), position of each target's item.
    """
    num_users = len(item_positions)
    owners = torch.cat([valid.nonzero()[:, 0], user_index])
    items = torch.cat([item_positions[valid], target_positions])
    width = int(items.max()) + 1 if len(items) else 1
    held = torch.unique(owners * width + items)
    owners, items = held // width, held % width
    counts = torch.bincount(owners, minlength=num_users)
    starts = counts.cumsum(0) - counts
    lengths = counts[user_index]
    target_index = torch.repeat_interleave(torch.arange(len(user_index), device=items.device), lengths)
    within = torch.arange(len(target_index), device=items.device) - (lengths.cumsum(0) - lengths)[target_index]
    return Pairs(target_index, items[starts[user_index][target_index] + within])
