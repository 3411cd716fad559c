"""Image encoders of the timm library: loading one, and running it in two parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn

from mmrec.encoders.convolutions import join_passes
from mmrec.encoders.image import Channels, map_to_tokens, ramp, tokens_to_map
from mmrec.encoders.patches import multiply_patches
from mmrec.encoders.tuning import Layers
from mmrec.encoders.weights import HUB, LOCAL, find_weights, prefixed_source, read_statistics, seeded, unusable_model
from mmrec.errors import ConfigError, near_names
from mmrec.storage import read_json

WHERE = "encoders.image.model"
SAFE_FILES = ("model.safetensors", "open_clip_model.safetensors")


@dataclass(frozen=True)
class TimmModel:
    """A timm model and what its pictures should look like.

    Args:
        model: the model without its classifier.
        mean: channel means in [0, 1] that its weights expect.
        std: channel standard deviations.
        side: side in pixels that it was made for.
    """

    model: nn.Module
    mean: Channels
    std: Channels
    side: int


def load_timm_model(
    name: str, *, weights: str | None = None, random_weights: bool = False, seed: int = 0, side: int | None = None
) -> TimmModel:
    """Load a model by timm name, ``hf-hub:`` tag or folder; weights from safetensors only.

    Args:
        name: architecture, tag or folder.
        weights: safetensors file or ``converted:NAME``; None takes the folder's or timm's own.
        random_weights: keep the architecture but start from random weights.
        seed: of the random weights; the global random state is left as it was.
        side: side in pixels of the pictures, for models whose position embeddings depend on it.

    Raises:
        ConfigError: no such model or weights; near names are listed.
    """
    source = _source(name)
    path = None if random_weights else _weights_file(name, source, weights)
    overlay = None if path is None else {"file": str(path), "source": "", "custom_load": False}
    try:
        with seeded(seed):
            size = {} if side is None or not _config(source).fixed_input_size else {"img_size": side}
            model = timm.create_model(
                source, pretrained=path is not None, pretrained_cfg_overlay=overlay, num_classes=0, **size
            )
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise unusable_model("an image model of timm", name, error, where=WHERE) from error
    declared = None if path is None else read_statistics(path)
    config = model.pretrained_cfg
    mean, std = declared or (tuple(config["mean"]), tuple(config["std"]))
    return TimmModel(cast("nn.Module", model), mean=mean, std=std, side=side or int(config["input_size"][-1]))


@dataclass(frozen=True)
class _Parts:
    """A model's forward pass over its features, taken apart; ``maps`` says whether feature maps travel between blocks."""

    stem: Callable[[Tensor], Tensor]
    blocks: tuple[nn.Module, ...]
    head: tuple[nn.Module, ...]
    maps: bool


class TimmStack:
    """A timm model that can be run in two parts; one of unknown structure is a single block.

    Args:
        model: a timm model; some of its convolutions are computed in other ways from then on, see
            :mod:`~mmrec.encoders.convolutions` and :mod:`~mmrec.encoders.patches`.
        side: side of a picture in pixels.
    """

    def __init__(self, model: nn.Module, *, side: int) -> None:
        multiply_patches(model)
        features = cast("Callable[[Tensor], Tensor]", model.forward_features)
        join_passes(model, lambda: features(ramp(side, like=next(model.parameters(), torch.empty(0)))))
        self._model = model
        self._parts = _take_apart(model)
        self.maps = self._parts is None or self._parts.maps
        if self._parts is None:
            self.layers = Layers(model, (model,))
        else:
            self.layers = Layers(model, self._parts.blocks, self._parts.head)
        self.dim = int(model.num_features)  # type: ignore[arg-type]
        self.side = side
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.class_token = self._prefix > 0 and getattr(model, "cls_token", None) is not None
        self._features = features

    def below(self, pixels: Float[Tensor, "batch 3 height width"], *, stop: int) -> Float[Tensor, "batch tokens inner"]:
        """Run the stem and the first ``stop`` blocks, and the head when these are all."""
        if stop == len(self.layers.blocks):
            return self._final(self._features(pixels))
        assert self._parts is not None
        states = self._parts.stem(pixels)
        for block in self._parts.blocks[:stop]:
            states = block(states)
        return map_to_tokens(states)

    def above(self, tokens: Float[Tensor, "batch tokens inner"], *, start: int) -> Float[Tensor, "batch patches dim"]:
        """Run the blocks from ``start`` on and the head."""
        assert self._parts is not None
        states = tokens_to_map(tokens) if self._parts.maps else tokens
        for module in self._parts.blocks[start:] + self._parts.head:
            states = module(states)
        return self._final(states)

    def _final(self, states: Tensor) -> Float[Tensor, "batch patches dim"]:
        """Lay patches out as tokens; of prefix tokens only the class token is kept."""
        if states.ndim == 3:
            first = 1 if self.class_token else 0
            return states if self._prefix == first else torch.cat([states[:, :first], states[:, self._prefix :]], 1)
        channels_last = getattr(self._model, "output_fmt", "NCHW") == "NHWC"
        return states.flatten(1, 2) if channels_last else map_to_tokens(states)


