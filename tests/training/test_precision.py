"""Mixed precision: near float32 in value and gradient, and nothing of it stays behind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mmrec.training.precision import fit_attention, mixed_precision

CPU = torch.device("cpu")


def attention(*, enabled: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    inputs = torch.randn(4, 6, 8, requires_grad=True)
    weight = torch.randn(24, 8, requires_grad=True)
    mask = torch.ones(4, 1, 6, 6, dtype=torch.bool).tril()
    with fit_attention(CPU, narrow=enabled):
        with mixed_precision(CPU, enabled=enabled):
            heads = functional.linear(inputs, weight).view(4, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
            read = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return read, torch.autograd.grad(read.float().square().sum(), (inputs, weight))


def test_attention_is_near_float32_in_value_and_gradient() -> None:
    read, gradients = attention(enabled=True)
    exact, expected = attention(enabled=False)
    assert (read.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(read.float(), exact, rtol=0.03, atol=0.03 * float(exact.abs().max()))
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.03 * float(other.abs().max()))


@pytest.mark.parametrize("narrow", [False, True])
def test_a_gpu_is_not_asked_to_plan_attention_for_every_shape(narrow: bool) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with fit_attention(torch.device("cuda"), narrow=narrow):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() is before is True


def test_settings_of_the_process_are_put_back_after_an_error() -> None:
    def state() -> tuple[bool, bool, bool]:
        allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        return allowed, torch.backends.cuda.flash_sdp_enabled(), torch.is_autocast_enabled("cpu")

    def stop() -> None:
        with fit_attention(CPU, narrow=True), mixed_precision(CPU, enabled=True):
            assert state() == (True, False, True)
            raise ValueError("stop")

    before = state()
    with pytest.raises(ValueError, match="stop"):
        stop()
    assert state() == before
