"""Long captions in several windows: each is read as a caption of its own, and those that fit are not touched."""

from __future__ import annotations

import pytest
import torch

from mmrec.contents import TextContent, TokenStates
from mmrec.encoders.base import ContentEncoder
from mmrec.encoders.text import TextEncoder, window_lengths
from mmrec.encoders.transformers_text import TransformersStack
from tests.encoders.tiny_models import VOCABULARY, bert

WINDOW = 6
LENGTHS = [3, 15, 6, 12, 1, 7]
PIECES = [3, 6, 6, 3, 6, 6, 6, 1, 6, 1]


def captions() -> TextContent:
    ids = torch.randint(5, len(VOCABULARY), (sum(LENGTHS),), generator=torch.Generator().manual_seed(4))
    return TextContent(ids.int(), torch.tensor(LENGTHS))


def encoder(cut: int, window: int | None) -> ContentEncoder:
    return TextEncoder(TransformersStack(bert(dropout=0.0)), trunk_blocks=cut, window=window)


def test_lengths_of_windows() -> None:
    assert window_lengths(torch.tensor(LENGTHS), WINDOW).tolist() == PIECES
    assert window_lengths(torch.tensor([3, 6]), WINDOW).tolist() == [3, 6]
    assert window_lengths(torch.zeros(0, dtype=torch.long), WINDOW).tolist() == []


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_each_window_is_a_caption_of_its_own(cut: int) -> None:
    long, apart = captions(), TextContent(captions().token_ids, torch.tensor(PIECES))
    windowed = encoder(cut, WINDOW)
    tokens, expected = windowed(long), encoder(cut, None)(apart)
    assert tokens.lengths.tolist() == LENGTHS
    torch.testing.assert_close(tokens.states, expected.states)
    if cut:
        below = windowed.trunk(long)
        assert below.lengths.tolist() == LENGTHS
        assert torch.equal(windowed(TokenStates(below.states, below.lengths)).states, tokens.states)


@pytest.mark.parametrize("cut", [1, 3])
def test_captions_that_fit_have_the_same_states_to_the_bit(cut: int) -> None:
    fits = [row for row, length in enumerate(LENGTHS) if length <= WINDOW]
    pieces = captions().token_ids.split(LENGTHS)
    short = TextContent(torch.cat([pieces[row] for row in fits]), torch.tensor([LENGTHS[row] for row in fits]))
    together = encoder(cut, WINDOW).trunk(captions()).states.split(LENGTHS)
    alone = encoder(cut, None).trunk(short).states
    assert torch.equal(torch.cat([together[row] for row in fits]), alone)
