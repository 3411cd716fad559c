"""The tokens of attributes: those of a loop over posts and columns, in value and gradient."""

from __future__ import annotations

import torch

from mmrec.contents import AttributeContent, StoredContent, take
from mmrec.encoders.attributes import AttributeEncoder

SIZES = (3, 2, 4)
POSTS = [(0, 2, 4, 5, 6, 8), (3,), (1, 7), (1, 7), (0, 1, 2)]
"""Codes of columns 0-2, 3-4 and 5-8."""


def content(posts: list[tuple[int, ...]]) -> AttributeContent:
    return AttributeContent(torch.tensor([code for post in posts for code in post]), torch.tensor([*map(len, posts)]))


def loop(encoder: AttributeEncoder, posts: list[tuple[int, ...]]) -> tuple[torch.Tensor, list[int]]:
    """One token for each column of each post, one at a time."""
    tokens, lengths = [], []
    for post in posts:
        before, start = len(tokens), 0
        for column, size in enumerate(SIZES):
            own = [code for code in post if start <= code < start + size]
            if own:
                tokens.append(torch.stack([encoder.table[code] for code in own]).mean(dim=0) + encoder.names[column])
            start += size
        lengths.append(len(tokens) - before)
    return torch.stack(tokens), lengths


def test_equals_a_loop_in_value_and_gradient() -> None:
    found = []
    for vectorised in (True, False):
        encoder = AttributeEncoder(SIZES, 6, seed=3).double()
        torch.nn.init.normal_(encoder.names, generator=torch.Generator().manual_seed(1))
        if vectorised:
            tokens = encoder(content(POSTS))
            states, lengths = tokens.states, tokens.lengths.tolist()
        else:
            states, lengths = loop(encoder, POSTS)
        states.cumsum(0).square().sum().backward()
        found.append((states, lengths, encoder.table.grad, encoder.names.grad))
    assert found[0][1] == found[1][1] == [3, 1, 2, 2, 1]
    for fast, slow in zip(found[0], found[1], strict=True):
        if isinstance(fast, torch.Tensor):
            torch.testing.assert_close(fast, slow)


def test_unknown_values_and_columns_say_nothing_at_the_start() -> None:
    encoder = AttributeEncoder(SIZES, 6, others=[0, 5])
    assert not encoder.table[[0, 5]].any()
    assert not encoder.names.any()
    assert encoder.table[[1, 2, 3, 4, 6, 7, 8]].any(dim=1).all()
    assert torch.equal(encoder.table, AttributeEncoder(SIZES, 6, others=[0, 5]).table)
    assert not torch.equal(encoder.table, AttributeEncoder(SIZES, 6, others=[0, 5], seed=1).table)


def test_some_of_the_contents_wherever_they_lie() -> None:
    encoder, rows = AttributeEncoder(SIZES, 6), torch.tensor([4, 0])
    expected = encoder(content([POSTS[4], POSTS[0]]))
    for some in (take(content(POSTS), rows), StoredContent(content(POSTS), rows).read()):
        assert torch.equal(encoder(some).states, expected.states)
        assert torch.equal(encoder(some).lengths, expected.lengths)
