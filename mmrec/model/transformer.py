"""Causal transformer over a history, blind to order within an instant."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmrec.batch import UserBatch
from mmrec.model.dropout import Dropout
from mmrec.model.instants import instant_ranks, mean_over, simultaneous, visible
from mmrec.model.user_encoder import EventFeatures, small_embedding
from mmrec.model.user_layers import TransformerLayer


class TransformerUserEncoder(nn.Module):
    """Pre-norm transformer with a mask by instants (after SASRec: Kang and McAuley, 2018).

    Histories use the item vectors that the score compares with, so repeating an item means copying its vector: the
    output starts as the identity, branches start small, and the mean of the history joins by a learned weight.  At the
    start the state is therefore "like the last instant, and a little like everything before".

    Args:
        dim: width.
        num_layers: layers.
        num_heads: attention heads.
        max_length: instants that have a position of their own; later ones share the last.
        dropout: dropout on inputs, attention and feed-forward.
        num_events: names of events; 0 ignores them.
        time_gaps: embed the time since the previous instant.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int = 2,
        num_heads: int = 4,
        max_length: int = 50,
        dropout: float = 0.0,
        num_events: int = 0,
        time_gaps: bool = False,
    ) -> None:
        super().__init__()
        self.positions = small_embedding(max_length, dim)
        self.features = EventFeatures(dim=dim, num_events=num_events, time_gaps=time_gaps)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim=dim, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        nn.init.eye_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.habit = nn.Parameter(torch.full((dim,), 0.5))

    def forward(
        self, users: UserBatch, item_vectors: Float[Tensor, "users time dim"]
    ) -> Float[Tensor, "users time dim"]:
        """Return states, coordinates about one."""
        items = item_vectors * math.sqrt(item_vectors.shape[2])
        ranks = instant_ranks(users)
        seen = visible(ranks, users.valid)
        # A slot that sees nothing (padding) looks at itself, or its softmax would be of nothing.
        allowed = seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        hidden_score = torch.zeros_like(allowed, dtype=items.dtype).masked_fill(~allowed, float("-inf")).unsqueeze(1)
        ages = (ranks.unsqueeze(2) - ranks.unsqueeze(1)).clamp(min=0).to(items.dtype).log1p().unsqueeze(1)
        values = self.features(users, ranks, items + self._position(ranks))
        values = self.dropout(values)
        for layer in self.layers:
            values = layer(values, hidden_score, ages)
        instant = mean_over(simultaneous(ranks, users.valid), values)
        return torch.add(self.output(self.norm(instant)), self.habit * mean_over(seen, items))

    def _position(self, ranks: Int[Tensor, "users time"]) -> Float[Tensor, "users time dim"]:
        positions: Tensor = self.positions(ranks.clamp(max=self.positions.num_embeddings - 1))
        return positions
