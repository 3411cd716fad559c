"""Compiled blocks: the same values, gradients and names as those they are made of, and few translations."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrec.batch import ItemBatch, Parts, UserBatch
from mmrec.contents import Content, ImageContent, TextContent, TokenStates, VectorContent
from mmrec.encoders.base import BlockEncoder
from mmrec.encoders.clip import load_open_clip, open_clip_image_stack, open_clip_text_stack
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.precomputed import PrecomputedEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.errors import ConfigError
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.model.user_layers import TransformerLayer
from mmrec.training.compilation import GRAPHS, check_compiler, compile_blocks
from mmrec.training.operations import operation_counter
from tests.encoders.tiny_models import MEAN, STD, VOCABULARY, bert, efficientnet, open_clip_folder, vit

pytestmark = pytest.mark.usefixtures("own_translations")

DIM = 16
CPU = torch.device("cpu")
SIZES = (5, 7, 3, 9, 4)
"""Contents of one batch after another."""


@dataclass
class Counting:
    """A backend that runs a graph as it is and counts the graphs it was given."""

    graphs: list[object] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs.append(graph)
        return graph.forward


def texts(size: int, *, vocabulary: int, seed: int) -> TextContent:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 14, (size,), generator=generator)
    ids = torch.randint(5, vocabulary, (int(lengths.sum()),), generator=generator)
    return TextContent(ids.int(), lengths)


def pictures(size: int, *, side: int, seed: int) -> ImageContent:
    generator = torch.Generator().manual_seed(seed)
    return ImageContent(torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8))


class Bend(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, dim))

    def forward(self, values: Tensor) -> Tensor:
        return torch.tanh(values * self.scale)


class Bent(PrecomputedEncoder):
    """An encoder of a user's own, with one live block."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.block = Bend(dim)

    def forward(self, content: Content) -> TokenStates:
        tokens = super().forward(content)
        return TokenStates(self.block(tokens.states), tokens.lengths)

    def live_blocks(self) -> list[nn.Module]:
        return [self.block]

    def blank(self) -> Content:
        return VectorContent(torch.zeros(1, self.dim))


def captions(*, cut: int) -> TextEncoder:
    return TextEncoder(TransformersStack(bert(dropout=0.0)), trunk_blocks=cut)


def recommender(encoder: nn.Module, *, layers: int = 2) -> RecommenderModel:
    torch.manual_seed(3)
    encoders = {"text" if isinstance(encoder, TextEncoder) else "image": encoder}
    return RecommenderModel(
        item_encoder=ItemEncoder(encoders=encoders, fusion=BottleneckFusion(dim=DIM, num_modalities=1), dim=DIM),
        user_encoder=TransformerUserEncoder(dim=DIM, num_layers=layers, num_heads=2),
        scorer=Scorer(dim=DIM),
    )


def users(size: int, time: int, *, seed: int) -> UserBatch:
    generator = torch.Generator().manual_seed(seed)
    return UserBatch(
        item_positions=torch.zeros(size, time, dtype=torch.long),
        valid=torch.arange(time) < torch.randint(1, time + 1, (size, 1), generator=generator),
        instants=torch.arange(time).repeat(size, 1),
    )


def gradients(output: Tensor, module: nn.Module) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    module.zero_grad()
    torch.autograd.backward((output * weights).sum())
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("clip") / "pair")


@pytest.mark.parametrize(
    ("name", "most"), [("bert", 8), ("vit", 6), ("efficientnet", 3), ("clip_text", 4), ("clip_image", 4)]
)
def test_an_encoder_of_many_shapes_is_translated_a_few_times(name: str, most: int, clip: Path) -> None:
    encoder, content = encoder_of(name, clip)
    plain, backend = copy.deepcopy(encoder), Counting()
    compiled = compile_blocks(recommender(encoder), backend=backend)
    assert compiled[:-2] == encoder.live_blocks() != []
    for seed, size in enumerate(SIZES):
        given = content(size, seed)
        for training in (True, False):
            encoder.train(training), plain.train(training)
            with torch.set_grad_enabled(training):
                found, expected = encoder(given).states, plain(given).states
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            if training:
                assert_same(gradients(found, encoder), gradients(expected, plain))
    assert 2 <= len(backend.graphs) <= most < 2 * len(SIZES) * len(encoder.live_blocks())


def encoder_of(name: str, clip: Path) -> tuple[CutEncoder, Callable[[int, int], Content]]:
    """An encoder with live blocks upon a trunk, and what makes contents for it from a number and a seed."""
    match name:
        case "bert":
            text = captions(cut=1)
            return text, lambda size, seed: texts(size, vocabulary=len(VOCABULARY), seed=seed)
        case "clip_text":
            text = TextEncoder(open_clip_text_stack(load_open_clip(str(clip))), trunk_blocks=1)
            return text, lambda size, seed: texts(size, vocabulary=400, seed=seed)
        case "clip_image":
            stack, cut, side = open_clip_image_stack(load_open_clip(str(clip))), 1, 32
        case "vit":
            stack, cut, side = TimmStack(vit(), side=32), 1, 32
        case _:
            stack, cut, side = TimmStack(efficientnet(), side=64), 6, 64
    image = ImageEncoder(stack, trunk_blocks=cut, mean=MEAN, std=STD)
    return image, lambda size, seed: pictures(size, side=side, seed=seed)


