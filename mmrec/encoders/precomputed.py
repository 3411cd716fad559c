"""Vectors made elsewhere, as they are."""

from __future__ import annotations

import torch
from torch import nn

from mmrec.contents import Content, TokenStates, VectorContent


class PrecomputedEncoder(nn.Module):
    """One token a vector, unchanged; fusion projects it.

    Args:
        vector_dim: width of the vectors.
    """

    def __init__(self, vector_dim: int) -> None:
        super().__init__()
        self.dim = vector_dim
        self.num_blocks = 0
        self.trunk_blocks = 0

    @property
    def has_trunk(self) -> bool:
        """No: there is nothing to run."""
        return False

    def trunk(self, content: Content) -> TokenStates:
        """Not defined: there are no weights."""
        raise AssertionError("precomputed vectors have no trunk")

    def forward(self, content: Content) -> TokenStates:
        """Hand the vectors on, float32."""
        assert isinstance(content, VectorContent), type(content)
        assert content.vectors.shape[1] == self.dim, tuple(content.vectors.shape)
        lengths = torch.ones(len(content), dtype=torch.long)
        return TokenStates(content.vectors.float(), lengths)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return no groups: there are no weights."""
        return []

    def trunk_fingerprint(self) -> str:
        """Return the empty hash: there are no weights."""
        return ""
