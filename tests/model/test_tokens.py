"""The tokens of items equal a loop over items, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrec.batch import Parts
from mmrec.contents import TokenStates
from mmrec.host import ragged_places
from mmrec.model.tokens import ItemTokens, TokenAssembler, TokenProjection
from tests.model.samples import randomise

DIM = 4
WIDTHS = {"text": 3, "image": 5}
LENGTHS = {"text": [2, 1, 3], "image": [2, 2]}
SHOWN = {"text": [(0, 1), (1, 0), (3, 1)], "image": [(0, 0), (3, 1), (3, 0)]}
"""Item 2 has nothing, item 3 a caption it shares with item 0 and two pictures."""
NUM_ITEMS = 4


def content(name: str) -> TokenStates:
    generator = torch.Generator().manual_seed(len(name))
    states = torch.randn(sum(LENGTHS[name]), WIDTHS[name], generator=generator, dtype=torch.float64)
    return TokenStates(states=(3 * states + 7).requires_grad_(), lengths=torch.tensor(LENGTHS[name]))


def parts_of(name: str, tokens: TokenStates) -> Parts:
    items, contents = zip(*SHOWN[name], strict=True)
    return Parts(content=tokens, item_index=torch.tensor(items), content_index=torch.tensor(contents))


def assembler() -> TokenAssembler:
    module = TokenAssembler(input_dims=WIDTHS, dim=DIM).double()
    randomise(module)
    for name in WIDTHS:
        projection = module.projection(name)
        projection.shift.copy_(torch.linspace(-1, 1, WIDTHS[name]))
        projection.scale.copy_(torch.linspace(0.5, 2, WIDTHS[name]))
    return module


def project(module: TokenProjection, states: Tensor) -> Tensor:
    normalised = nn.functional.layer_norm(states, states.shape[1:], eps=1e-5)
    return ((normalised - module.shift) * module.scale) @ module.weight.T


def naive(module: TokenAssembler, encoded: dict[str, TokenStates]) -> tuple[list[Tensor], Tensor]:
    """Every item's own tokens, one list an item, and the summaries; contents are projected again for every item."""
    blocks, summaries = [], []
    for item in range(NUM_ITEMS):
        tokens, rows = [], []
        for name in WIDTHS:
            pieces = encoded[name].states.split(LENGTHS[name])
            shown = [project(module.projection(name), pieces[c]) for i, c in SHOWN[name] if i == item]
            tokens += [piece + module.projection(name).name for piece in shown]
            mean = torch.stack([piece.mean(0) for piece in shown]).mean(0) if shown else None
            rows.append(torch.zeros(DIM).double() if mean is None else nn.functional.layer_norm(mean, (DIM,)))
        blocks.append(torch.cat(tokens) if tokens else module.null.unsqueeze(0))
        summaries.append(torch.stack(rows))
    return blocks, torch.stack(summaries)


def assembled(module: TokenAssembler, encoded: dict[str, TokenStates]) -> ItemTokens:
    return module({name: parts_of(name, encoded[name]) for name in encoded}, encoded, num_items=NUM_ITEMS)


def read(tokens: ItemTokens) -> list[Tensor]:
    return [tokens.states[index] for index in tokens.index.split(tokens.counts.tolist())]


def gradients(module: TokenAssembler, encoded: dict[str, TokenStates], blocks: list[Tensor], summaries: Tensor):
    weight = torch.linspace(0.3, 1.7, DIM).double()
    loss = sum(((i + 1) * (block * weight).sin().sum() for i, block in enumerate(blocks)), torch.zeros(()).double())
    loss = loss + (summaries * weight).cos().sum()
    inputs = [*module.parameters(), *(tokens.states for tokens in encoded.values())]
    return torch.autograd.grad(loss, inputs)


def test_tokens_equal_a_loop_over_items_in_value_and_gradient() -> None:
    module, encoded = assembler(), {name: content(name) for name in WIDTHS}
    tokens = assembled(module, encoded)
    blocks, summaries = naive(module, encoded)
    for mine, expected in zip(read(tokens), blocks, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tokens.summaries, summaries, rtol=1e-9, atol=1e-9)
    for mine, expected in zip(
        gradients(module, encoded, read(tokens), tokens.summaries),
        gradients(module, encoded, blocks, summaries),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-8)


def test_masks() -> None:
    encoded = {name: content(name) for name in WIDTHS}
    tokens = assembled(assembler(), encoded)
    assert tokens.present.tolist() == [[True, True], [True, False], [False, False], [True, True]]
    # 1 + 2 tokens; 2; the null token; 1 + 2 + 2.
    assert tokens.counts.tolist() == [3, 2, 1, 5]
    assert tokens.index[5] == len(tokens.states) - 1


def test_each_distinct_content_is_projected_once() -> None:
    encoded = {name: content(name) for name in WIDTHS}
    tokens = assembled(assembler(), encoded)
    assert len(tokens.states) == sum(LENGTHS["text"]) + sum(LENGTHS["image"]) + 1


