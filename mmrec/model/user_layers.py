"""The layer of the causal user encoder: what one slot of a history reads off the others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmrec.model.dropout import Dropout, attend


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
