"""Live objects to plain tensors and back: model, optimiser, gradients, random number generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmrec.errors import ArtifactError
from mmrec.training.sharding import share_of

_CPU = "cpu"
_CUDA = "cuda"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters and persistent buffers by name; frozen parameters are their base's to keep."""
    stored = model.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return tensors | {name: value for name, value in model.named_buffers() if name in stored}


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy ``tensors``, as :func:`model_tensors` gave them, into ``model``.

    Raises:
        ArtifactError: names or shapes are not those of the model.
    """
    own = model_tensors(model)
    # A single number is what validation chooses; one that a checkpoint is too old to know of stays at nothing.
    numbers = {name for name, value in model.named_buffers() if not value.ndim and value.is_floating_point()}
    missing, unknown = sorted(own.keys() - tensors.keys() - numbers), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ArtifactError(
            "the parameters of this model",
            got=f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}",
            where=where,
            fix="Build the model from the configuration that was trained.",
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ArtifactError(
                f"{name} of shape {tuple(own[name].shape)}",
                got=str(tuple(tensor.shape)),
                where=where,
                fix="Build the model from the configuration that was trained.",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(share_of(tensor, own[name]))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as ``parameter name/key``; its groups carry ``names``."""
    state = optimizer.state
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Put ``tensors``, as :func:`optimizer_tensors` gave them, into ``optimizer``; rates and decay stay its own.

    Raises:
        ArtifactError: they are the state of other parameters.
    """
    whole = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["names"]]
    position = {name: index for index, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in position:
            raise ArtifactError("the state of a trained parameter", got=repr(name), where=where)
        own = parameters[position[name]]
        state.setdefault(position[name], {})[key] = tensor if tensor.shape != own.shape else share_of(tensor, own)
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def gradient_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients added up so far, by parameter name."""
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def load_gradient_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the gradients that :func:`gradient_tensors` gave; other parameters have none."""
    for name, parameter in model.named_parameters():
        parameter.grad = share_of(tensors[name], parameter).to(parameter.device) if name in tensors else None


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators that a training on ``device`` draws from, by kind of device."""
    states = {_CPU: torch.get_rng_state()}
    return states | {_CUDA: torch.cuda.get_rng_state(device)} if device.type == _CUDA else states


def load_rng_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the states that :func:`rng_tensors` gave; a kind of device that is not this one's is passed over."""
    if _CPU in tensors:
        torch.set_rng_state(tensors[_CPU])
    if _CUDA in tensors and device.type == _CUDA:
        torch.cuda.set_rng_state(tensors[_CUDA], device)
