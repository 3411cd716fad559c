"""A feed on disk whose posts fall into topics, encoders of random weights, and a run trained on them in moments."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from benchmarks.made_captions import Language, item_id
from data_tools.prepare import PrepareOptions, SplitPlan, prepare
from mmrec.commands.train import train_run
from mmrec.config import validate

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class RunShape:
    """Sizes of a made feed and of the model trained on it.

    Args:
        items: posts.
        users: users.
        events: clicks of a user.
        topics: of posts and of tastes.
        words: of a caption, on average.
        text: width, layers and heads of the caption encoder.
        image: timm model of pictures; None for a feed of captions alone.
        side: of a picture, in pixels.
        dim: the model's width.
        live: whether all of the caption encoder is trained; otherwise it is frozen, as pictures always are.
        epochs: of training.
    """

    items: int
    users: int
    events: int
    topics: int
    words: float
    text: tuple[int, int, int]
    image: str | None
    side: int
    dim: int
    live: bool = False
    epochs: int = 1


TINY = RunShape(60, 40, 6, 6, 8.0, (32, 2, 2), "test_vit", 32, 16)
"""Made in a few seconds."""


def save_encoder(language: Language, folder: Path, shape: tuple[int, int, int]) -> None:
    """Write a BERT of random weights, and a tokenizer that knows every word."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *language.words])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    width, layers, heads = shape
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=128,
    )
    disable_progress_bar()
    BertModel(config).save_pretrained(folder)


def picture(topic: int, generator: np.random.Generator, *, side: int) -> Image.Image:
    """Draw a smooth gradient in the topic's colour, with grain: about as large as a JPEG as a photograph."""
    colour = np.random.default_rng(topic).integers(40, 215, 3)
    rows, columns = np.mgrid[0:side, 0:side] / side
    waves = np.sin(generator.uniform(2, 12) * rows + generator.uniform(2, 12) * columns + generator.uniform(0, 6))
    grain = generator.normal(0, 6, (side, side, 1))
    return Image.fromarray((colour + 40 * waves[..., None] + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """Encode as cameras and web sites do."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@dataclass(frozen=True)
class MadeRun:
    """What was made.

    Args:
        run: the run's folder.
        feed: the prepared feed.
        shape: the sizes asked for.
        language: of its captions.
    """

    run: Path
    feed: Path
    shape: RunShape
    language: Language

    @property
    def item_ids(self) -> list[str]:
        """All ids of the feed."""
        return [item_id(row) for row in range(self.shape.items)]


def make_run(folder: Path, shape: RunShape, *, device: str) -> MadeRun:
    """Write a raw feed, prepare it, and train on it; the seed is fixed."""
    language = Language(shape.topics, shape.words)
    write_raw(folder / "raw", shape, language)
    options = PrepareOptions(
        image_side=shape.side, timestamp_unit="order", split=SplitPlan(kind="leave_last_out"), workers=1
    )
    prepare(folder / "raw", folder / "feed", options=options)
    torch.manual_seed(0)
    save_encoder(language, folder / "bert", shape.text)
    text: dict[str, object] = {"kind": "transformers", "model": str(folder / "bert"), "max_tokens": 64}
    encoders = {"text": text | ({"tuning": {"mode": "full", "learning_rate": 1e-3}} if shape.live else {})}
    if shape.image is not None:
        encoders["image"] = {"kind": "timm", "model": shape.image, "random_weights": True, "side": shape.side}
    config = {
        "encoders": encoders,
        "model": {"dim": shape.dim},
        "train": {"epochs": shape.epochs, "batch_users": 64, "history_length": 20, "trackers": []},
    }
    train_run(validate(config, where="benchmark"), feed=folder / "feed", out=folder / "run", device=device)
    return MadeRun(folder / "run", folder / "feed", shape, language)


def write_raw(folder: Path, shape: RunShape, language: Language) -> None:
    """Write a raw feed: users keep to two topics each, and mostly to what is popular there."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    topics = np.arange(shape.items) % shape.topics
    ids = [item_id(row) for row in range(shape.items)]
    items = {"item_id": ids, "caption": language.captions(topics, generator)}
    if shape.image is not None:
        (folder / "images").mkdir()
        for name, topic in zip(ids, topics, strict=True):
            data = jpeg(picture(int(topic), generator, side=shape.side))
            (folder / "images" / f"{name}.jpg").write_bytes(data)
    pd.DataFrame(items).to_parquet(folder / "items.parquet")
    tastes = generator.integers(0, shape.topics, (shape.users, 2))
    chosen = np.take_along_axis(tastes, generator.integers(0, 2, (shape.users, shape.events)), axis=1)
    places = (shape.items // shape.topics * generator.random(chosen.shape) ** 2).astype(np.int64)
    events = {
        "user_id": [f"u{user}" for user in np.repeat(np.arange(shape.users), shape.events)],
        "item_id": [ids[row] for row in (places * shape.topics + chosen).ravel()],
        "timestamp": np.tile(np.arange(shape.events), shape.users),
    }
    pd.DataFrame(events).to_parquet(folder / "interactions.parquet")
