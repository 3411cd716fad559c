"""Hiding modalities: who loses what, and what is then not encoded."""

from __future__ import annotations

import torch

from mmrec.batch import Parts
from mmrec.contents import IdContent, ImageContent, TextContent, TokenStates, VectorContent
from mmrec.model.parts import draw_dropped, presence, without


def parts(content: TextContent | ImageContent | VectorContent | IdContent | TokenStates) -> Parts:
    """Items 0 and 1 share content 1; item 2 has contents 0 and 2."""
    return Parts(content=content, item_index=torch.tensor([0, 1, 2, 2]), content_index=torch.tensor([1, 1, 0, 2]))


CAPTIONS = TextContent(token_ids=torch.tensor([10, 20, 21, 30, 31, 32]), lengths=torch.tensor([1, 2, 3]))


def test_presence() -> None:
    present = presence({"text": parts(CAPTIONS)}, ("image", "text"), 4)
    assert present.tolist() == [[False, True], [False, True], [False, True], [False, False]]


def test_nobody_loses_the_only_modality_and_the_share_is_met() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.tensor([[True, True, False], [False, True, False], [True, True, True]]).repeat(4000, 1)
    dropped = draw_dropped(present, share=0.3, noise=torch.rand(12000, 4, generator=generator))
    left = present & ~dropped
    assert left.any(1).all()
    assert not (dropped & ~present).any()
    assert not dropped[1::3].any()
    # The share's standard error is sqrt(0.3 * 0.7 / 4000) = 0.007.
    assert abs(float(dropped[0::3].any(1).double().mean()) - 0.3) < 0.03
    # Each of three modalities is lost by a third of 0.3.
    assert ((dropped[2::3].double().mean(0) - 0.1).abs() < 0.02).all()


def test_hidden_items_lose_their_parts_and_orphaned_contents_go() -> None:
    left = without(parts(CAPTIONS), torch.tensor([False, True, True]))
    assert left is not None
    assert isinstance(left.content, TextContent)
    assert left.content.token_ids.tolist() == [20, 21]
    assert left.content.lengths.tolist() == [2]
    assert (left.item_index.tolist(), left.content_index.tolist()) == ([0], [0])


def test_a_shared_content_stays_while_anyone_shows_it() -> None:
    left = without(parts(CAPTIONS), torch.tensor([True, False, False]))
    assert left is not None
    assert left.content is CAPTIONS
    assert left.content_index.tolist() == [1, 0, 2]


def test_nothing_left() -> None:
    assert without(parts(CAPTIONS), torch.tensor([True, True, True])) is None


def test_every_kind_of_content_can_be_thinned() -> None:
    numbers = torch.arange(3)
    images = ImageContent(pixels=numbers.view(3, 1, 1, 1).expand(3, 3, 2, 2).to(torch.uint8))
    vectors = VectorContent(vectors=numbers.view(3, 1).float())
    ids = IdContent(item_rows=numbers, counts=numbers.float() + 1, trends=-numbers.float())
    states = TokenStates(states=torch.arange(6.0).view(6, 1), lengths=torch.tensor([1, 2, 3]))
    hidden = torch.tensor([True, True, False])
    thinned = [without(parts(content), hidden) for content in (images, vectors, ids, states)]
    contents = [left.content for left in thinned if left is not None]
    assert [len(content) for content in contents] == [2, 2, 2, 2]
    assert isinstance(contents[0], ImageContent)
    assert contents[0].pixels[:, 0, 0, 0].tolist() == [0, 2]
    assert isinstance(contents[1], VectorContent)
    assert contents[1].vectors.flatten().tolist() == [0, 2]
    assert isinstance(contents[2], IdContent)
    assert contents[2].counts.tolist() == [1, 3]
    assert contents[2].trends.tolist() == [0, -2]
    assert isinstance(contents[3], TokenStates)
    assert contents[3].states.flatten().tolist() == [0, 3, 4, 5]
