"""Causal transformer over a history, blind to order within an instant."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import UserBatch
from mmrec.model.dropout import Dropout, attend
from mmrec.model.instants import instant_ranks, mean_over, simultaneous, visible
from mmrec.model.user_encoder import EventFeatures, small_embedding


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


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward.

    A head forgets by a power law of its own: its weights are multiplied by (1 + age) ** slope, age counted in instants.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.slopes = nn.Parameter(-torch.linspace(0, 2, num_heads))
        self.output = nn.Linear(dim, dim)
        self.hidden_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, 4 * dim)
        self.outer = nn.Linear(4 * dim, dim)
        self.dropout = Dropout(dropout)
        for branch in (self.output, self.outer):
            nn.init.normal_(branch.weight, std=0.02)
            nn.init.zeros_(branch.bias)

    def forward(
        self,
        values: Float[Tensor, "users time dim"],
        hidden_score: Float[Tensor, "users 1 time time"],
        ages: Float[Tensor, "users 1 time time"],
    ) -> Float[Tensor, "users time dim"]:
        """Return the values after one layer.

        Args:
            values: one row a slot.
            hidden_score: 0 where slot i may see slot j, minus infinity elsewhere.
            ages: log(1 + instants between the two).
        """
        num_users, time, dim = values.shape
        block = self.query_key_value(self.attention_norm(values))
        queries, keys, heads = block.view(num_users, time, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = torch.addcmul(hidden_score, ages, self.slopes[:, None, None]).to(queries.dtype)
        share = self.attention_dropout if self.training else 0.0
        read = attend(queries, keys, heads, mask, share=share)
        values = values + self.dropout(self.output(read.transpose(1, 2).reshape(num_users, time, dim)))
        hidden = self.outer(functional.gelu(self.inner(self.hidden_norm(values))))
        return torch.add(values, self.dropout(hidden))
