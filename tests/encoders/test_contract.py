"""What holds for every encoder, whatever is inside and wherever it is cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrec.contents import AttributeContent, Content, IdContent, ImageContent, TextContent, TokenStates, VectorContent
from mmrec.encoders.attributes import AttributeEncoder
from mmrec.encoders.base import ContentEncoder, mean_tokens
from mmrec.encoders.clip import load_open_clip, open_clip_image_stack, open_clip_text_stack
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.item_id import ItemIdEncoder
from mmrec.encoders.precomputed import PrecomputedEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.encoders.work import EncodingWork
from tests.encoders.tiny_models import MEAN, STD, VOCABULARY, bert, efficientnet, open_clip_folder, vit
from tests.products import most_that_differ

HALF = (0.5, 0.5, 0.5)
LENGTHS = [3, 9, 4, 12, 7, 4]


@dataclass(frozen=True)
class Kind:
    make: Callable[[int], ContentEncoder]
    content: Callable[[], Content]
    blocks: int


def _texts(vocabulary: int) -> TextContent:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (sum(LENGTHS),), generator=generator)
    return TextContent(ids.int(), torch.tensor(LENGTHS))


def _pictures(side: int) -> ImageContent:
    generator = torch.Generator().manual_seed(1)
    return ImageContent(torch.randint(0, 256, (5, 3, side, side), generator=generator, dtype=torch.uint8))


def _timm(model: nn.Module, side: int, cut: int, grid: int = 0) -> ContentEncoder:
    return ImageEncoder(TimmStack(model, side=side), trunk_blocks=cut, mean=HALF, std=HALF, token_grid=grid)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("clip") / "pair")


@pytest.fixture(scope="module")
def kinds(clip: Path) -> dict[str, Kind]:
    pair = load_open_clip(str(clip))
    return {
        "bert": Kind(
            lambda k: TextEncoder(TransformersStack(bert()), trunk_blocks=k), lambda: _texts(len(VOCABULARY)), 3
        ),
        "vit": Kind(lambda k: _timm(vit(), 32, k, grid=2), lambda: _pictures(32), 3),
        "efficientnet": Kind(lambda k: _timm(efficientnet(), 64, k), lambda: _pictures(64), 7),
        "clip_text": Kind(
            lambda k: TextEncoder(open_clip_text_stack(copy.deepcopy(pair)), trunk_blocks=k), lambda: _texts(400), 2
        ),
        "clip_image": Kind(
            lambda k: ImageEncoder(
                open_clip_image_stack(copy.deepcopy(pair)), trunk_blocks=k, mean=MEAN, std=STD, token_grid=3
            ),
            lambda: _pictures(32),
            2,
        ),
        "item_id": Kind(
            lambda _: ItemIdEncoder(9, 8),
            lambda: IdContent(torch.tensor([8, 0, 3]), torch.tensor([1.0, 5.0, 2.0]), torch.zeros(3)),
            0,
        ),
        "attributes": Kind(
            lambda _: AttributeEncoder([3, 2, 4], 8, others=[0, 5]),
            lambda: AttributeContent(torch.tensor([0, 2, 4, 1, 6, 7, 8, 5]), torch.tensor([3, 4, 1])),
            0,
        ),
        "precomputed": Kind(lambda _: PrecomputedEncoder(6), lambda: VectorContent(torch.arange(24.0).view(4, 6)), 0),
    }


NETWORKS = [("bert", 3), ("vit", 3), ("efficientnet", 7), ("clip_text", 2), ("clip_image", 2)]
CUTS = [(name, cut) for name, blocks in NETWORKS for cut in (0, 1, blocks)]
EVERY = [*CUTS, ("item_id", 0), ("attributes", 0), ("precomputed", 0)]
FROZEN = [(name, cut) for name, cut in CUTS if cut]


def take(content: Content, rows: list[int]) -> Content:
    """Some contents of a batch, in the order given."""
    match content:
        case TextContent():
            pieces = content.token_ids.split(content.lengths.tolist())
            return TextContent(torch.cat([pieces[row] for row in rows]), content.lengths[rows])
        case TokenStates():
            parts = content.states.split(content.lengths.tolist())
            return TokenStates(torch.cat([parts[row] for row in rows]), content.lengths[rows])
        case ImageContent():
            return ImageContent(content.pixels[rows])
        case VectorContent():
            return VectorContent(content.vectors[rows])
        case AttributeContent():
            pieces = content.codes.split(content.lengths.tolist())
            return AttributeContent(
                torch.cat([pieces[row] for row in rows] or [content.codes[:0]]), content.lengths[rows]
            )
        case IdContent():
            return IdContent(content.item_rows[rows], content.counts[rows], content.trends[rows])


def trainable(encoder: ContentEncoder) -> dict[str, nn.Parameter]:
    assert isinstance(encoder, nn.Module)
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}


def loss(tokens: TokenStates) -> Tensor:
    """A function of the states whose gradient vanishes nowhere in particular."""
    weights = torch.randn(tokens.states.shape, generator=torch.Generator().manual_seed(2))
    return (tokens.states * weights).sum()


@pytest.mark.parametrize(("name", "cut"), EVERY)
class TestEveryEncoder:
    def test_gives_one_row_of_tokens_for_each_content(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        kind = kinds[name]
        encoder, content = kind.make(cut), kind.content()
        tokens = encoder(content)
        assert isinstance(encoder, ContentEncoder)
        assert (encoder.num_blocks, encoder.trunk_blocks) == (kind.blocks, cut)
        assert encoder.has_trunk == (cut > 0)
        assert len(tokens) == len(content)
        assert tokens.states.shape == (int(tokens.lengths.sum()), encoder.dim)
        assert tokens.states.dtype == torch.float32
        assert bool(tokens.states.isfinite().all())
        assert mean_tokens(tokens).shape == (len(content), encoder.dim)

    def test_layer_groups_are_the_trainable_parameters_each_once(
        self, kinds: dict[str, Kind], name: str, cut: int
    ) -> None:
        encoder = kinds[name].make(cut)
        grouped = [id(p) for group in encoder.layer_groups() for p in group]
        assert sorted(grouped) == sorted(id(p) for p in trainable(encoder).values())

    def test_exactly_the_trainable_parameters_get_gradients(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder = kinds[name].make(cut)
        assert isinstance(encoder, nn.Module)
        value = loss(encoder(kinds[name].content()))
        if value.requires_grad:
            value.backward()
        with_gradient = {n for n, p in encoder.named_parameters() if p.grad is not None}
        assert with_gradient == set(trainable(encoder))
        learns = name in ("item_id", "attributes") or (name != "precomputed" and cut < kinds[name].blocks)
        assert bool(with_gradient) == learns

    def test_contents_do_not_see_their_neighbours(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder, content = kinds[name].make(cut).eval(), kinds[name].content()  # type: ignore[attr-defined]
        with torch.no_grad():
            together = encoder(content)
            for row in range(len(content)):
                alone, expected = encoder(take(content, [row])), take(together, [row])
                torch.testing.assert_close(alone.states, expected.states, rtol=1e-5, atol=1e-5)

    def test_order_of_contents_is_kept(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder, content = kinds[name].make(cut).eval(), kinds[name].content()  # type: ignore[attr-defined]
        order = list(reversed(range(len(content))))
        with torch.no_grad():
            expected, turned = take(encoder(content), order), encoder(take(content, order))
        assert turned.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(turned.states, expected.states, rtol=1e-5, atol=1e-5)

    def test_no_content_gives_no_tokens(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        kind = kinds[name]
        match kind.content():
            case TextContent():
                empty: Content = TextContent(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.long))
            case content:
                empty = take(content, [])
        tokens = kind.make(cut)(empty)
        assert len(tokens) == 0
        assert tokens.states.shape == (0, kind.make(cut).dim)

    def test_runs_under_bfloat16_autocast(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder, content = kinds[name].make(cut).eval(), kinds[name].content()  # type: ignore[attr-defined]
        exact = encoder(content)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = encoder(content)
        assert tokens.states.dtype == torch.float32
        scale = float(exact.states.detach().abs().max())
        assert float((tokens.states - exact.states).abs().max()) < 0.1 * scale

    def test_state_dict_brings_the_same_encoder_back(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        first, second = kinds[name].make(cut), kinds[name].make(cut)
        assert isinstance(first, nn.Module)
        assert isinstance(second, nn.Module)
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.add_(1.0)
        second.load_state_dict(first.state_dict())
        content = kinds[name].content()
        first.eval(), second.eval()
        assert torch.equal(first(content).states, second(content).states)


@pytest.mark.parametrize(("name", "cut"), FROZEN)
class TestEveryTrunk:
    def test_trunk_and_rest_are_the_whole(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder, content = kinds[name].make(cut).eval(), kinds[name].content()  # type: ignore[attr-defined]
        below = encoder.trunk(content)
        assert below.states.dtype == torch.float32
        assert not below.states.requires_grad
        assert torch.equal(encoder(below).states, encoder(content).states)
        assert encoder(below).lengths.tolist() == encoder(content).lengths.tolist()

    def test_trunk_is_the_same_while_training_and_under_autocast(
        self, kinds: dict[str, Kind], name: str, cut: int
    ) -> None:
        encoder, content = kinds[name].make(cut), kinds[name].content()
        assert isinstance(encoder, nn.Module)
        expected = encoder.eval().trunk(content).states
        encoder.train()
        assert torch.equal(encoder.trunk(content).states, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(encoder.trunk(content).states, expected)

    def test_trunk_of_one_equals_trunk_of_many_even_when_rounded(
        self, kinds: dict[str, Kind], name: str, cut: int
    ) -> None:
        encoder, content = kinds[name].make(cut), kinds[name].content()
        many = encoder.trunk(content).states.half()
        one = torch.cat([encoder.trunk(take(content, [row])).states for row in range(len(content))]).half()
        # Noise of 1e-6 turns over some 2e-3 of all half precision values.
        assert float((many != one).float().mean()) < most_that_differ(2e-4, rounded=1e-2)
        torch.testing.assert_close(many, one)

    def test_fingerprint_names_weights_and_cut(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder, same, other = (kinds[name].make(k) for k in (cut, cut, kinds[name].blocks + 1 - cut))
        assert len(encoder.trunk_fingerprint()) == 32
        assert encoder.trunk_fingerprint() == same.trunk_fingerprint() != other.trunk_fingerprint()
        frozen = [p for p in same.parameters() if not p.requires_grad]  # type: ignore[attr-defined]
        with torch.no_grad():
            frozen[0].view(-1)[0].add_(1e-3)
        assert encoder.trunk_fingerprint() != same.trunk_fingerprint()

    def test_training_the_live_part_keeps_the_fingerprint(self, kinds: dict[str, Kind], name: str, cut: int) -> None:
        encoder = kinds[name].make(cut)
        before = encoder.trunk_fingerprint()
        with torch.no_grad():
            for parameter in trainable(encoder).values():
                parameter.add_(1.0)
        assert encoder.trunk_fingerprint() == before


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_contents_are_counted_once_and_tokens_wherever_they_run(kinds: dict[str, Kind], name: str, cut: int) -> None:
    encoder, content = kinds[name].make(cut).eval(), kinds[name].content()  # type: ignore[attr-defined]
    work = encoder.work
    assert work == EncodingWork(), "freezing runs the network, which nobody asked for"
    encoder(content)
    assert work.encoded == len(content)
    assert work.padded_tokens >= work.real_tokens >= len(content)
    if cut:
        below, before = encoder.trunk(content), work.copy()
        encoder(below)
        live = work.since(before)
        assert (live.encoded, live.real_tokens > 0) == (0, cut < kinds[name].blocks)


@pytest.mark.parametrize("name", [name for name, _ in NETWORKS])
class TestFullTuning:
    def test_a_step_changes_every_block_and_the_stem(self, kinds: dict[str, Kind], name: str) -> None:
        encoder = kinds[name].make(0)
        assert encoder.trunk_fingerprint() == ""
        before = {key: p.detach().clone() for key, p in trainable(encoder).items()}
        optimiser = torch.optim.SGD([p for g in encoder.layer_groups() for p in g], lr=0.1)
        loss(encoder(kinds[name].content())).backward()
        optimiser.step()
        changed = {id(p) for key, p in trainable(encoder).items() if not torch.equal(p, before[key])}
        groups = encoder.layer_groups()
        assert len(groups) == encoder.num_blocks + 1
        assert all(any(id(p) in changed for p in group) for group in groups)

    def test_batch_statistics_are_neither_used_nor_updated(self, kinds: dict[str, Kind], name: str) -> None:
        encoder = kinds[name].make(0)
        assert isinstance(encoder, nn.Module)
        buffers = {key: b.clone() for key, b in encoder.named_buffers()}
        encoder.train()(kinds[name].content())
        assert all(torch.equal(b, buffers[key]) for key, b in encoder.named_buffers())

    def test_a_copy_shares_nothing(self, kinds: dict[str, Kind], name: str) -> None:
        encoder = kinds[name].make(1)
        assert isinstance(encoder, nn.Module)
        content = kinds[name].content()
        expected = encoder.eval()(content).states
        twin = copy.deepcopy(encoder)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        assert torch.equal(encoder(content).states, expected)
        assert not torch.allclose(twin(content).states, expected)


def test_deeper_groups_come_last(kinds: dict[str, Kind]) -> None:
    encoder = kinds["bert"].make(0)
    assert isinstance(encoder, nn.Module)
    names = {id(p): key for key, p in encoder.named_parameters()}
    depths = [{names[id(p)].split(".layer.")[-1][0] for p in group} for group in encoder.layer_groups()]
    assert depths[:3] == [{"2"}, {"1"}, {"0"}]
    assert all("embeddings" in names[id(p)] for p in encoder.layer_groups()[-1])


def test_item_ids_start_from_their_seed() -> None:
    first, second, third = ItemIdEncoder(4, 3, seed=1), ItemIdEncoder(4, 3, seed=1), ItemIdEncoder(4, 3, seed=2)
    assert torch.equal(first.table, second.table)
    assert not torch.equal(first.table, third.table)
    tokens = first(IdContent(torch.tensor([2, 2]), torch.tensor([1.0, 1.0]), torch.zeros(2)))
    assert torch.equal(tokens.states, first.table[[2, 2]])
    assert tokens.lengths.tolist() == [1, 1]
