"""Dropout that does not dominate a training step on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

BITS = 16
"""Random bits that decide about one value: the share is rounded to a multiple of 1 / 65,536."""


def drop(values: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """Set a share of the values to zero and scale the others so that the mean stays.

    torch draws a floating-point number for each value on a CPU, which costs five times what this does: four values
    share one 64-bit draw.  A compiler knows torch's own dropout and would have to cut its graph in two here.

    Args:
        values: any shape.
        share: of the values, in [0, 1).
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(values, share)
    hidden = round(share * 2**BITS)
    draws = torch.empty(-(-values.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    lots = draws.view(torch.int16)[: values.numel()].view(values.shape)
    factors: Tensor = (lots >= hidden - 2 ** (BITS - 1)).to(values.dtype).mul_(2**BITS / (2**BITS - hidden))
    return values * factors


class Dropout(nn.Module):
    """:func:`drop` in training, nothing else.

    Args:
        share: of the values that are set to zero, in [0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return values of the same shape."""
        return drop(values, self.share) if self.training and self.share else values


def attend(
    queries: Float[Tensor, "users heads time head_dim"],
    keys: Float[Tensor, "users heads time head_dim"],
    values: Float[Tensor, "users heads time head_dim"],
    mask: Float[Tensor, "users heads time time"],
    *,
    share: float,
) -> Float[Tensor, "users heads time head_dim"]:
    """Scaled dot-product attention, with dropout on its weights.

    With dropout torch leaves its fused kernel on a CPU anyway; what is compiled leaves the choice to the compiler.

    Args:
        queries: by head.
        keys: by head.
        values: by head.
        mask: added to the scores.
        share: of the weights that are dropped.
    """
    if share and queries.device.type == "cpu" and not torch.compiler.is_compiling():
        scores = torch.matmul(queries * queries.shape[3] ** -0.5, keys.transpose(2, 3)) + mask
        return torch.matmul(drop(scores.softmax(dim=3), share), values)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=share)