def test_a_view_is_the_item_without_its_other_modality() -> None:
    module, encoded = assembler(), {name: content(name) for name in WIDTHS}
    rows = torch.tensor([3, 0])
    for code, name in enumerate(WIDTHS):
        view = assembled(module, encoded).view(rows, modality=code)
        alone = module({name: parts_of(name, encoded[name])}, encoded, num_items=NUM_ITEMS)
        for mine, expected in zip(read(view), [read(alone)[3], read(alone)[0]], strict=True):
            torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(view.summaries, alone.summaries[rows])
        assert torch.equal(view.present, alone.present[rows])


def test_a_batch_where_nobody_has_anything() -> None:
    tokens = assembler()({}, {}, num_items=2)
    assert tokens.index.tolist() == [0, 0]
    assert tokens.counts.tolist() == [1, 1]
    assert not tokens.present.any()


def test_no_items() -> None:
    tokens = assembler()({}, {}, num_items=0)
    assert tokens.summaries.shape == (0, 2, DIM)
    assert [block.states.shape for block in tokens.blocks()] == [(0, 1, DIM)]


def test_views_join_the_items_over_the_same_states() -> None:
    tokens = assembled(assembler(), {name: content(name) for name in WIDTHS})
    views = [tokens.view(torch.tensor([3, 0]), modality=code) for code in range(2)]
    joined = tokens.joined(views)
    assert joined.states is tokens.states
    expected = [row for part in (tokens, *views) for row in read(part)]
    for mine, other in zip(read(joined), expected, strict=True):
        assert torch.equal(mine, other)
    assert len(joined.summaries) == len(joined.present) == len(joined)


@pytest.mark.parametrize("items_a_block", [1, 2, 3, 100])
def test_blocks_hold_every_item_once_and_little_padding(monkeypatch: pytest.MonkeyPatch, items_a_block: int) -> None:
    monkeypatch.setattr("mmrec.model.tokens.BLOCK_ITEMS", items_a_block)
    tokens = assembled(assembler(), {name: content(name) for name in WIDTHS})
    blocks = tokens.blocks()
    assert sorted(torch.cat([block.items for block in blocks]).tolist()) == list(range(NUM_ITEMS))
    assert len(blocks) == max(NUM_ITEMS // items_a_block, 1)
    for block in blocks:
        assert block.valid.sum(1).max() == block.valid.shape[1]
        for item, states, valid in zip(block.items, block.states, block.valid, strict=True):
            assert torch.equal(states[valid], read(tokens)[item])


def test_ragged_places_by_hand() -> None:
    places, owners = ragged_places(torch.tensor([2, 0, 3]), torch.tensor([2, 1, 0, 2]))
    assert places.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert owners.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]


def test_projection_does_not_depend_on_the_features_scale_or_offset() -> None:
    module, tokens = TokenProjection(input_dim=3, dim=DIM).double(), content("text")
    moved = TokenStates(states=100 * tokens.states + 5, lengths=tokens.lengths)
    torch.testing.assert_close(module(moved).states, module(tokens).states, rtol=1e-4, atol=1e-4)


def test_calibration_centres_and_evens_out_the_means_of_contents() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 4.0, 2.0, 3.0, 1.0, 2.0])
    states = torch.randn(400, 6, generator=generator) * spread + torch.tensor([9.0, 0, 0, 5, 0, -4])
    tokens = TokenStates(states=states, lengths=torch.full((200,), 2))
    module = TokenProjection(input_dim=6, dim=DIM)
    with torch.no_grad():
        module.calibrate(tokens)
    normalised = nn.functional.layer_norm(states, (6,))
    means = ((normalised - module.shift) * module.scale).view(200, 2, 6).mean(1)
    torch.testing.assert_close(means.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(means.std(0), means.std(0).mean().expand(6), rtol=1e-3, atol=0)


def test_calibration_needs_two_contents() -> None:
    module = TokenProjection(input_dim=3, dim=DIM)
    with torch.no_grad():
        module.calibrate(TokenStates(states=torch.ones(2, 3), lengths=torch.tensor([2])))
    assert torch.equal(module.scale, torch.ones(3))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_feature_vector_has_a_finite_gradient(value: float) -> None:
    module = TokenProjection(input_dim=3, dim=DIM)
    states = torch.full((2, 3), value, requires_grad=True)
    module(TokenStates(states=states, lengths=torch.tensor([2]))).states.sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_dropout_hides_the_same_channels_of_all_tokens_of_a_content() -> None:
    module = TokenAssembler(input_dims=WIDTHS, dim=DIM, dropout=0.5)
    tokens = TokenStates(torch.ones(5, DIM), torch.tensor([2, 3]))
    torch.manual_seed(0)
    hidden = module._hide(tokens).states
    assert torch.equal(hidden[0], hidden[1])
    assert torch.equal(hidden[2], hidden[4])
    assert not torch.equal(hidden[0], hidden[2])
    assert set(hidden.unique().tolist()) == {0.0, 2.0}
    module.eval()
    assert module._hide(tokens) is tokens
