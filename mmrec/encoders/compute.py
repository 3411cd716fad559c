"""The number format in which trained encoders run: half the bytes, and faster on what multiplies it natively."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ComputeDtype = Literal["float32", "bfloat16"]
ALIKE = 0.99
"""Cosine that a network's output keeps at least in bfloat16; transformers keep .999."""
_EXACT = "inv_freq"
"""Ends the names of the frequencies of rotary positions, whose angles would be off by radians."""
_NATIVE = ("amx_bf16", "avx512_bf16")


def to_bfloat16(model: nn.Module) -> None:
    """Hold a network in bfloat16, but for the frequencies of rotary positions."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = _narrowed(parameter.data)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not name.endswith(_EXACT):
                setattr(module, name, _narrowed(buffer))


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs of a network point the same way."""
    flat = (one.float().flatten(), other.float().flatten())
    return one.shape == other.shape and bool(torch.cosine_similarity(*flat, dim=0) >= ALIKE)


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether a device is known to have no products of bfloat16, which are slow then."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in _NATIVE)


def _narrowed(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16) if values.is_floating_point() else values
