"""Softmax losses: over the whole catalogue, and over the items of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.objectives.logsumexp import Window, weighted_logsumexp
from mmrec.objectives.negatives import Pairs
from mmrec.objectives.terms import Total, alone, own_scores, weighted_mean


def full_softmax_loss(
    target_vectors: Float[Tensor, "targets dim"],
    item_embeddings: Float[Tensor, "items dim"],
    item_rows: Int[Tensor, " items"],
    item_positions: Int[Tensor, " targets"],
    bank: Float[Tensor, "catalogue dim"] | None,
    weight: Float[Tensor, " targets"],
    *,
    chunk: int,
    eligible: Bool[Tensor, " catalogue"] | None = None,
    excluded: Pairs | None = None,
    first_seen: Int[Tensor, " catalogue"] | None = None,
    target_times: Int[Tensor, " targets"] | None = None,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """Cross entropy of each target's item against the whole catalogue, averaged by weight.

    A batch's items are scored by their fresh vectors and every other row of the catalogue by the bank's.  Where every
    row is fresh, this is the dense softmax exactly.  Memory is bounded by ``chunk``, not by the catalogue.

    Args:
        target_vectors: shape (targets, dim).
        item_embeddings: shape (items, dim), fresh vectors of distinct items.
        item_rows: shape (items,), their rows in the catalogue, all >= 0.
        item_positions: shape (targets,), position of each target's item among the fresh ones.
        bank: shape (catalogue, dim), a vector for every row, detached or not; None where every row is fresh.
        weight: shape (targets,).
        chunk: candidates scored at once, at most.
        eligible: shape (catalogue,), rows of the bank that count (items held out of training must not); None for all.
            Fresh items always count.
        excluded: pairs of a target and the position of a *fresh* item that is not its negative, never its own.
        first_seen: shape (catalogue,), time from which each row existed; with ``target_times``, what did not exist yet
            is no negative.
        target_times: shape (targets,), time at which each target was chosen.
        total: makes a sum over these targets one over those of all processes, whose results then add up to the loss.
    """
    fresh_window = stored_window = None
    if first_seen is not None and target_times is not None:
        since = first_seen[item_rows]
        until = torch.maximum(target_times, since[item_positions])  # what was chosen did exist
        fresh_window, stored_window = Window(since, until), Window(first_seen, until)
    normaliser = weighted_logsumexp(
        target_vectors, item_embeddings, chunk=chunk, excluded=excluded, window=fresh_window
    )
    if bank is not None:
        log_weights = torch.zeros(len(bank), dtype=normaliser.dtype, device=normaliser.device)
        if eligible is not None:
            log_weights.masked_fill_(~eligible, -torch.inf)
        log_weights[item_rows] = -torch.inf
        rest = weighted_logsumexp(target_vectors, bank, chunk=chunk, log_weights=log_weights, window=stored_window)
        normaliser = torch.logaddexp(normaliser, rest)
    own = own_scores(target_vectors, item_embeddings, item_positions)
    return weighted_mean(normaliser - own, weight, total=total)


def in_batch_softmax_loss(
    target_vectors: Float[Tensor, "targets dim"],
    item_embeddings: Float[Tensor, "items dim"],
    item_positions: Int[Tensor, " targets"],
    log_inclusion: Float[Tensor, " items"],
    weight: Float[Tensor, " targets"],
    *,
    chunk: int,
    certain: Pairs | None = None,
    excluded: Pairs | None = None,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """Cross entropy against the batch's distinct items, corrected for how likely each was to be there.

    The denominator is ``exp(s_positive) + sum over other items j of exp(s_j) / p_j``, whose mean over batches is the
    sum over all items; the positive is not corrected.  (Idea: logQ correction, Bengio and Senecal 2008; Yi et al. 2019.)

    Args:
        target_vectors: shape (targets, dim).
        item_embeddings: shape (items, dim), distinct items.
        item_positions: shape (targets,), position of each target's item.
        log_inclusion: shape (items,), log p_j for a user who does not hold the item; see ``log_inclusion_probability``.
        weight: shape (targets,).
        chunk: candidates scored at once, at most.
        certain: pairs of a target and the position of an item that its own user brings along, so that p is 1: its own
            item, and those of the user's history; None for its own alone.
        excluded: pairs of a target and the position of an item that is not its negative, never its own.
        total: makes a sum over these targets one over those of all processes, whose results then add up to the loss.
    """
    if certain is None:
        certain = Pairs(torch.arange(len(item_positions), device=item_positions.device), item_positions)
    # An item that only its own user can bring has p = 0 for all others; it is never used, but must not make NaN.
    log_weights = -log_inclusion.clamp_min(-80.0)
    normaliser = weighted_logsumexp(
        target_vectors, item_embeddings, chunk=chunk, log_weights=log_weights, unweighted=certain, excluded=excluded
    )
    losses = normaliser - own_scores(target_vectors, item_embeddings, item_positions)
    return weighted_mean(losses, weight, total=total)
