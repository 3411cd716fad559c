"""A training step against the encoders alone, and against a step as the field takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import timm
import torch
from field.training import Negatives, PaddedModel
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks.made_feed import HM_LIKE, ML1M_LIKE, Likeness, MadeFeed, batch_of, reader_of
from benchmarks.measure import Row, alternate, give_free_memory_back, ratios
from mmrec.ahead import ahead
from mmrec.batch import HistoryBatch
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.feed.items import ItemReader
from mmrec.inference.device_contents import keep_on_device
from mmrec.inference.trunk_cache import TrunkCache
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.preprocessing.views import PixelView, TokenView
from mmrec.storage import RaggedArray
from mmrec.training.compilation import compile_blocks
from mmrec.training.loss import TrainingLoss
from mmrec.training.operations import matrix_peak, operation_counter
from mmrec.training.precision import fit_attention, mixed_precision
from mmrec.training.transfer import send_ahead

HALF = (0.5, 0.5, 0.5)
WORDS = 30_000
BATCHES = 3
"""Different batches that the sides cycle through."""
PER_ROUND = 2 * BATCHES
"""Steps of ours, and of the encoders alone, in a round."""
AT_ONCE = {"cpu": 4_096, "cuda": 6_528}
"""Padded slots that the field encodes at once: beyond, their activations do not fit on a card, or in 24 GB."""
PEAK_SHARE = 0.45
MOST_WAITING = 0.02
FEW_ITEMS = 200
"""Of a run that only shows that it runs."""
WARM_UP, STEPS = 3, 6
"""Batches before and in the measurement of waiting."""


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
    "small": Shapes(3, (32, 2, 2), ("vit_tiny_patch16_224", 2, 32), 32, 16, 1),
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
        captions, pictures = self.feed.text_view, self.feed.image_view
        self.reader = reader_of(captions, pictures, items=items)
        if cached:
            states = self._trunk_cache("text", captions), self._trunk_cache("image", pictures)
            self.reader = reader_of(*states, items=items)
        self.users = [self.feed.users(shapes.users, seed=number) for number in range(BATCHES)]
        self.batches = [self.batch(number, self.reader).to(self.device) for number in range(BATCHES)]
        self.bank = torch.nn.functional.normalize(torch.randn(items, self.model.width, device=self.device), dim=1)
        self.loss = TrainingLoss(kind="full_softmax", mask_history=True)
        # The field's contents lie on the device too; row -1 is padding, which is encoded like any other slot.
        rows = np.append(np.arange(items), -1)
        self.padded_captions = self.feed.padded(rows, max_tokens=shapes.max_tokens).to(self.device)
        self.padded_captions[:, 0].clamp_(min=1)  # blank captions still hold their first token
        self.pictures = self.feed.pictures.to(self.device)
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

    def batch(self, number: int, reader: ItemReader) -> HistoryBatch:
        """Collate a batch, with as many negatives as users."""
        generator = np.random.default_rng(number)
        negatives = generator.choice(self.feed.likeness.items, self.shapes.users, replace=False)
        return batch_of(self.users[number % BATCHES], reader, negatives=negatives)

    def _trunk_cache(self, name: str, view: TokenView | PixelView) -> TrunkCache:
        every = np.arange(len(view))
        parts = [self.encoders[name].trunk(view.gather(rows).to(self.device)) for rows in np.array_split(every, 16)]
        ends = torch.cat([part.lengths.cpu() for part in parts]).cumsum(0).numpy()
        states = torch.cat([part.states.cpu() for part in parts]).numpy()
        return TrunkCache(every, (RaggedArray(states, np.concatenate([[0], ends])),), "float32")

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
        self.learn(self.batches[number % BATCHES])

    def learn(self, batch: HistoryBatch) -> None:
        """Take a step on a batch that lies on the device."""
        with self._precision():
            output = self.model(batch)
        torch.autograd.backward(self.loss(output, batch, self.bank).total)
        self._finish("mmrec", self.model)

    def encode_only(self, number: int) -> None:
        """Run the encoders forward and backward on the same distinct contents: the floor."""
        batch: HistoryBatch = self.batches[number % BATCHES]
        with self._precision():
            states = [self.encoders[name](part.content).states for name, part in batch.items.parts.items()]
        torch.autograd.backward([state.float().mean() for state in states])
        for encoder in self.encoders.values():
            encoder.zero_grad(set_to_none=True)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Run a forward pass as a training does."""
        narrow = self.device.type == "cuda"
        with fit_attention(self.device, narrow=narrow), mixed_precision(self.device, enabled=narrow):
            yield

    @cached_property
    def operations(self) -> float:
        """Matrix operations of a step, forward and backward, as a mean over the batches; first asked before compiling."""
        with operation_counter() as counter:
            for number in range(BATCHES):
                self.step(number)
        return counter.get_total_flops() / BATCHES

    def padded_step(self, number: int, *, negatives: Negatives) -> None:
        """Take a step as the field takes it, over the same users; as many at once as there is room for."""
        slots = self.feed.likeness.length + 1
        generator = np.random.default_rng(number)
        rows = np.full((self.shapes.users, slots * (2 if negatives == "one" else 1)), -1, np.int64)
        for row, items in zip(rows, self.users[number % BATCHES], strict=True):
            row[slots - len(items) : slots] = items
            if negatives == "one":
                row[2 * slots - len(items) :] = generator.integers(0, self.feed.likeness.items, len(items))
        at_once = AT_ONCE[self.device.type] // rows.shape[1]
        for part in torch.split(torch.from_numpy(rows).to(self.device), at_once):
            flat = part.flatten()
            captions, pictures = self.padded_captions[flat], self.pictures[flat.clamp(min=0)]
            with mixed_precision(self.device, enabled=self.device.type == "cuda"):
                loss = self.peer(captions, pictures, users=len(part), negatives=negatives)
            torch.autograd.backward(loss * len(part) / len(rows))
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
    """Full fine-tuning, then the top block live over a cached trunk, on histories like H&M's and like MovieLens's.

    On a GPU the live blocks are compiled, those of the field too, after a look at the step without.
    """
    on_gpu = device.startswith("cuda")
    for cached, shapes in ((False, FULL[size]), (True, CACHED[size])):
        for like in (HM_LIKE, ML1M_LIKE):
            likeness = replace(like, items=FEW_ITEMS) if size == "small" else like
            trial = Trial(shapes, likeness, cached=cached, device=device)
            if on_gpu:
                yield from measure_step(trial, size=size, rounds=rounds, compiled=False, field=False)
                compile_blocks(trial.model)
            yield from measure_step(trial, size=size, rounds=rounds, compiled=on_gpu, field=True)
            # A case may take all the memory that a machine has, but not beside what the one before has left.
            del trial
            give_free_memory_back()


