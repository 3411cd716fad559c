"""Contrastive loss between two views of the same items."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mmrec.objectives.terms import wide


def contrastive_loss(
    first: Float[Tensor, "pairs dim"],
    second: Float[Tensor, "pairs dim"],
    first_contents: Int[Tensor, " pairs"],
    second_contents: Int[Tensor, " pairs"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over cosines: each row finds its partner among the other rows, in both directions.

    Two rows that show the same caption or the same picture are not each other's negatives; 0 for fewer than two rows.
    (Radford et al. 2021, CLIP.)

    Args:
        first: shape (pairs, dim), any length of vector.
        second: shape (pairs, dim), row i of the same item as row i of ``first``.
        first_contents: shape (pairs,), which distinct content row i of ``first`` shows.
        second_contents: shape (pairs,), likewise.
        temperature: cosines are divided by it.
    """
    with torch.autocast(first.device.type, enabled=False):
        left, right = functional.normalize(wide(first), dim=1), functional.normalize(wide(second), dim=1)
        scores = left @ right.T / temperature
    shared = (first_contents.unsqueeze(1) == first_contents) | (second_contents.unsqueeze(1) == second_contents)
    others = shared.fill_diagonal_(False)
    scores = scores.masked_fill(others, -torch.inf)
    positive = scores.diagonal()
    losses = (torch.logsumexp(scores, 1) + torch.logsumexp(scores, 0)) / 2 - positive
    return losses.sum() / max(len(first), 1)
