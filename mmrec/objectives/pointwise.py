"""Pointwise losses: the score of a target's item against the value of its event."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mmrec.errors import FeedError
from mmrec.objectives.terms import Total, alone, weighted_mean, wide


def bce_loss(
    scores: Float[Tensor, " targets"],
    values: Float[Tensor, " targets"],
    weight: Float[Tensor, " targets"],
    *,
    negative_scores: Float[Tensor, "targets negatives"] | None = None,
    usable: Bool[Tensor, "targets negatives"] | None = None,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """Binary cross entropy of scores (logits) against values in [0, 1], averaged by weight; NaN does not count.

    Args:
        scores: shape (targets,), of each target's own item.
        values: shape (targets,), for example 1 for a click and 0 for none; NaN where unknown.
        weight: shape (targets,).
        negative_scores: shape (targets, negatives), of sampled items, each a value of 0: a target's loss is the mean
            over its own item and its usable negatives.
        usable: shape (targets, negatives), which of them count; None for all.
        total: makes a sum over these targets one over those of all processes, whose results then add up to the loss.

    Raises:
        FeedError: no value is known, or one is outside [0, 1].
    """
    known = _known(values, "bce", total)
    if bool(((values < 0) | (values > 1)).any()):
        low, high = float(values[known].min()), float(values[known].max())
        raise FeedError(
            "values between 0 and 1 for the loss 'bce'",
            got=f"values from {low:g} to {high:g}",
            where="column value",
            fix="Rescale them, or set objective.kind to mse.",
        )
    scores = wide(scores)
    labels = torch.where(known, values, 0.0).to(scores.dtype)
    losses = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    if negative_scores is not None:
        zeros = functional.softplus(wide(negative_scores))
        kept = torch.ones_like(zeros, dtype=torch.bool) if usable is None else usable
        losses = (losses + (zeros * kept).sum(1)) / (1 + kept.sum(1))
    return weighted_mean(losses, weight * known, total=total)


def mse_loss(
    scores: Float[Tensor, " targets"],
    values: Float[Tensor, " targets"],
    weight: Float[Tensor, " targets"],
    *,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """Squared difference of scores and values, averaged by weight; a NaN value does not count.

    Args:
        scores: shape (targets,), of each target's own item.
        values: shape (targets,), for example a rating; NaN where unknown.
        weight: shape (targets,).
        total: makes a sum over these targets one over those of all processes, whose results then add up to the loss.

    Raises:
        FeedError: no value is known.
    """
    known = _known(values, "mse", total)
    scores = wide(scores)
    labels = torch.where(known, values, 0.0).to(scores.dtype)
    return weighted_mean((scores - labels).square(), weight * known, total=total)


def _known(values: Tensor, kind: str, total: Total) -> Tensor:
    known = ~values.isnan()
    # All processes raise or none: one that goes on alone would wait for the others.
    counts = total(torch.stack([known.sum(), known.new_tensor(len(values), dtype=torch.int64)]))
    if counts[1] and not counts[0]:
        raise FeedError(
            f"events with a value for the loss {kind!r}",
            got=f"{int(counts[1])} events without one",
            where="column value of interactions",
            fix="Prepare the feed with a value column, or choose another objective.kind.",
        )
    return known
