"""Captions end to end: the same states as each alone, to the last bit whatever lies beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel

from mmrec.contents import TextContent
from mmrec.encoders.buckets import SMALL_PRODUCT
from mmrec.encoders.packing import Packing, current_packing, packed, run_packed
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.encoders.work import EncodingWork
from tests.encoders.test_transformers_text import CONFIGS, build
from tests.encoders.tiny_models import TEXT_SHAPE, bert, lively
from tests.products import rows_keep_their_bits

LENGTHS = np.array([4, 1, 9, 4, 2, 9, 9], dtype=np.int64)


def test_attention_stays_within_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, int(LENGTHS.sum()), 5, generator=generator, dtype=torch.float64)
    found = Packing.of(LENGTHS).attend(query, key, value, scaling=0.3)
    pieces = zip(*(states.split(LENGTHS.tolist(), dim=2) for states in (query, key, value)), strict=True)
    alone = [scaled_dot_product_attention(*piece, scale=0.3).transpose(1, 2) for piece in pieces]
    torch.testing.assert_close(found, torch.cat(alone, dim=1))


def test_positions_count_from_the_start_of_each_caption() -> None:
    assert Packing.of(np.array([2, 3])).positions(first=0).tolist() == [[0, 1, 0, 1, 2]]
    assert Packing.of(np.array([2, 1])).positions(first=2).tolist() == [[2, 3, 2]]


@pytest.mark.parametrize(("most", "sizes"), [(None, [[4, 1, 9, 4, 2, 9, 9]]), (10, [[4, 1], [9], [4, 2], [9], [9]])])
def test_captions_are_run_together_up_to_a_bound(most: int | None, sizes: list[list[int]]) -> None:
    asked: list[list[int]] = []

    def run(tokens: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
        assert len(tokens) == lengths.sum()
        assert len(tokens) >= SMALL_PRODUCT
        asked.append(lengths.tolist())
        return tokens.unsqueeze(1).float()

    work = EncodingWork()
    tokens = torch.arange(int(LENGTHS.sum()))
    found = run_packed(tokens, torch.from_numpy(LENGTHS), run=run, dim=1, work=work, max_tokens=most)
    assert found.squeeze(1).tolist() == tokens.tolist()
    assert [some[: len(wanted)] for some, wanted in zip(asked, sizes, strict=True)] == sizes
    assert (work.real_tokens, work.padded_tokens) == (len(tokens), len(tokens))


def test_no_captions_have_no_states() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    states = run_packed(nothing, nothing, run=lambda *_: nothing, dim=3, work=EncodingWork())
    assert states.shape == (0, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_which_models_can(name: str) -> None:
    # MPNet and DeBERTa place tokens relative to each other in attention of their own; ModernBERT's sees a part only.
    assert TransformersStack(build(name).eval()).packs() is (name not in {"mpnet", "deberta", "modernbert"})


def test_one_that_reads_from_left_to_right_cannot() -> None:
    shape = {"vocab_size": 25, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
    stack = TransformersStack(lively(AutoModel.from_config(transformers.GPT2Config(**shape))).eval())
    assert not stack.packs()


def test_one_with_positions_of_its_own_cannot() -> None:
    class Fixed(nn.Module):
        """Gives tokens the positions that they have in a row, whatever it is told."""

        def __init__(self, embeddings: nn.Module) -> None:
            super().__init__()
            self.embeddings = embeddings

        def forward(self, *, position_ids: object = None, **given: object) -> object:
            return self.embeddings(**given)

    model = bert(dropout=0.0)
    model.embeddings = Fixed(model.embeddings)
    assert not TransformersStack(model.eval()).packs()


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.skipif(not rows_keep_their_bits(), reason="matrix products round by the number of their rows here")
def test_neighbours_change_no_bit(cut: int) -> None:
    shape = TEXT_SHAPE | {"hidden_size": 96, "intermediate_size": 384, "max_position_embeddings": 80}
    torch.manual_seed(0)
    model = lively(AutoModel.from_config(transformers.BertConfig(**shape)))
    encoder = TextEncoder(TransformersStack(model), trunk_blocks=cut)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 80, (120,), generator=generator)
    ids = torch.randint(5, 23, (int(lengths.sum()),), generator=generator)
    together = encoder.trunk(TextContent(ids, lengths)).states
    rows = list(zip(ids.split(lengths.tolist()), lengths, together.split(lengths.tolist()), strict=True))
    for tokens, length, states in rows[:20]:
        assert torch.equal(encoder.trunk(TextContent(tokens, length[None])).states, states)
    some = rows[20:27]
    few = encoder.trunk(TextContent(torch.cat([row[0] for row in some]), torch.stack([row[1] for row in some]))).states
    assert torch.equal(few, torch.cat([row[2] for row in some]))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in {"mpnet", "deberta", "modernbert"}])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_live_blocks_pack_where_nothing_is_trained(name: str, cut: int) -> None:
    """All blocks live, some, or none: as the same blocks give that are trained, whose captions are padded."""
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    encoder = TextEncoder(TransformersStack(model), trunk_blocks=cut)
    assert encoder.training
    encoder.eval()
    lengths = torch.from_numpy(LENGTHS)
    content = TextContent(torch.arange(int(LENGTHS.sum())) % 20 + 3, lengths)
    padded = encoder(content).states
    before = encoder.work.padded_tokens
    with torch.no_grad():
        found = encoder(content).states
    assert encoder.work.padded_tokens - before == LENGTHS.sum() * (1 + (0 < cut < encoder.num_blocks))
    torch.testing.assert_close(found, padded.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cut", [0, 1])
def test_compiled_blocks_get_rectangles(cut: int) -> None:
    encoder = TextEncoder(TransformersStack(bert(dropout=0.0)), trunk_blocks=cut).eval()
    content = TextContent(torch.arange(int(LENGTHS.sum())) % 20 + 3, torch.from_numpy(LENGTHS))
    shapes = []
    top = encoder.live_blocks()[-1]
    handle = top.register_forward_pre_hook(lambda block, given: shapes.append(tuple(given[0].shape[:2])))
    with torch.no_grad():
        plain = encoder(content).states
        assert shapes == [(1, LENGTHS.sum())]
        handle.remove()
        for block in encoder.live_blocks():
            block.compile(backend="eager")
        shapes.clear()
        top.register_forward_pre_hook(lambda block, given: shapes.append(tuple(given[0].shape[:2])))
        torch.testing.assert_close(encoder(content).states, plain)
    assert len(shapes) >= 1
    assert all(rows > 1 or width <= LENGTHS.max() for rows, width in shapes)


def test_threads_have_packings_of_their_own() -> None:
    with packed(Packing.of(LENGTHS)), ThreadPoolExecutor(1) as pool:
        assert current_packing() is not None
        assert pool.submit(current_packing).result() is None
    assert current_packing() is None
