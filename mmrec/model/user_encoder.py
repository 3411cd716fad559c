"""User encoders: the items of a history to a state after each of its instants."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmrec.batch import UserBatch
from mmrec.model.instants import GAP_BUCKETS, gap_buckets


@runtime_checkable
class UserEncoder(Protocol):
    """Histories to states.

    The state at a slot knows its whole instant as a set and everything earlier, and nothing later: all slots of an
    instant have the same state.  States at slots that are not valid are finite and mean nothing.
    """

    def __call__(self, users: UserBatch, item_vectors: Float[Tensor, "users time dim"]) -> Tensor:
        """Return states, shape (users, time, dim), from item vectors of norm about one."""
        ...


class EventFeatures(nn.Module):
    """What a slot knows beside its item: the event's name and the time since the previous instant.

    Args:
        dim: width.
        num_events: names of events; 0 ignores them.  Codes out of range share one vector.
        time_gaps: use timestamps where the batch has them.
    """

    def __init__(self, *, dim: int, num_events: int = 0, time_gaps: bool = False) -> None:
        super().__init__()
        self.events = small_embedding(num_events + 1, dim) if num_events else None
        self.gaps = small_embedding(GAP_BUCKETS, dim) if time_gaps else None

    def forward(
        self, users: UserBatch, ranks: Int[Tensor, "users time"], values: Float[Tensor, "users time dim"]
    ) -> Float[Tensor, "users time dim"]:
        """Add the features to ``values``."""
        if self.events is not None and users.events is not None:
            num_events = self.events.num_embeddings - 1
            known = (users.events >= 0) & (users.events < num_events)
            values = values + self.events(torch.where(known, users.events, num_events))
        if self.gaps is not None and users.timestamps is not None:
            values = values + self.gaps(gap_buckets(users.timestamps, ranks, users.valid))
        return values


def small_embedding(count: int, dim: int) -> nn.Embedding:
    """Return an embedding that starts small beside coordinates of about one."""
    embedding = nn.Embedding(count, dim)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding
