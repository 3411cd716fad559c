"""What every fusion promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmrec.batch import ItemBatch
from mmrec.model.fusion import BottleneckFusion, BottleneckLayer, ConcatFusion, Fusion
from mmrec.model.tokens import ItemTokens, TokenAssembler
from tests.model.samples import DIM, POSTS, Post, TinyImage, TinyText, item_batch, randomise

FUSIONS = [BottleneckFusion, ConcatFusion]


class Setting:
    """Encoders, assembler and one fusion, all random, in float64."""

    def __init__(self, kind: type[nn.Module], *, random: bool = True) -> None:
        torch.manual_seed(3)
        options = {"num_layers": 2, "num_heads": 2, "num_latents": 3} if kind is BottleneckFusion else {}
        self.encoders = nn.ModuleDict({"text": TinyText(), "image": TinyImage()}).double()
        self.assembler = TokenAssembler(input_dims={"text": TinyText.dim, "image": TinyImage.dim}, dim=DIM).double()
        self.fusion = kind(dim=DIM, num_modalities=2, **options).double()
        if random:
            randomise(self.fusion)

    def tokens(self, posts: Sequence[Post]) -> ItemTokens:
        batch: ItemBatch = item_batch(posts)
        parts = {name: batch.parts[name] for name in self.encoders if name in batch.parts}
        encoded = {name: self.encoders[name](part.content) for name, part in parts.items()}
        return self.assembler(parts, encoded, num_items=len(batch))

    def __call__(self, posts: Sequence[Post]) -> torch.Tensor:
        return self.fusion(self.tokens(posts))


@pytest.mark.parametrize("kind", FUSIONS)
class TestContract:
    def test_satisfies_the_protocol(self, kind: type[nn.Module]) -> None:
        assert isinstance(Setting(kind).fusion, Fusion)

    def test_an_item_does_not_depend_on_its_neighbours_or_on_padding(self, kind: type[nn.Module]) -> None:
        setting = Setting(kind)
        together = setting(POSTS)
        alone = torch.cat([setting([post]) for post in POSTS])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)

    def test_gradients_do_not_depend_on_company_either(self, kind: type[nn.Module]) -> None:
        setting = Setting(kind)
        weight = torch.linspace(-1, 1, DIM, dtype=torch.float64)
        parameters = [*setting.encoders.parameters(), *setting.assembler.parameters(), *setting.fusion.parameters()]
        together = torch.autograd.grad((setting(POSTS) * weight).sin().sum(), parameters, allow_unused=True)
        losses = torch.stack([(setting([post]) * weight).sin().sum() for post in POSTS])
        alone = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        for mine, expected in zip(together, alone, strict=True):
            assert (mine is None) == (expected is None)
            if mine is not None:
                torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)

    def test_the_order_of_pictures_does_not_matter(self, kind: type[nn.Module]) -> None:
        setting = Setting(kind)
        orders = [Post(caption=(1, 2), pictures=pictures) for pictures in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]]
        vectors = setting(orders)
        torch.testing.assert_close(vectors[1], vectors[0])
        torch.testing.assert_close(vectors[2], vectors[0])

    def test_caption_pictures_and_presence_all_matter(self, kind: type[nn.Module]) -> None:
        both = Post(caption=(1, 2), pictures=(0,))
        others = [
            Post(caption=(1, 3), pictures=(0,)),
            Post(caption=(1, 2), pictures=(1,)),
            Post(caption=(1, 2), pictures=(0, 1)),
            Post(caption=(1, 2)),
            Post(pictures=(0,)),
            Post(),
        ]
        vectors = Setting(kind)([both, *others])
        assert ((vectors[1:] - vectors[0]).norm(dim=1) > 1e-3).all()

    def test_an_item_with_nothing_is_finite_in_value_and_gradient(self, kind: type[nn.Module]) -> None:
        setting = Setting(kind)
        vectors = setting([Post(), Post()])
        assert vectors.isfinite().all()
        vectors.norm(dim=1).sum().backward()
        gradients = [p.grad for p in setting.fusion.parameters() if p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_no_items(self, kind: type[nn.Module]) -> None:
        assert Setting(kind)([]).shape == (0, DIM)

    def test_starts_with_the_similarity_of_the_summaries(self, kind: type[nn.Module]) -> None:
        setting = Setting(kind, random=False)
        tokens = setting.tokens(POSTS)
        vectors = setting.fusion(tokens)
        # Norm about one: the last step is a normalisation to coordinates of 1 / sqrt(dim).
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(POSTS)).double(), atol=0.02, rtol=0)
        has = tokens.present.any(dim=1)
        summed = tokens.summaries.sum(dim=1)[has]
        cosine = nn.functional.cosine_similarity(vectors[has], summed, dim=1)
        assert (cosine > 0.9).all()


def test_bottleneck_reads_single_tokens_not_only_their_means() -> None:
    setting = Setting(BottleneckFusion)
    tokens = setting.tokens([Post(caption=(1, 2, 3, 4))])
    spread = tokens.states[:4] * 2 - tokens.states[:4].mean(0)
    stretched = replace(tokens, states=torch.cat([spread, tokens.states[4:]]))
    assert (setting.fusion(stretched) - setting.fusion(tokens)).norm() > 1e-3


def textbook_layer(layer: BottleneckLayer, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One item's cross-attention as it is written in books: keys and values first, one head after the other."""
    queries, (keys, values) = layer.query(layer.query_norm(latents)), layer.key_value(tokens).chunk(2, dim=1)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        weights = (queries[:, part] @ keys[:, part].T / layer.head_dim**0.5).softmax(dim=1)
        heads.append(weights @ values[:, part])
    latents = latents + layer.output(torch.cat(heads, dim=1))
    return latents + layer.hidden(layer.hidden_norm(latents))


@pytest.mark.parametrize("items_a_block", [2, 100])
def test_cross_attention_equals_the_textbook_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, items_a_block: int
) -> None:
    monkeypatch.setattr("mmrec.model.tokens.BLOCK_ITEMS", items_a_block)
    torch.manual_seed(1)
    layer = BottleneckLayer(dim=DIM, num_heads=2, dropout=0.0).double()
    randomise(layer)
    tokens = Setting(BottleneckFusion).tokens(POSTS)
    blocks = tokens.blocks()
    order = torch.cat([block.items for block in blocks])
    latents = torch.randn(len(tokens), 3, DIM, dtype=torch.float64, requires_grad=True)
    fast = layer(latents[order], blocks)[order.argsort()]
    own = [tokens.states[index] for index in tokens.index.split(tokens.counts.tolist())]
    slow = torch.stack([textbook_layer(layer, row, states) for row, states in zip(latents, own, strict=True)])
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, DIM, dtype=torch.float64)
    inputs = [latents, tokens.states, *layer.parameters()]
    for mine, expected in zip(
        torch.autograd.grad((fast * weight).sin().sum(), inputs, retain_graph=True),
        torch.autograd.grad((slow * weight).sin().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", FUSIONS)
def test_gates_learn_a_conjunction_of_caption_and_picture(kind: type[nn.Module]) -> None:
    """Which of two classes a post has is the exclusive or of caption and picture: no sum of the two can tell."""
    torch.manual_seed(0)
    setting = Setting(kind, random=False)
    posts = [Post(caption=(1 + i, 1 + i), pictures=(j,)) for i in range(2) for j in range(2)]
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    head = nn.Linear(DIM, 1).double()
    modules = [setting.encoders, setting.assembler, setting.fusion, head]
    optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=0.03)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(4 * head(setting(posts))[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