def measure_step(trial: Trial, *, size: str, rounds: int, compiled: bool, field: bool) -> Iterator[Row]:
    """Time a step over the encoders alone, and as a share of the device's peak; then the field's over it."""
    device, shapes = trial.device, trial.shapes
    sides: dict[str, Callable[[int], None]] = {"mmrec": trial.step, "floor": trial.encode_only}
    if field:
        sides |= {
            "field, in-batch loss": partial(trial.padded_step, negatives="in_batch"),
            "field, one negative": partial(trial.padded_step, negatives="one"),
        }
    turns = dict.fromkeys(sides, 0)

    def turn(side: str) -> None:
        sides[side](turns[side])
        turns[side] += 1

    # Step by step beside each other, for a machine is not as fast at any time; a step of the field is as long as several.
    own = {side: partial(turn, side) for side in ("mmrec", "floor")}
    others = {side: partial(turn, side) for side in sides if side not in own}
    # Steps whose shapes are new may compile, or choose their kernels, first.
    alternate(own, rounds=0, warm_up=BATCHES if device.type == "cuda" else 1)
    alternate(others, rounds=0)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        timed = alternate(own, rounds=PER_ROUND, device=device.type, warm_up=0)
        timed |= alternate(others, rounds=1, device=device.type, warm_up=0)
        for side, values in timed.items():
            seconds[side].append(float(np.mean(values)))
    details = {f"{side} s": float(np.median(values)) for side, values in seconds.items()}
    depth = f"top {shapes.live} live, trunk cached" if trial.cached else "full fine-tuning"
    what = f"{depth}{', compiled' if compiled else ''}, {trial.feed.likeness.name}, {shapes.users} users"
    asked = size != "small" and field
    yield Row(
        "train",
        f"step over the encoders alone, {what}",
        ratios(seconds["mmrec"], seconds["floor"]),
        bound="at most",
        target=(1.15 if trial.cached else 1.10) if asked else None,
        details=details | trial.work(),
    )
    peak = matrix_peak(device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    yield Row(
        "train",
        f"share of the matrix peak, {what}",
        tuple(trial.operations / taken / peak for taken in seconds["mmrec"]),
        target=PEAK_SHARE if asked and device.type == "cuda" and not trial.cached else None,
        unit="",
        details={"TFLOP of a step": trial.operations / 1e12, "peak TFLOP/s": peak / 1e12},
    )
    if field:
        yield from measure_waiting(trial, size=size, what=what)
    for loss in ("in-batch loss", "one negative") if field else ():
        yield Row(
            "train",
            f"faster than a padded step with {loss}, {what}",
            ratios(seconds[f"field, {loss}"], seconds["mmrec"]),
            target=((8.0 if device.type == "cpu" else 10.0) if trial.cached else 2.5) if asked else None,
        )


def measure_waiting(trial: Trial, *, size: str, what: str) -> Iterator[Row]:
    """Measure how long steps wait for the loader's thread and for what it sent: contents sent with every batch, or kept
    on the device.

    On a GPU the step's own stream is waited for, and no other: the next batch may still be on its way.
    """
    device = trial.device
    readers = {"sent with every batch": trial.reader}
    if device.type == "cuda":
        readers["kept on the device"] = keep_on_device(trial.reader, device, room=1 << 40)
    for where, reader in readers.items():
        made = ahead((trial.batch(number, reader) for number in range(WARM_UP + STEPS)), 2, name="loader")
        batches, waits, took = send_ahead(made, device), [], []
        for _ in range(WARM_UP + STEPS):
            start = time.perf_counter()
            batch = next(batches).receive(device)
            _finish_stream(device)
            waits.append(time.perf_counter() - start)
            trial.learn(batch)
            _finish_stream(device)
            took.append(time.perf_counter() - start)
        yield Row(
            "train",
            f"share of a step that waits for the loader, contents {where}, {what}",
            (sum(waits[WARM_UP:]) / sum(took[WARM_UP:]),),
            bound="at most",
            target=None if size == "small" else MOST_WAITING,
            unit="",
            details={"step s": float(np.mean(took[WARM_UP:])), "longest wait s": max(waits[WARM_UP:])},
        )


def _finish_stream(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
