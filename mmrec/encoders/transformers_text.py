"""Text encoders of the transformers library: loading one, and running it in two parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.utils.logging import disable_progress_bar

from mmrec.encoders.packing import Packing, current_packing, packed
from mmrec.encoders.tuning import TOLERANCE, Layers
from mmrec.encoders.weights import resolve_model, seeded, unusable_model

FINAL_NORMS = ("final_norm", "final_layer_norm", "norm", "ln_f")
FIRST_MODULES = ("embeddings", "embeddings_project")
WHERE = "encoders.text.model"
SDPA, OWN_SDPA = "sdpa", "sdpa_of_captions"
"""What the library calls torch's attention, and the same with masks from :func:`mask_of_captions`."""
MOST_PROBED = 600
"""Tokens of the longest caption that a model is tried on."""
MASK_ALIGNMENT = 8
"""Numbers at whose multiples a fused kernel wants a mask's rows to start; others are copied in every block."""


class _ModelConfig(Protocol):
    """The fields of a transformers config that are read here."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    pad_token_id: int | None
    is_encoder_decoder: bool
    _attn_implementation: str | None


def load_text_model(
    name: str, *, random_weights: bool = False, seed: int = 0, dropout: float | None = None
) -> nn.Module:
    """Load an encoder by hub name, folder or ``package:IMPORT_NAME``; weights from safetensors only.

    Args:
        name: where the model is.
        random_weights: keep the architecture but start from random weights.
        seed: of the random weights; the global random state is left as it was.
        dropout: takes the place of every dropout that the model's own configuration asks for; None keeps those.

    Raises:
        ConfigError: no such model, no safetensors weights, or not an encoder.
        MissingExtraError: a package of weights that is not installed.
    """
    source = resolve_model(name, where=WHERE)
    try:
        with seeded(seed):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if dropout is not None:
                _set_dropout(config, dropout)
            if random_weights:
                model, missing = AutoModel.from_config(config, dtype=torch.float32), []
            else:
                if Path(source).is_dir():
                    # Its bar would stand for a fraction of a second; downloads keep theirs.
                    disable_progress_bar()
                model, report = AutoModel.from_pretrained(
                    source,
                    config=config,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise unusable_model("a text encoder with safetensors weights", name, error, where=WHERE) from error
    if missing:
        reason = ValueError(f"no weights for {', '.join(sorted(missing)[:3])}, ...")
        raise unusable_model("weights of the whole encoder", name, reason, where=WHERE)
    if model.config.is_encoder_decoder:
        reason = ValueError(f"{type(model).__name__}, which has a decoder")
        raise unusable_model("an encoder-only model", name, reason, where=WHERE)
    return cast("nn.Module", model)


def _set_dropout(config: PreTrainedConfig, share: float) -> None:
    """Set whatever kind of dropout a configuration names, except that of whole layers, where it has any."""
    for name, value in config.to_dict().items():
        if "drop" in name and "layerdrop" not in name and isinstance(value, float) and value > 0:
            setattr(config, name, share)


def mask_of_padding(
    *,
    mask_function: Callable[..., object],
    attention_mask: Bool[Tensor, "batch time"] | None = None,
    q_length: int,
    kv_length: int,
    device: torch.device,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    local_size: int | None = None,
    **settings: object,
) -> Tensor | None:
    """Make a mask as the library does, but take for granted that one that is given hides something.

    The library looks whether it does, for which the host waits until a device has come so far.  Where nothing but padding
    is hidden, the mask is made without the library's detours.

    Args:
        mask_function: who may see whom, padding aside.
        attention_mask: True at real tokens; at least one in a row.
        q_length: tokens that ask.
        kv_length: tokens that are read.
        device: where the tokens are.
        allow_is_causal_skip: whether no mask may stand for a causal one.
        allow_is_bidirectional_skip: whether no mask may stand for one that hides nothing.
        local_size: how far a token sees, None for everywhere.
        settings: further ones of the library's function.
    """
    if attention_mask is not None and mask_function is bidirectional_mask_function and local_size is None:
        shown = attention_mask
        if device.type == "cuda" and torch.is_autocast_enabled(device.type):
            shown = _as_bias(attention_mask, torch.get_autocast_dtype(device.type))
        return shown[:, None, None, :].expand(-1, 1, q_length, -1)
    given = attention_mask is not None
    mask: Tensor | None = sdpa_mask(
        mask_function=mask_function,
        attention_mask=attention_mask,
        q_length=q_length,
        kv_length=kv_length,
        device=device,
        allow_is_causal_skip=allow_is_causal_skip and not given,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and not given,
        local_size=local_size,
        **settings,
    )
    return mask


class _CannotPackError(Exception):
    """A model whose tokens do not simply see all others of their caption."""


def mask_of_captions(
    *,
    mask_function: Callable[..., object],
    attention_mask: Bool[Tensor, "batch time"] | None = None,
    local_size: int | None = None,
    **settings: object,
) -> Tensor | Packing | None:
    """Make a mask as :func:`mask_of_padding` does; where captions lie end to end, how they lie takes its place."""
    packing = current_packing()
    if packing is None:
        given = {"mask_function": mask_function, "attention_mask": attention_mask, "local_size": local_size}
        return mask_of_padding(**given, **settings)  # type: ignore[arg-type]
    if mask_function is not bidirectional_mask_function or local_size is not None:
        raise _CannotPackError
    return packing


def attention_of_captions(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Packing | None,
    **settings: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the library does with torch's attention, or within captions that lie end to end."""
    if not isinstance(attention_mask, Packing):
        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended
    if key.shape != query.shape or settings.get("position_bias") is not None or settings.get("is_causal"):
        raise _CannotPackError
    return attention_mask.attend(query, key, value, scaling=cast("float | None", settings.get("scaling"))), None


