"""A learned vector for each item that training saw."""

from __future__ import annotations

import torch
from torch import nn

from mmrec.contents import Content, IdContent, TokenStates


class ItemIdEncoder(nn.Module):
    """One token an item: its row of a table that starts small, so that content speaks first.

    Args:
        num_items: rows of the catalogue.
        dim: width of a vector.
        std: standard deviation of the initial vectors.
        seed: of the initial vectors.
    """

    def __init__(self, num_items: int, dim: int, *, std: float = 0.02, seed: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.num_blocks = 0
        self.trunk_blocks = 0
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(std * torch.randn(num_items, dim, generator=generator))

    @property
    def has_trunk(self) -> bool:
        """No: everything is live."""
        return False

    def trunk(self, content: Content) -> TokenStates:
        """Not defined: nothing is frozen."""
        raise AssertionError("an item id encoder has no trunk")

    def forward(self, content: Content) -> TokenStates:
        """Look the items up."""
        assert isinstance(content, IdContent), type(content)
        states = self.table.index_select(0, content.item_rows.long())
        return TokenStates(states, torch.ones(len(content), dtype=torch.long))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the table as the only group."""
        return [[self.table]]

    def trunk_fingerprint(self) -> str:
        """Return the empty hash: nothing is frozen."""
        return ""
