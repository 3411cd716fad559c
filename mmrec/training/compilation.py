"""Blocks that torch.compile translates: each in place, so that names, checkpoints and copies stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import SubprocessError

import torch
from torch import Tensor, nn

from mmrec.encoders.base import BlockEncoder
from mmrec.encoders.cut import CutEncoder
from mmrec.errors import ConfigError
from mmrec.model.recommender import RecommenderModel
from mmrec.model.transformer import TransformerUserEncoder

Backend = str | Callable[..., Callable[..., object]]
"""What torch.compile hands a graph to: a name that it knows, or a function of a graph and its first inputs."""
GRAPHS = 64
"""Translations of one forward function that are kept.  Blocks of one kind share them, yet each needs some: in training
and in evaluation, with and without a mask, on states that need a gradient and on those of a trunk, of one content and of
several, together sixteen; and the stages of a convolutional network, all different, are one function (nn.Sequential's).
Past its limit, which is 8, torch would run the block as it is written, with a warning."""


def compile_blocks(model: RecommenderModel, *, backend: Backend = "inductor") -> list[nn.Module]:
    """Have the live blocks of the encoders and the layers of the user encoder compiled where they are first run.

    Trunks stay as they are, for their output has to be the same to the bit in a cache and in a live run; so do encoders
    that do not know their blocks.  Values and gradients are those of the blocks to rounding; random numbers of dropout
    are others, from torch's generator still.  Batch and length are free in what is compiled.  A copy of the model is
    not compiled.

    Not to be combined with blocks that are sharded or whose activations are computed again: what the backward pass
    repeats may find another translation than the forward pass did.

    Args:
        model: changed in place; its state dict is not.
        backend: of torch.compile.

    Returns:
        The compiled blocks.
    """
    encoders = [model.item_encoder.encoder(name) for name in model.item_encoder.modalities]
    blocks = [block for encoder in encoders if isinstance(encoder, BlockEncoder) for block in _known_blocks(encoder)]
    if isinstance(model.user_encoder, TransformerUserEncoder):
        blocks += model.user_encoder.layers
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return blocks


def check_compiler(device: torch.device, *, backend: Backend = "inductor") -> None:
    """Compile a sum and its gradient, half a minute at worst, rather than fail at the first step of a training.

    Raises:
        ConfigError: torch.compile finds no compiler for the device, or one that does not work.
    """
    values = torch.ones(3, 2, device=device, requires_grad=True)
    try:
        torch.autograd.backward(torch.compile(_trial, backend=backend, dynamic=True)(values))
    except (RuntimeError, ImportError, OSError, SubprocessError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"a compiler that torch.compile can use on {device.type}",
            got=f"{type(error).__name__}: {reason}"[:300],
            where="train.compile",
            fix="Install one (a C++ compiler for a CPU, Triton and a C compiler for a GPU), or set train.compile=false.",
        ) from error


def _known_blocks(encoder: BlockEncoder) -> list[nn.Module]:
    """Return the live blocks, none where a network of unknown structure passes for a block."""
    return [b for b in encoder.live_blocks() if not (isinstance(encoder, CutEncoder) and b is encoder.model)]


def _trial(values: Tensor) -> Tensor:
    return (values * values).tanh().sum()
