"""The number format in which a model runs while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def is_narrow(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> bool:
    """Return whether a training setting means bfloat16; auto does on a GPU."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def mixed_precision(device: torch.device, *, enabled: bool) -> AbstractContextManager[object]:
    """Run matrix products of a forward pass in bfloat16, and everything that needs its digits in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


@contextmanager
def fit_attention(device: torch.device, *, narrow: bool) -> Iterator[None]:
    """Choose how attention is computed, for a forward pass and a backward pass that may repeat parts of it.

    On a CPU the backward pass of torch's fused attention is several times slower in bfloat16 than in float32, and
    slower than plain matrix products; there attention is made of these.  On a GPU cuDNN's is left out, which torch
    asks first: it plans for every shape that it has not seen, and hardly two batches have the same shapes.

    Args:
        device: where the model is.
        narrow: whether it runs in bfloat16.
    """
    if device.type == "cuda":
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
        return
    if not narrow or device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