def test_user_layers_of_many_shapes_are_translated_a_few_times() -> None:
    model, backend = recommender(captions(cut=3)), Counting()
    encoder = model.user_encoder
    assert isinstance(encoder, TransformerUserEncoder)
    plain = copy.deepcopy(encoder)
    compile_blocks(model, backend=backend)
    for seed, (size, time) in enumerate([(5, 7), (8, 9), (3, 4), (6, 12), (7, 3)]):
        batch = users(size, time, seed=seed)
        vectors = torch.randn(size, time, DIM, generator=torch.Generator().manual_seed(seed))
        found, expected = (module(batch, vectors) for module in (encoder, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert_same(gradients(found, encoder), gradients(expected, plain))
        with torch.inference_mode():
            again = [module.eval()(batch, vectors) for module in (encoder, plain)]
        encoder.train(), plain.train()
        torch.testing.assert_close(*again, rtol=1e-5, atol=1e-5)
    assert 2 <= len(backend.graphs) <= 4, "not one a shape, nor one a layer"


def test_dropout_leaves_a_layer_in_one_piece() -> None:
    layer, backend = TransformerLayer(dim=DIM, num_heads=2, dropout=0.3), Counting()
    layer.compile(backend=backend, dynamic=True)
    values, mask = torch.randn(8, 9, DIM), torch.zeros(8, 1, 9, 9)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(values, mask, mask))
    assert len(backend.graphs) == 1
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], layer.eval()(values, mask, mask))


def test_only_what_is_live_is_compiled_and_names_stay() -> None:
    model, plain = recommender(captions(cut=1)), recommender(captions(cut=1))
    encoder = model.item_encoder.encoders["text"]
    assert isinstance(encoder, CutEncoder)
    compiled = compile_blocks(model, backend="eager")
    layers = model.user_encoder.layers  # type: ignore[attr-defined]
    assert compiled == [*encoder.live_blocks(), *layers]
    assert [m for m in model.modules() if m._compiled_call_impl is not None] == compiled
    assert len(encoder.live_blocks()) == 2
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert not [m for m in copy.deepcopy(model).modules() if m._compiled_call_impl is not None]
    assert torch._dynamo.config.recompile_limit == GRAPHS


def test_a_trunk_gives_the_same_bits_and_no_graph() -> None:
    model, backend = recommender(captions(cut=1)), Counting()
    encoder = model.item_encoder.encoders["text"]
    assert isinstance(encoder, CutEncoder)
    content = texts(6, vocabulary=len(VOCABULARY), seed=1)
    expected = encoder.trunk(content).states
    compile_blocks(model, backend=backend)
    assert torch.equal(encoder.trunk(content).states, expected)
    assert not backend.graphs


def test_nothing_live_and_networks_of_unknown_structure_are_left() -> None:
    assert len(compile_blocks(recommender(captions(cut=3), layers=1), backend="eager")) == 1

    class Other(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 8, 8)

        def forward_features(self, pixels: Tensor) -> Tensor:
            return self.convolution(pixels)

    unknown = ImageEncoder(TimmStack(Other(), side=32), trunk_blocks=0, mean=MEAN, std=STD)
    assert len(unknown.live_blocks()) == 1
    assert len(compile_blocks(recommender(unknown, layers=1), backend="eager")) == 1


def test_runs_under_bfloat16_autocast_and_back() -> None:
    model, backend = recommender(captions(cut=2)).eval(), Counting()
    plain = copy.deepcopy(model)
    compile_blocks(model, backend=backend)
    batch = item_batch(texts(4, vocabulary=len(VOCABULARY), seed=1))
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found, expected = (m.item_encoder(batch) for m in (model, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    counts = len(backend.graphs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.item_encoder(batch)
    assert len(backend.graphs) == counts


def item_batch(content: TextContent) -> ItemBatch:
    rows = torch.arange(len(content))
    return ItemBatch(item_rows=rows, parts={"text": Parts(content, rows, rows)})


def test_operations_are_counted_as_without() -> None:
    batch, counts = item_batch(texts(4, vocabulary=len(VOCABULARY), seed=1)), []
    for compiled in (False, True):
        model, backend = recommender(captions(cut=2)).eval(), Counting()
        if compiled:
            compile_blocks(model, backend=backend)
            model.item_encoder(batch)
            assert backend.graphs
        with operation_counter() as counter:
            torch.autograd.backward(model.item_encoder(batch).sum())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class TestCompiler:
    def test_one_that_works(self) -> None:
        check_compiler(CPU, backend="eager")

    @pytest.mark.parametrize(
        "error", [RuntimeError("no g++ here\nand more"), OSError("no g++ here"), ImportError("no g++ here")]
    )
    def test_none(self, error: Exception) -> None:
        def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
            raise error

        with pytest.raises(ConfigError, match=r"a compiler .* on cpu, got .*no g\+\+ here.*in train.compile. Install"):
            check_compiler(CPU, backend=broken)

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
    def test_a_real_one(self) -> None:
        """A block of few operations, for each kernel takes a compiler seconds; another shape needs no other kernel."""
        encoder = Bent(4)
        assert isinstance(encoder, BlockEncoder)
        model = recommender(encoder, layers=0)
        plain = copy.deepcopy(encoder)
        assert compile_blocks(model) == [encoder.block]
        with torch._inductor.config.patch({"compile_threads": 1, "cpp.simdlen": 1}):
            for number, rows in enumerate((5, 3)):
                content = VectorContent(torch.randn(rows, 4, generator=torch.Generator().manual_seed(number)))
                with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                    found, expected = encoder(content).states, plain(content).states
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                assert_same(gradients(found, encoder), gradients(expected, plain))