class TransformersStack:
    """A transformers encoder that can be run in two parts.

    Both parts are the model's own forward pass, so that masks, position biases and rotary angles are the model's own:
    shallow copies share all weights with it, hold only some of the blocks, and the upper one takes hidden states where
    the model takes embeddings.  The pooler is dropped.

    Args:
        model: a transformers encoder; it is changed (its pooler goes).
    """

    def __init__(self, model: nn.Module) -> None:
        if isinstance(getattr(model, "pooler", None), nn.Module):
            del model.pooler
            model.register_module("pooler", None)
        self._model = model
        self._config = cast("_ModelConfig", model.config)
        if self._config._attn_implementation == SDPA:
            AttentionInterface.register(OWN_SDPA, attention_of_captions)
            AttentionMaskInterface.register(OWN_SDPA, mask_of_captions)
            cast("PreTrainedModel", model).set_attn_implementation(OWN_SDPA)
        self._path = _find_blocks(model, self._config.num_hidden_layers)
        blocks = None if self._path is None else cast("nn.ModuleList", model.get_submodule(self._path))
        self.layers = Layers(
            root=model,
            blocks=(model,) if blocks is None else tuple(blocks),
            head=tuple(module for module in _children(model, FINAL_NORMS)),
        )
        self.dim = self._config.hidden_size
        self._first_position = _first_position(model)
        self.max_tokens = _longest_input(model.config) - self._first_position

    def below(
        self, token_ids: Int[Tensor, "batch time"], valid: Bool[Tensor, "batch time"] | None, *, stop: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the embeddings and the first ``stop`` blocks, and the final norm when these are all."""
        return cast("Tensor", self._below(stop)(input_ids=token_ids, attention_mask=_as_integers(valid))[0])

    def above(
        self, states: Float[Tensor, "batch time dim"], valid: Bool[Tensor, "batch time"] | None, *, start: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the blocks from ``start`` on and the final norm."""
        model = self._part(start, len(self.layers.blocks), replaced=FIRST_MODULES)
        return cast("Tensor", model(inputs_embeds=states, attention_mask=_as_integers(valid))[0])

    def packs(self) -> bool:
        """Whether captions may lie end to end: tried with the first block, for a model may do with positions what it likes."""
        if self._config._attn_implementation != OWN_SDPA:
            return False
        blocks = min(1, len(self.layers.blocks))
        # More tokens than one caption may have, which some models cannot bear.
        long = self.probe(min(self.max_tokens, MOST_PROBED))[0]
        captions = [long, long[: len(long) // 2 + 1].flip(0), long[:3]]
        try:
            with torch.no_grad():
                alone = torch.cat([self.below(caption[None], None, stop=blocks)[0] for caption in captions])
                lengths = np.array([len(caption) for caption in captions], dtype=np.int64)
                together = self.packed(torch.cat(captions), lengths, stop=blocks)
        except (_CannotPackError, TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False
        size = float(alone.abs().max())
        return together.shape == alone.shape and torch.allclose(alone, together, rtol=TOLERANCE, atol=TOLERANCE * size)

    def packed(
        self, token_ids: Int[Tensor, " total"], lengths: npt.NDArray[np.int64], *, stop: int
    ) -> Float[Tensor, "total dim"]:
        """Run captions that lie end to end as :meth:`below` runs padded ones; only where the model ``packs``."""
        packing = Packing.of(lengths)
        with packed(packing):
            states = self._below(stop)(
                input_ids=token_ids.unsqueeze(0), position_ids=packing.positions(first=self._first_position)
            )[0]
        return cast("Tensor", states)[0]

    def packed_above(
        self, states: Float[Tensor, "total dim"], lengths: npt.NDArray[np.int64], *, start: int
    ) -> Float[Tensor, "total dim"]:
        """Run captions that lie end to end as :meth:`above` runs padded ones; only where the model ``packs``."""
        with packed(Packing.of(lengths)):
            return self.above(states.unsqueeze(0), None, start=start)[0]

    def probe(self, tokens: int) -> Int[Tensor, "batch time"]:
        """Return the first token ids that are not padding, shape (1, tokens)."""
        pad = self._config.pad_token_id
        ids = [i for i in range(min(self._config.vocab_size, tokens + 1)) if i != pad][:tokens]
        return torch.tensor([ids], device=next(self._model.parameters()).device)

    def _below(self, stop: int) -> nn.Module:
        """Return what runs the embeddings and the first ``stop`` blocks, and the final norm when these are all."""
        return self._model if stop == len(self.layers.blocks) else self._part(0, stop, replaced=FINAL_NORMS)

    def _part(self, start: int, stop: int, *, replaced: tuple[str, ...]) -> nn.Module:
        """Return a copy of the model with some of its blocks and with some modules passing on what they get."""
        assert self._path is not None
        part = _shallow(self._model)
        for name in replaced:
            if name in part._modules:
                part._modules[name] = _PassOn()
        parent, (*middle, last) = part, self._path.split(".")
        for name in middle:
            child = _shallow(cast("nn.Module", parent._modules[name]))
            parent._modules[name] = child
            parent = child
        parent._modules[last] = nn.ModuleList(self.layers.blocks[start:stop])
        return part


class _PassOn(nn.Module):
    """Gives back the hidden states it is called with, under whatever argument they come."""

    def forward(self, *inputs: object, **named: object) -> Tensor:
        """Return the one argument of shape (batch, time, dim)."""
        (states,) = (x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim == 3)
        return states


def _shallow(module: nn.Module) -> nn.Module:
    """Copy a module but none of what it holds; its table of children may then be changed."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _find_blocks(model: nn.Module, count: int) -> str | None:
    """Return the path of the only list of ``count`` modules, None if there is not exactly one."""
    paths = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    return outer[0] if len(outer) == 1 else None


def _children(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    return [module for name, module in model.named_children() if name in names]


def _as_bias(valid: Bool[Tensor, "batch time"], dtype: torch.dtype) -> Float[Tensor, "batch time"]:
    """Return what fused kernels add to scores: of a boolean mask every block would make it anew."""
    rows, width = valid.shape
    room = torch.zeros(rows, -(-width // MASK_ALIGNMENT) * MASK_ALIGNMENT, dtype=dtype, device=valid.device)
    return room[:, :width].masked_fill_(~valid, -torch.inf)


def _as_integers(valid: Bool[Tensor, "batch time"] | None) -> Int[Tensor, "batch time"] | None:
    return None if valid is None else valid.long()


def _longest_input(config: PreTrainedConfig) -> int:
    return int(getattr(config, "max_position_embeddings", 1 << 20))


def _first_position(model: nn.Module) -> int:
    """Return the number of a caption's first position: RoBERTa and its kin count from the padding id on."""
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    return 0 if offset is None else int(offset) + 1
