"""Weights that are shared out among ranks (FSDP2): whole blocks of encoders, each put together where it runs.

A sharded parameter is a :class:`torch.distributed.tensor.DTensor`; its gradient and the optimiser's state are sharded
alike, so that a rank holds a share of all three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from mmrec.training.ranks import Ranks


def shard_blocks(blocks: Iterable[nn.Module], ranks: Ranks) -> None:
    """Share out the weights of each block; every rank must from now on run the same blocks in the same order.

    How often it runs one in a pass is its own affair: the first run puts the block together, and it stays whole until
    :func:`put_away`, which is due on all ranks after each backward pass.  Gradients are sums over the ranks, as those of
    whole parameters are.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for block in blocks:
        sharded = fully_shard(block, mesh=mesh, reshard_after_forward=False)
        # Otherwise a block would be put together anew in the backward pass of each of its runs.
        sharded.set_reshard_after_backward(False)
        sharded.set_gradient_divide_factor(1.0)
        # Not every backend can divide while it adds up.
        sharded.set_force_sum_reduction_for_comms(True)


def sharded_blocks(model: nn.Module) -> list[FSDPModule]:
    """Return the blocks of a model that :func:`shard_blocks` shared out."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def put_away(blocks: Iterable[FSDPModule]) -> None:
    """Leave this rank its share of the blocks' weights, which the optimiser changes; the next pass puts them together."""
    for block in blocks:
        block.reshard()


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether this rank holds a share of the tensor only."""
    return isinstance(tensor, DTensor)


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Put sharded tensors together, one after the other, on the CPU; the others stay as they are.

    A collective where any is sharded.

    Args:
        tensors: by name, the same on all ranks.
        keep: whether this rank wants them; otherwise it only gives its shares.
    """
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            together = tensor.full_tensor().detach()
            if keep:
                found[name] = together.cpu()
        elif keep:
            found[name] = tensor
    return found


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's share of a whole tensor where ``like`` is sharded, the tensor itself otherwise."""
    if not isinstance(like, DTensor):
        return tensor
    whole_there = tensor.to(like.device)
    return distribute_tensor(whole_there, like.device_mesh, like.placements, src_data_rank=None)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their norm over all ranks is at most ``max_norm``; return it as it was."""
    own = list(parameters)
    sharded = [parameter for parameter in own if is_sharded(parameter)]
    if not sharded:
        return float(clip_grad_norm_(own, max_norm))
    plain = [parameter for parameter in own if not is_sharded(parameter)]
    norm = math.hypot(*(_norm(group) for group in (plain, sharded)))
    for group in (plain, sharded):
        clip_grads_with_norm_(group, max_norm, torch.tensor(norm, device=own[0].device))
    return norm


def _norm(parameters: Iterable[nn.Parameter]) -> float:
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
