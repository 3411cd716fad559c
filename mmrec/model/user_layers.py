"""Layers of the causal user encoder: what one slot of a history reads off the others."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmrec.model.dropout import Dropout, attend, drop

AGE_BUCKETS = 9
"""Doublings of an age in instants that an HSTU layer tells apart; older slots share the last."""


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
        values = values + self.dropout(self._read(self.attention_norm(values), hidden_score, ages))
        return torch.add(values, self.dropout(self._think(self.hidden_norm(values))))

    def _read(
        self,
        normed: Float[Tensor, "users time dim"],
        hidden_score: Float[Tensor, "users 1 time time"],
        ages: Float[Tensor, "users 1 time time"],
    ) -> Float[Tensor, "users time dim"]:
        num_users, time, dim = normed.shape
        block = self.query_key_value(normed)
        queries, keys, heads = block.view(num_users, time, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = torch.addcmul(hidden_score, ages, self.slopes[:, None, None]).to(queries.dtype)
        share = self.attention_dropout if self.training else 0.0
        read = attend(queries, keys, heads, mask, share=share)
        said: Tensor = self.output(read.transpose(1, 2).reshape(num_users, time, dim))
        return said

    def _think(self, normed: Float[Tensor, "users time dim"]) -> Float[Tensor, "users time dim"]:
        said: Tensor = self.outer(functional.gelu(self.inner(normed)))
        return said


class GatedLayer(TransformerLayer):
    """The same with a gate on each branch, sigmoid of a product with the branch's input (LiGR: Borisyuk et al., 2024).

    eSASRec (Tikhonovich et al., 2025) found such layers better than plain ones.  Gates start at one half.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout)
        self.attention_gate, self.hidden_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for gate in (self.attention_gate, self.hidden_gate):
            nn.init.normal_(gate.weight, std=0.02)
            nn.init.zeros_(gate.bias)

    def _read(
        self,
        normed: Float[Tensor, "users time dim"],
        hidden_score: Float[Tensor, "users 1 time time"],
        ages: Float[Tensor, "users 1 time time"],
    ) -> Float[Tensor, "users time dim"]:
        return torch.sigmoid(self.attention_gate(normed)) * super()._read(normed, hidden_score, ages)

    def _think(self, normed: Float[Tensor, "users time dim"]) -> Float[Tensor, "users time dim"]:
        return torch.sigmoid(self.hidden_gate(normed)) * super()._think(normed)


class HstuLayer(nn.Module):
    """Attention without a softmax, so that a state knows how much there was to read (HSTU: Zhai et al., 2024).

    Weights are SiLU of the score, with a bias by the age of what is read, over the number of slots that are seen; what is
    read is normalised and gated by the reader.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        self.norm, self.read_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate_query_key_value = nn.Linear(dim, 4 * dim)
        self.age_bias = nn.Parameter(torch.zeros(num_heads, AGE_BUCKETS))
        self.output = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        values: Float[Tensor, "users time dim"],
        hidden_score: Float[Tensor, "users 1 time time"],
        ages: Float[Tensor, "users 1 time time"],
    ) -> Float[Tensor, "users time dim"]:
        """Return the values after one layer; arguments as of :class:`TransformerLayer`."""
        num_users, time, dim = values.shape
        block = functional.silu(self.gate_query_key_value(self.norm(values)))
        gates = block[..., :dim]
        queries, keys, heads = block[..., dim:].view(num_users, time, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # The little bit keeps ages of exactly 1, 3, 7, ... from being rounded into the bucket below.
        buckets = (ages / math.log(2) + 1e-4).long().clamp(max=AGE_BUCKETS - 1).squeeze(1)
        bias = self.age_bias[:, buckets].transpose(0, 1)
        seen = (hidden_score == 0).to(queries.dtype)
        scores = torch.matmul(queries * queries.shape[3] ** -0.5, keys.transpose(2, 3)) + bias.to(queries.dtype)
        weights = functional.silu(scores) * seen / seen.sum(dim=3, keepdim=True)
        if self.training and self.attention_dropout:
            weights = drop(weights, self.attention_dropout)
        read = torch.matmul(weights, heads).transpose(1, 2).reshape(num_users, time, dim)
        return torch.add(values, self.dropout(self.output(self.read_norm(read) * gates)))
