"""Pairwise loss: a target's item above each sampled item."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mmrec.errors import ConfigError
from mmrec.objectives.negatives import Pairs
from mmrec.objectives.terms import Total, alone, own_scores, weighted_mean, wide


def bpr_loss(
    target_vectors: Float[Tensor, "targets dim"],
    item_embeddings: Float[Tensor, "items dim"],
    item_positions: Int[Tensor, " targets"],
    negatives: Int[Tensor, " negatives"],
    weight: Float[Tensor, " targets"],
    *,
    excluded: Pairs | None = None,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """``-log sigmoid(s_positive - s_negative)``, averaged over a target's negatives, then by weight over targets.

    A target none of whose negatives may be used does not count.  (Rendle et al. 2009.)

    Args:
        target_vectors: shape (targets, dim).
        item_embeddings: shape (items, dim).
        item_positions: shape (targets,), position of each target's item.
        negatives: shape (negatives,), positions of the sampled items; one that is a target's own item is left out.
        weight: shape (targets,).
        excluded: pairs of a target and an item position that is not its negative.
        total: makes a sum over these targets one over those of all processes, whose results then add up to the loss.

    Raises:
        ConfigError: there is no negative.
    """
    if len(negatives) == 0:
        raise ConfigError(
            "sampled negatives for BPR", got="none", where="objective.negatives", fix="Set it to 1 or more."
        )
    positive = own_scores(target_vectors, item_embeddings, item_positions)
    scores = negative_scores(target_vectors, item_embeddings, negatives)
    usable = usable_negatives(item_positions, negatives, excluded)
    losses = functional.softplus(scores - positive.unsqueeze(1)) * usable
    counts = usable.sum(1)
    return weighted_mean(losses.sum(1) / counts.clamp_min(1), weight * (counts > 0), total=total)


def negative_scores(
    target_vectors: Float[Tensor, "targets dim"],
    item_embeddings: Float[Tensor, "items dim"],
    negatives: Int[Tensor, " negatives"],
) -> Float[Tensor, "targets negatives"]:
    """Score every target against every sampled item, in float32 or wider whatever autocast says."""
    with torch.autocast(target_vectors.device.type, enabled=False):
        return wide(target_vectors) @ wide(item_embeddings.index_select(0, negatives)).T


def usable_negatives(
    item_positions: Int[Tensor, " targets"], negatives: Int[Tensor, " negatives"], excluded: Pairs | None = None
) -> Bool[Tensor, "targets negatives"]:
    """Return which sampled items are another item than the target's and not an excluded one."""
    usable = item_positions.unsqueeze(1) != negatives
    if excluded is None or len(negatives) == 0:
        return usable
    distinct, column = torch.unique(negatives, return_inverse=True)
    place = torch.searchsorted(distinct, excluded.item_index).clamp_max(len(distinct) - 1)
    met = Pairs(excluded.target_index, place).keep(distinct[place] == excluded.item_index)
    barred = usable.new_zeros(len(item_positions), len(distinct))
    barred[met.target_index, met.item_index] = True
    return usable & ~barred[:, column]
