"""Index arithmetic: done on the host, whose results go to the device together.

Which token belongs to which item depends on a batch's integers alone.  A device that worked it out would make the host
wait for every size that follows from them, and the host would start nothing meanwhile; so lengths and positions stay on
the CPU, and only what is read and added up with them is sent.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

ALIGNMENT = 16
"""Bytes at whose multiples a tensor of a common transfer starts."""


def on_device(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors of the host on a device, sent in one transfer that nobody waits for.

    Args:
        device: where they are wanted; on a CPU they are given back as they are.
        tensors: of any types and shapes, on the CPU.
    """
    if device.type == "cpu":
        return tensors
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    rooms = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    packed = torch.empty(sum(rooms), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for room, size, tensor in zip(torch.split(packed, rooms), sizes, tensors, strict=True):
        room[:size].view(tensor.dtype).copy_(tensor.flatten())
    # Apple's devices may read what is sent so only after it is gone (pytorch issue 189690).
    there = torch.split(packed.to(device, non_blocking=device.type != "mps"), rooms)
    return tuple(
        room[:size].view(tensor.dtype).view(tensor.shape)
        for room, size, tensor in zip(there, sizes, tensors, strict=True)
    )


def ragged_places(
    counts: Int[Tensor, " rows"], chosen: Int[Tensor, " chosen"]
) -> tuple[Int[Tensor, " references"], Int[Tensor, " references"]]:
    """Where the entries of some rows are, of rows that lie end to end.

    Args:
        counts: shape (rows,), entries of each.
        chosen: shape (chosen,), rows wanted, in the order wanted.

    Returns:
        For every entry of the chosen rows its place, and which of the chosen it belongs to.
    """
    starts = (counts.cumsum(0) - counts).index_select(0, chosen)
    lengths = counts.index_select(0, chosen)
    owners = torch.repeat_interleave(lengths)
    moved = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(len(owners), device=owners.device) + moved.index_select(0, owners), owners
