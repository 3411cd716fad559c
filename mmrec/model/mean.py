"""The simplest user encoder: the mean of the items so far."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from mmrec.batch import UserBatch
from mmrec.model.instants import instant_ranks, mean_over, visible


class MeanUserEncoder(nn.Module):
    """Mean of all items up to and including the instant.  Nothing is learned."""

    def __init__(self) -> None:
        # Without this, torch's signature would let any argument pass the type checker.
        super().__init__()

    def forward(
        self, users: UserBatch, item_vectors: Float[Tensor, "users time dim"]
    ) -> Float[Tensor, "users time dim"]:
        """Return states of the scale of the other user encoders, coordinates about one."""
        seen = visible(instant_ranks(users), users.valid)
        return mean_over(seen, item_vectors) * math.sqrt(item_vectors.shape[2])