def _take_apart(model: nn.Module) -> _Parts | None:
    """Recognise vision transformers, EfficientNets and MobileNets, ResNets and ConvNeXts by their parts."""
    modules = dict(model.named_children())

    def row(*names: str) -> nn.Sequential:
        return nn.Sequential(*(modules[name] for name in names if name in modules))

    if {"patch_embed", "patch_drop", "norm_pre", "blocks", "norm"} <= set(modules) and hasattr(model, "_pos_embed"):
        place = cast("Callable[[Tensor], Tensor]", model._pos_embed)
        before, after = modules["patch_embed"], row("patch_drop", "norm_pre")
        return _Parts(lambda x: after(place(before(x))), tuple(model.blocks), (modules["norm"],), maps=False)  # type: ignore[arg-type]
    if {"conv_stem", "bn1", "blocks"} <= set(modules):
        head = () if "norm_head" in modules or "bn2" not in modules else (modules["conv_head"], modules["bn2"])
        return _Parts(row("conv_stem", "bn1"), tuple(model.blocks), head, maps=True)  # type: ignore[arg-type]
    if {"conv1", "bn1", "act1", "maxpool", "layer1", "layer4"} <= set(modules):
        stages = tuple(modules[f"layer{number}"] for number in range(1, 5))
        return _Parts(row("conv1", "bn1", "act1", "maxpool"), stages, (), maps=True)
    if {"stem", "stages", "norm_pre"} <= set(modules):
        return _Parts(modules["stem"], tuple(model.stages), (modules["norm_pre"],), maps=True)  # type: ignore[arg-type]
    return None


@dataclass(frozen=True)
class _Config:
    """The fields of a timm pretrained config that are read here."""

    fixed_input_size: bool
    hub_id: str | None
    hub_file: str | None


def _config(source: str) -> _Config:
    prefix, separator, rest = source.partition(":")
    if separator and prefix == "local-dir":
        whole = read_json(Path(rest) / "config.json")
        values = cast("dict[str, object]", whole.get("pretrained_cfg", whole))
    elif separator:
        values, _, _ = timm.models.load_model_config_from_hf(rest)
    else:
        values = timm.get_pretrained_cfg(source).to_dict()
    return _Config(
        fixed_input_size=bool(values.get("fixed_input_size")),
        hub_id=cast("str | None", values.get("hf_hub_id")),
        hub_file=cast("str | None", values.get("hf_hub_filename")),
    )


def _source(name: str) -> str:
    source = prefixed_source(name, where=WHERE)
    if not source.startswith((HUB, LOCAL)) and not timm.is_model(source):
        raise ConfigError(
            "a timm model name, an hf-hub: tag or a folder",
            got=repr(name),
            where=WHERE,
            fix=near_names(name, timm.list_models(f"*{name[:4]}*") or timm.list_models("*vit*patch16*"))[:300],
        )
    return source


def _weights_file(name: str, source: str, weights: str | None) -> Path:
    """Find the safetensors file to load."""
    if weights is not None:
        return find_weights(weights, where="encoders.image.weights")
    if source.startswith(LOCAL):
        return find_weights(f"{source.removeprefix(LOCAL)}/model.safetensors", where=WHERE)
    reason: Exception = ValueError("no pretrained weights are known for it")
    try:
        config = _config(source)
        files = [config.hub_file] if (config.hub_file or "").endswith(".safetensors") else SAFE_FILES
        for file in files if config.hub_id else ():
            repository, _, revision = str(config.hub_id).partition("@")
            try:
                return Path(hf_hub_download(repository, str(file), revision=revision or None))
            except EntryNotFoundError as error:
                reason = error
    except (OSError, ValueError, RuntimeError) as error:
        reason = error
    raise unusable_model("an image model of timm with safetensors weights", name, reason, where=WHERE) from reason
