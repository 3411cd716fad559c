"""Attributes to token states: one token a column, from a learned vector a value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmrec.contents import AttributeContent, Content, TokenStates
from mmrec.host import on_device


class AttributeEncoder(nn.Module):
    """One token for each column of which a post has a value: the mean of its values' vectors, plus the column's own.

    At the start values alone speak: those with a code of their own lie in random directions, columns and whatever stands
    for unknown values at the origin, so that a value that training never met says no more than that there is one.

    Args:
        sizes: codes of each column; ranges follow each other.
        dim: width of a vector.
        others: codes that stand for unknown values.
        std: standard deviation of the initial vectors.
        seed: of the initial vectors.
    """

    def __init__(
        self, sizes: Sequence[int], dim: int, *, others: Sequence[int] = (), std: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_blocks = 0
        self.trunk_blocks = 0
        generator = torch.Generator().manual_seed(seed)
        table = std * torch.randn(sum(sizes), dim, generator=generator)
        table[list(others)] = 0
        self.table = nn.Parameter(table)
        self.names = nn.Parameter(torch.zeros(len(sizes), dim))
        self._column_of = torch.repeat_interleave(torch.tensor(list(sizes)))

    @property
    def has_trunk(self) -> bool:
        """No: everything is live."""
        return False

    def trunk(self, content: Content) -> TokenStates:
        """Not defined: nothing is frozen."""
        raise AssertionError("an attribute encoder has no trunk")

    def forward(self, content: Content) -> TokenStates:
        """Look the values up and average those of each column."""
        assert isinstance(content, AttributeContent), type(content)
        codes = content.codes.long()
        columns = self._column_of.index_select(0, codes)
        owners = torch.repeat_interleave(content.lengths)
        begins = torch.ones_like(codes, dtype=torch.bool)
        begins[1:] = (owners[1:] != owners[:-1]) | (columns[1:] != columns[:-1])
        first = begins.nonzero()[:, 0]
        tokens = begins.cumsum(0) - 1
        numbers = torch.bincount(tokens, minlength=len(first)).unsqueeze(1)
        sent = on_device(self.table.device, codes, tokens, numbers, columns[first])
        codes_there, tokens_there, counts, columns_there = sent
        values = self.table.index_select(0, codes_there)
        total = self.table.new_zeros(len(first), self.dim).index_add(0, tokens_there, values)
        states = total / counts + self.names.index_select(0, columns_there)
        return TokenStates(states, torch.bincount(owners[first], minlength=len(content)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return all vectors as the only group."""
        return [[self.table, self.names]]

    def trunk_fingerprint(self) -> str:
        """Return the empty hash: nothing is frozen."""
        return ""
