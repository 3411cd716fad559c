"""Encoders and posts small enough to check by hand: real modules with weights, nothing pretended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmrec.batch import ItemBatch, Parts
from mmrec.contents import Content, IdContent, ImageContent, TextContent, TokenStates
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder

DIM = 8
WORDS, PICTURES, ROWS = 30, 12, 40


class TinyEncoder(nn.Module):
    num_blocks = 1
    trunk_blocks = 0
    has_trunk = False

    def trunk(self, content: Content) -> TokenStates:
        raise AssertionError("a live encoder has no trunk")

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.parameters())]

    def trunk_fingerprint(self) -> str:
        return ""


class TinyText(TinyEncoder):
    """Words that mix with the mean of their caption, so that a token depends on its neighbours."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, self.dim)
        self.mix = nn.Linear(2 * self.dim, self.dim)
        self.encoded = 0

    def forward(self, content: Content) -> TokenStates:
        assert isinstance(content, TextContent)
        self.encoded += len(content)
        words = self.words(content.token_ids)
        owner = torch.repeat_interleave(content.lengths)
        means = words.new_zeros(len(content), self.dim).index_add(0, owner, words)
        means = means / content.lengths.unsqueeze(1)
        return TokenStates(states=self.mix(torch.cat([words, means[owner]], dim=1)).tanh(), lengths=content.lengths)


class TinyImage(TinyEncoder):
    """A strided convolution: 4 x 4 pictures to four patches."""

    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.dim, kernel_size=2, stride=2)
        self.encoded = 0

    def forward(self, content: Content) -> TokenStates:
        assert isinstance(content, ImageContent)
        self.encoded += len(content)
        maps = self.patches(content.pixels.to(self.patches.weight.dtype) / 255).tanh()
        return TokenStates(
            states=maps.flatten(2).transpose(1, 2).reshape(-1, self.dim), lengths=torch.full((len(content),), 4)
        )


class TinyId(TinyEncoder):
    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Embedding(ROWS, dim)

    def forward(self, content: Content) -> TokenStates:
        assert isinstance(content, IdContent)
        return TokenStates(states=self.table(content.item_rows), lengths=torch.ones_like(content.item_rows))


@dataclass(frozen=True)
class Post:
    caption: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    row: int = -1


def pixels(picture: int) -> Tensor:
    generator = torch.Generator().manual_seed(picture)
    return torch.randint(0, 256, (3, 4, 4), generator=generator, dtype=torch.uint8)


def count_of(row: int) -> float:
    return float(1 + 3 * row)


def item_batch(posts: Sequence[Post]) -> ItemBatch:
    """Each distinct caption, picture and id once."""
    captions = sorted({post.caption for post in posts if post.caption})
    pictures = sorted({picture for post in posts for picture in post.pictures})
    rows = sorted({post.row for post in posts if post.row >= 0})
    parts: dict[str, Parts] = {}
    if captions:
        shown = [(i, captions.index(post.caption)) for i, post in enumerate(posts) if post.caption]
        words = torch.tensor([word for caption in captions for word in caption])
        parts["text"] = _parts(TextContent(words, torch.tensor([len(caption) for caption in captions])), shown)
    if pictures:
        shown = [(i, pictures.index(picture)) for i, post in enumerate(posts) for picture in post.pictures]
        parts["image"] = _parts(ImageContent(torch.stack([pixels(picture) for picture in pictures])), shown)
    if rows:
        shown = [(i, rows.index(post.row)) for i, post in enumerate(posts) if post.row >= 0]
        counts = torch.tensor([count_of(row) for row in rows])
        parts["item_id"] = _parts(IdContent(torch.tensor(rows), counts, counts.log()), shown)
    return ItemBatch(item_rows=torch.tensor([post.row for post in posts], dtype=torch.int64), parts=parts)


def _parts(content: Content, shown: list[tuple[int, int]]) -> Parts:
    items, contents = zip(*shown, strict=True)
    return Parts(content=content, item_index=torch.tensor(items), content_index=torch.tensor(contents))


POSTS = [
    Post(caption=(1, 2, 3), pictures=(0,), row=0),
    Post(caption=(4, 5), row=1),
    Post(pictures=(1,), row=5),
    Post(caption=(1, 2, 3), pictures=(2, 3, 0)),
    Post(caption=(6, 7, 8, 9, 10), pictures=(4,)),
    Post(),
    Post(row=7),
    Post(caption=(11,), pictures=(4,), row=20),
]
"""Everything, caption only, picture only, three pictures, shared contents, nothing at all, id only."""


def randomise(module: nn.Module, *, seed: int = 0, scale: float = 0.4) -> None:
    """Take a module away from its gentle start, so that every branch matters to a test."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


def item_encoder(**options: object) -> ItemEncoder:
    """Text, image and id with the default fusion; every weight random."""
    fusion = BottleneckFusion(dim=DIM, num_modalities=2, num_latents=3, num_layers=2, num_heads=2)
    encoder = ItemEncoder(
        encoders={"text": TinyText(), "image": TinyImage(), "item_id": TinyId()},
        fusion=fusion,
        dim=DIM,
        **options,  # type: ignore[arg-type]
    )
    randomise(encoder)
    return encoder
