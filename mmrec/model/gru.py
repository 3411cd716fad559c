"""Recurrent user encoder: one step for each instant."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrec.batch import UserBatch
from mmrec.model.dropout import Dropout
from mmrec.model.instants import instant_ranks, mean_over, simultaneous, visible
from mmrec.model.user_encoder import EventFeatures


class GruUserEncoder(nn.Module):
    """A GRU over the means of the instants (GRU4Rec: Hidasi et al., 2016), beside the items themselves.

    Args:
        dim: width.
        num_layers: layers of the GRU.
        dropout: dropout on its inputs.
        num_events: names of events; 0 ignores them.
        time_gaps: embed the time since the previous instant.
    """

    def __init__(
        self, *, dim: int, num_layers: int = 1, dropout: float = 0.0, num_events: int = 0, time_gaps: bool = False
    ) -> None:
        super().__init__()
        self.features = EventFeatures(dim=dim, num_events=num_events, time_gaps=time_gaps)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(dim, dim, num_layers=num_layers, batch_first=True)
        self.output = nn.Linear(dim, dim)
        self.recent = nn.Parameter(torch.ones(dim))
        self.habit = nn.Parameter(torch.full((dim,), 0.5))

    def forward(
        self, users: UserBatch, item_vectors: Float[Tensor, "users time dim"]
    ) -> Float[Tensor, "users time dim"]:
        """Return states, coordinates about one."""
        items = item_vectors * math.sqrt(item_vectors.shape[2])
        ranks = instant_ranks(users)
        instant = simultaneous(ranks, users.valid)
        inputs = mean_over(instant, self.dropout(self.features(users, ranks, items)))
        # One step an instant: pick the first slot of each.  Steps past the last instant repeat it; nobody reads them.
        steps = torch.arange(ranks.shape[1], device=ranks.device, dtype=ranks.dtype).expand_as(ranks)
        first = torch.searchsorted(ranks, steps.contiguous()).clamp(max=ranks.shape[1] - 1)
        after: Tensor = self.gru(_pick(inputs, first))[0]
        skip = self.recent * mean_over(instant, items) + self.habit * mean_over(visible(ranks, users.valid), items)
        return torch.add(self.output(_pick(after, ranks)), skip)


def _pick(values: Float[Tensor, "users time dim"], slots: Tensor) -> Float[Tensor, "users time dim"]:
    return values.gather(1, slots.unsqueeze(2).expand_as(values))
