"""The number format in which a model runs while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def mixed_precision(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Run matrix products in bfloat16 inside this block, and everything that needs its digits in float32.

    On a CPU the backward pass of torch's fused attention is several times slower in bfloat16 than in float32, and
    slower than plain matrix products; there attention is made of these.

    Args:
        device: where the model is.
        enabled: whether to do anything at all.
    """
    if not enabled:
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        if device.type != "cpu":
            yield
            return
        before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
