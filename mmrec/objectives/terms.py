"""What every loss is made of: the score of a target's own item, and a weighted mean over targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""A sum over this process's targets to the sum over all processes' targets, without a gradient."""


def alone(value: Tensor) -> Tensor:
    """Return ``value``: the total where there is one process."""
    return value


def wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return at least float32: half-precision scores are too coarse for a logarithm of their sum."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def own_scores(
    target_vectors: Float[Tensor, "targets dim"],
    item_embeddings: Float[Tensor, "items dim"],
    item_positions: Int[Tensor, " targets"],
) -> Float[Tensor, " targets"]:
    """Score each target's user vector against the target's item, in float32 or wider."""
    return (wide(target_vectors) * wide(item_embeddings.index_select(0, item_positions))).sum(1)


def weighted_mean(
    values: Float[Tensor, " targets"], weight: Float[Tensor, " targets"], *, total: Total = alone
) -> Float[Tensor, ""]:
    """Average ``values`` by ``weight`` (not negative); 0 where there is no weight at all.

    With several processes it is this one's summand: all of them together give the average over all targets.
    """
    weight = weight.to(values.dtype)
    return (values * weight).sum() / total(weight.sum()).clamp_min(torch.finfo(values.dtype).tiny)
