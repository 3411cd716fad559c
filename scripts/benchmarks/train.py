"""A training step against the encoders alone, and against a step as the field takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import timm
import torch
from field.training import Negatives, PaddedModel
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks.made_feed import HM_LIKE, ML1M_LIKE, CachedStates, Contents, Likeness, MadeFeed, batch_of, reader_of
from benchmarks.measure import Row, alternate, ratios
from mmrec.batch import Content, HistoryBatch, TokenStates
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.training.loss import TrainingLoss
from mmrec.training.precision import mixed_precision

HALF = (0.5, 0.5, 0.5)
WORDS = 30_000
BATCHES = 3
"""Different batches that the sides cycle through."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of the encoders and of a step.

    Args:
        users: of a step.
        text: width, layers and heads.
        image: timm model, layers (None for its own) and side in pixels.
        dim: the model's width.
        max_tokens: longest caption.
        live: blocks trained where a trunk is cached.
    """

    users: int
    text: tuple[int, int, int]
    image: tuple[str, int | None, int]
    dim: int
    max_tokens: int
    live: int


FULL = {
    "small": Shapes(8, (64, 2, 2), ("vit_tiny_patch16_224", 2, 32), 32, 64, 1),
    "cpu": Shapes(64, (256, 2, 4), ("vit_tiny_patch16_224", 2, 64), 128, 64, 1),
    "gpu": Shapes(512, (768, 12, 12), ("vit_base_patch32_224", None, 224), 256, 64, 1),
}
CACHED = FULL | {"cpu": Shapes(32, (256, 6, 4), ("vit_tiny_patch16_224", 6, 64), 128, 64, 1)}


class Trial:
    """One feed, one depth of training, and everything that is timed on it."""

    def __init__(self, shapes: Shapes, likeness: Likeness, *, cached: bool, device: str) -> None:
        torch.manual_seed(0)
        self.shapes, self.cached, self.device = shapes, cached, torch.device(device)
        name, depth, side = shapes.image
        self.feed = MadeFeed.make(likeness, words=WORDS, max_tokens=shapes.max_tokens, side=side)
        width, layers, heads = shapes.text
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.vit = timm.create_model(name, num_classes=0, img_size=side, **({} if depth is None else {"depth": depth}))
        cut = [layers - shapes.live, len(self.vit.blocks) - shapes.live] if cached else [0, 0]
        text = TextEncoder(TransformersStack(self.bert), trunk_blocks=cut[0])
        image = ImageEncoder(TimmStack(self.vit, side=side), trunk_blocks=cut[1], mean=HALF, std=HALF)
        self.model = self._recommender(text, image).to(self.device).train()
        self.encoders = {"text": text, "image": image}
        items = likeness.items
        reader = reader_of(Contents(self.feed.texts), Contents(self.feed.images), items=items)
        if cached:
            every = np.arange(items)
            sources = [CachedStates(self._trunk(name, every)) for name in ("text", "image")]
            reader = reader_of(*sources, items=items)
        self.users = [self.feed.users(shapes.users, seed=number) for number in range(BATCHES)]
        generator = np.random.default_rng(7)
        self.batches = [
            batch_of(users, reader, negatives=generator.choice(items, shapes.users, replace=False)).to(self.device)
            for users in self.users
        ]
        self.bank = torch.nn.functional.normalize(torch.randn(items, self.model.width, device=self.device), dim=1)
        self.loss = TrainingLoss(kind="full_softmax", mask_history=True)
        field_width = sum(encoder.dim for encoder in self.encoders.values())
        self.peer = PaddedModel(
            self._field_text,
            self._field_image,
            text_dim=text.dim,
            image_dim=field_width - text.dim,
            dim=shapes.dim,
            length=likeness.length,
        ).to(self.device)
        self.optimizers = {
            "mmrec": torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], fused=True),
            "field": torch.optim.AdamW(self._live(self.peer.parameters()), fused=True),
        }

    def _recommender(self, text: TextEncoder, image: ImageEncoder) -> RecommenderModel:
        dim = self.shapes.dim
        return RecommenderModel(
            item_encoder=ItemEncoder(
                encoders={"text": text, "image": image},
                fusion=BottleneckFusion(dim=dim, num_modalities=2, dropout=0.1),
                dim=dim,
                modality_dropout=0.1,
                feature_dropout=0.1,
            ),
            user_encoder=TransformerUserEncoder(dim=dim, dropout=0.2),
            scorer=Scorer(dim=dim),
        )

    def _trunk(self, name: str, rows: npt.NDArray[np.int64]) -> TokenStates:
        read: Callable[[npt.NDArray[np.int64]], Content] = self.feed.texts if name == "text" else self.feed.images
        pieces = [self.encoders[name].trunk(read(part).to(self.device)) for part in np.array_split(rows, 16)]
        return TokenStates(
            torch.cat([piece.states for piece in pieces]).cpu(), torch.cat([piece.lengths for piece in pieces]).cpu()
        )

    def _live(self, own: Iterator[nn.Parameter]) -> list[nn.Parameter]:
        shared = [p for module in (self.bert, self.vit) for p in module.parameters() if p.requires_grad]
        return [*own, *shared]

    def _field_text(self, token_ids: Tensor) -> Tensor:
        vectors: Tensor = self.bert(input_ids=token_ids, attention_mask=(token_ids > 0).long())[0][:, 0]
        return vectors

    def _field_image(self, pixels: Tensor) -> Tensor:
        vectors: Tensor = self.vit.forward_features((pixels.float() / 255 - 0.5) / 0.5).mean(dim=1)
        return vectors

    def step(self, number: int) -> None:
        """Take a step as mmrec takes it."""
        batch: HistoryBatch = self.batches[number % BATCHES]
        with mixed_precision(self.device, enabled=self.device.type == "cuda"):
            output = self.model(batch)
        torch.autograd.backward(self.loss(output, batch, self.bank).total)
        self._finish("mmrec", self.model)

    def encode_only(self, number: int) -> None:
        """Run the encoders forward and backward on the same distinct contents: the floor."""
        batch: HistoryBatch = self.batches[number % BATCHES]
        with mixed_precision(self.device, enabled=self.device.type == "cuda"):
            states = [self.encoders[name](part.content).states for name, part in batch.items.parts.items()]
        torch.autograd.backward([state.float().mean() for state in states])
        for encoder in self.encoders.values():
            encoder.zero_grad(set_to_none=True)

    def padded_step(self, number: int, *, negatives: Negatives) -> None:
        """Take a step as the field takes it, over the same users."""
        slots = self.feed.likeness.length + 1
        generator = np.random.default_rng(number)
        rows = np.full((self.shapes.users, slots * (2 if negatives == "one" else 1)), -1, np.int64)
        for row, items in zip(rows, self.users[number % BATCHES], strict=True):
            row[slots - len(items) : slots] = items
            if negatives == "one":
                row[2 * slots - len(items) :] = generator.integers(0, self.feed.likeness.items, len(items))
        flat = rows.reshape(-1)
        ids = self.feed.padded(flat, max_tokens=self.shapes.max_tokens)
        ids[:, 0] = ids[:, 0].clamp(min=1)  # blank captions still hold their first token
        pixels = self.feed.pictures[torch.from_numpy(np.maximum(flat, 0))]
        with mixed_precision(self.device, enabled=self.device.type == "cuda"):
            loss = self.peer(ids.to(self.device), pixels.to(self.device), users=self.shapes.users, negatives=negatives)
        torch.autograd.backward(loss)
        self._finish("field", self.peer)

    def _finish(self, side: str, module: nn.Module) -> None:
        optimizer = self.optimizers[side]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        module.zero_grad(set_to_none=True)

    def work(self) -> dict[str, float]:
        """Count what is encoded on either side."""
        slots = self.feed.likeness.length + 1
        real = float(np.mean([sum(map(len, users)) / (len(users) * slots) for users in self.users]))
        distinct = float(np.mean([len(batch.items) for batch in self.batches]))
        return {
            "slots that are real": real,
            "distinct items": distinct,
            "padded slots": float(self.shapes.users * slots),
        }


def train(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Full fine-tuning, then the top block live over a cached trunk, on histories like H&M's and like MovieLens's."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    for cached, shapes in ((False, FULL[size]), (True, CACHED[size])):
        depth = f"top {shapes.live} live, trunk cached" if cached else "full fine-tuning"
        asked = {"floor": 1.15 if cached else 1.10, "field": (8.0 if kind == "cpu" else 10.0) if cached else 2.5}
        for name, likeness in (("hm-like", HM_LIKE), ("ml1m-like", ML1M_LIKE)):
            trial = Trial(shapes, likeness, cached=cached, device=device)
            sides: dict[str, Callable[[int], None]] = {
                "mmrec": trial.step,
                "floor": trial.encode_only,
                "field, in-batch loss": partial(trial.padded_step, negatives="in_batch"),
                "field, one negative": partial(trial.padded_step, negatives="one"),
            }
            turns = dict.fromkeys(sides, 0)

            def turn(side: str, run: Callable[[int], None], turns: dict[str, int] = turns) -> None:
                run(turns[side])
                turns[side] += 1

            seconds = alternate(
                {side: partial(turn, side, run) for side, run in sides.items()}, rounds=rounds, device=device
            )
            details = {f"{side} s": float(np.median(values)) for side, values in seconds.items()}
            what = f"{depth}, {name}, {shapes.users} users"
            limits = asked if size != "small" else {}
            yield Row(
                "train",
                f"step over the encoders alone, {what}",
                ratios(seconds["mmrec"], seconds["floor"]),
                bound="at most",
                target=limits.get("floor"),
                details=details | trial.work(),
            )
            for loss in ("in-batch loss", "one negative"):
                yield Row(
                    "train",
                    f"faster than a padded step with {loss}, {what}",
                    ratios(seconds[f"field, {loss}"], seconds["mmrec"]),
                    target=limits.get("field"),
                )
