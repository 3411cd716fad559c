"""Pointwise losses: the score of a target's item against the value of its event."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mmrec.errors import FeedError
from mmrec.objectives.terms import weighted_mean, wide


def bce_loss(
    scores: Float[Tensor, " targets"],
    values: Float[Tensor, " targets"],
    weight: Float[Tensor, " targets"],
    *,
    negative_scores: Float[Tensor, "targets negatives"] | None = None,
    usable: Bool[Tensor, "targets negatives"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross entropy of scores (logits) against values in [0, 1], averaged by weight; NaN does not count.

    Args:
        scores: shape (targets,), of each target's own item.
        values: shape (targets,), for example 1 for a click and 0 for none; NaN where unknown.
        weight: shape (targets,).
        negative_scores: shape (targets, negatives), of sampled items, each a value of 0: a target's loss is the mean
            over its own item and its usable negatives.
        usable: shape (targets, negatives), which of them count; None for all.

    Raises:
        FeedError: no value is known, or one is outside [0, 1].
    """
    known = _known(values, "bce")
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
    return weighted_mean(losses, weight * known)


def mse_loss(
    scores: Float[Tensor, " targets"], values: Float[Tensor, " targets"], weight: Float[Tensor, " targets"]
) -> Float[Tensor, ""]:
    """Squared difference of scores and values, averaged by weight; a NaN value does not count.

    Args:
        scores: shape (targets,), of each target's own item.
        values: shape (targets,), for example a rating; NaN where unknown.
        weight: shape (targets,).

    Raises:
        FeedError: no value is known.
    """
    known = _known(values, "mse")
    scores = wide(scores)
    labels = torch.where(known, values, 0.0).to(scores.dtype)
    return weighted_mean((scores - labels).square(), weight * known)


def _known(values: Tensor, kind: str) -> Tensor:
    known = ~values.isnan()
    if len(values) and not bool(known.any()):
        raise FeedError(
            f"events with a value for the loss {kind!r}",
            got=f"{len(values)} events without one",
            where="column value of interactions",
            fix="Prepare the feed with a value column, or choose another objective.kind.",
        )
    return known
