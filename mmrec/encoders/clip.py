"""The two halves of an open_clip pair: token states of its text transformer and patch states of its image network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import open_clip
from torch import nn

from mmrec.encoders.clip_stacks import OpenClipTextStack, OpenClipVitStack, ResNetStack
from mmrec.encoders.image import Channels, ImageStack
from mmrec.encoders.text import TextStack
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.encoders.weights import HUB, LOCAL, prefixed_source, seeded, unusable_model
from mmrec.errors import ConfigError, near_names

WHERE = "encoders (open_clip)"


@dataclass(frozen=True)
class OpenClipPair:
    """A loaded pair.

    Args:
        model: both halves.
        source: name that open_clip's own functions take, for the tokenizer.
        mean: channel means in [0, 1] of its pictures.
        std: channel standard deviations.
        side: side in pixels of its pictures.
        context_length: longest text in tokens.
        reads_padding: whether its text half attends to padding, which then counts as text.
    """

    model: nn.Module
    source: str
    mean: Channels
    std: Channels
    side: int
    context_length: int
    reads_padding: bool


def load_open_clip(
    name: str, *, pretrained: str | None = None, random_weights: bool = False, seed: int = 0
) -> OpenClipPair:
    """Load a pair by open_clip name, ``hf-hub:`` tag or folder; weights from safetensors only.

    Args:
        name: model name, tag, or a folder with ``open_clip_config.json``.
        pretrained: pretrained tag or safetensors file; only with a model name.
        random_weights: keep the architecture but start from random weights.
        seed: of the random weights; the global random state is left as it was.

    Raises:
        ConfigError: no such model or weights; near names are listed.
    """
    source = _source(name)
    try:
        with seeded(seed), _quiet():
            path = None if random_weights else _weights_file(name, source, pretrained)
            tag = None if random_weights or Path(pretrained or "").is_file() else pretrained
            model = open_clip.create_model(source, pretrained=tag, load_weights=False, pretrained_text=False)
            if path is not None:
                open_clip.load_checkpoint(model, str(path))
        text = open_clip.get_model_config(source)["text_cfg"]
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise unusable_model("an open_clip pair", name, error, where=WHERE) from error
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    return OpenClipPair(
        model=cast("nn.Module", model),
        source=source,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        side=int(size if isinstance(size, int) else size[-1]),
        context_length=int(text.get("context_length", 77)),
        reads_padding=bool(text.get("no_causal_mask")),
    )


def open_clip_text_stack(pair: OpenClipPair) -> TextStack:
    """Return the text half as a stack: open_clip's own transformer, or one of the transformers library."""
    tower = cast("nn.Module", getattr(pair.model, "text", pair.model))
    if hasattr(tower, "token_embedding"):
        return OpenClipTextStack(tower, context_length=pair.context_length)
    return TransformersStack(cast("nn.Module", tower.transformer))


def open_clip_image_stack(pair: OpenClipPair) -> ImageStack:
    """Return the image half as a stack: open_clip's own ViT or ResNet, or a model of timm."""
    visual = cast("nn.Module", pair.model.visual)
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipVitStack(visual, side=pair.side)
    if hasattr(visual, "trunk"):
        return TimmStack(cast("nn.Module", visual.trunk), side=pair.side)
    return ResNetStack(visual, side=pair.side)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide open_clip's messages on the root logger: weights are put in place by hand here."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def _source(name: str) -> str:
    source = prefixed_source(name, where=WHERE)
    if not source.startswith((HUB, LOCAL)) and source not in open_clip.list_models():
        raise ConfigError(
            "an open_clip model name, an hf-hub: tag or a folder",
            got=repr(name),
            where=WHERE,
            fix=near_names(name, open_clip.list_models())[:400],
        )
    return source


def _weights_file(name: str, source: str, pretrained: str | None) -> Path:
    """Find the safetensors file of a pair."""
    if source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL))
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise unusable_model("safetensors weights", name, ValueError("no *.safetensors in it"), where=WHERE)
        preferred = [path for path in found if path.name.startswith("open_clip")]
        return (preferred or found)[0]
    if source.startswith(HUB):
        path = Path(open_clip.pretrained.download_pretrained_from_hf(source.removeprefix(HUB)))
    elif pretrained is not None and Path(pretrained).is_file():
        path = Path(pretrained)
    else:
        config = open_clip.get_pretrained_cfg(source, pretrained) if pretrained else None
        if not config:
            tags = open_clip.list_pretrained_tags_by_model(source)
            raise ConfigError(
                "a pretrained tag or a safetensors file",
                got=repr(pretrained),
                where=f"{WHERE}: {name}",
                fix=f"{near_names(pretrained or '', tags)}; or set random_weights: true.",
            )
        path = Path(open_clip.download_pretrained(config))
    if path.suffix != ".safetensors":
        reason = ValueError(f"{path.name} is no safetensors file: {path}")
        raise unusable_model("safetensors weights", name, reason, where=WHERE)
    return path
