"""AdamW with the right decay and rate for every parameter, and the shape of the rate over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn
from torch.optim import AdamW

from mmrec.training.sharding import is_sharded


@dataclass(frozen=True)
class EncoderRate:
    """Learning rates of one pretrained encoder.

    Args:
        layers: trainable parameters by depth, the top-most live block first, as ``ContentEncoder.layer_groups`` gives.
        learning_rate: peak rate of the top-most block.
        layer_decay: each block below learns at this share of the one above it.
    """

    layers: Sequence[Sequence[nn.Parameter]]
    learning_rate: float
    layer_decay: float


class ParameterGroup(TypedDict):
    """One group of an optimiser: parameters that share a rate and a decay.

    ``peak`` is the rate at the top of the schedule, ``lr`` the current one; ``names`` are the parameters' names in
    the model, in the order of ``params``.
    """

    params: list[nn.Parameter]
    names: list[str]
    lr: float
    peak: float
    weight_decay: float


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, encoder_rates: Mapping[str, EncoderRate]
) -> list[ParameterGroup]:
    """Sort the trainable parameters of ``model`` by peak rate and decay.

    Biases, norms, other vectors and scalars, and embedding tables are not decayed: a decayed table would let the rows
    of rare ids fade in every step that does not see them.  Parameters that no encoder's layers name learn at
    ``learning_rate``.  The order is that of ``model.named_parameters()``, so it is the same in every process.

    Args:
        model: the module whose parameters with ``requires_grad`` are trained.
        learning_rate: peak rate of everything but pretrained encoders.
        weight_decay: decay of matrices.
        encoder_rates: modality to the rates of its encoder.
    """
    rates: dict[int, float] = {}
    for encoder in encoder_rates.values():
        for depth, layer in enumerate(encoder.layers):
            for parameter in layer:
                rates.setdefault(id(parameter), encoder.learning_rate * encoder.layer_decay**depth)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = rates.get(id(parameter), learning_rate)
        decay = 0.0 if parameter.ndim <= 1 or id(parameter) in tables else weight_decay
        new = ParameterGroup(params=[], names=[], lr=rate, peak=rate, weight_decay=decay)
        # One kernel takes whole parameters or sharded ones, not both.
        group = groups.setdefault((rate, decay, is_sharded(parameter)), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_adamw(groups: Sequence[ParameterGroup]) -> AdamW:
    """Return AdamW over ``groups``, as one fused kernel where the device has it."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in {"cpu", "cuda"} and parameter.is_floating_point() for parameter in parameters)
    return AdamW([{**group} for group in groups], fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, *, factor: float) -> None:
    """Set every group's rate to ``factor`` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def warmup_cosine(step: int, *, total: int, warmup_share: float) -> float:
    """Share of the peak rate at optimiser step ``step`` (from 0): a straight line up, then half a cosine down to 0.

    Args:
        step: number of steps already taken.
        total: steps of the whole training.
        warmup_share: share of them over which the rate rises.
    """
    warmup = round(total * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= total:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))
