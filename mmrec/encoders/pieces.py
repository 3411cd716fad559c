"""Batches in pieces: on a CPU several at once, each by a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmrec.encoders.tuning import is_compiled
from mmrec.threads import map_pieces

_Piece = TypeVar("_Piece")


def free_threads(device: torch.device, live: Sequence[nn.Module]) -> int:
    """Return in how many threads pieces of a batch may be run at once; 1 where they had better take turns.

    With a gradient or autocast, which belong to a thread; on a device, which has one queue; through blocks that are
    compiled, or that several processes put together.

    Args:
        device: where the network is.
        live: blocks that pieces pass and that are not frozen.
    """
    if device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return 1
    if any(is_compiled(block) or isinstance(block, FSDPModule) for block in live):
        return 1
    return torch.get_num_threads()


def run_pieces(run: Callable[[_Piece], Tensor], pieces: Sequence[_Piece], *, threads: int) -> list[Tensor]:
    """Return what a network makes of each piece.

    Args:
        run: takes a piece.
        pieces: of a batch.
        threads: that are free; with fewer pieces than that one piece after the other takes them all.
    """
    return map_pieces(run, pieces, threads=threads if len(pieces) >= threads else 1)
