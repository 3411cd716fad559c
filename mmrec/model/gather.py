"""Rows of all ranks on every rank, with gradients: how an item is encoded on one rank and scored on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def gather_rows(rows: Float[Tensor, "own dim"], sizes: Sequence[int]) -> Float[Tensor, "all dim"]:
    """Return the rows of all ranks, end to end; the gradient of a rank's rows is the sum over what all ranks do to them.

    A collective, in the backward pass too: every rank must call it, and take a gradient through what it returns.

    Args:
        rows: shape (own, dim), this rank's; must require a gradient on all ranks or on none.
        sizes: rows of each rank.
    """
    # Sums over many ranks need more digits than half precision has.
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    gathered: Tensor = _Gather.apply(wide, tuple(sizes))
    return gathered.to(rows.dtype)


def gather_plain(rows: Shaped[Tensor, own * shape], sizes: Sequence[int]) -> Shaped[Tensor, all * shape]:
    """Return the rows of all ranks, end to end, of any type and without a gradient."""
    width = max(sizes)
    everywhere = rows.new_empty(len(sizes), width, *rows.shape[1:])
    dist.all_gather(list(everywhere), _padded(rows.detach(), width))
    if min(sizes) == width:
        return everywhere.flatten(0, 1)
    return torch.cat([part[:size] for part, size in zip(everywhere, sizes, strict=True)])


def gather_sizes(own: int, *, device: torch.device) -> tuple[int, ...]:
    """Return how many rows each rank has."""
    counts = gather_plain(torch.tensor([own], device=device), [1] * dist.get_world_size())
    return tuple(int(count) for count in counts.tolist())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return gather_plain(rows, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        sizes: tuple[int, ...] = ctx.sizes  # type: ignore[attr-defined]
        width = max(sizes)
        parts = [_padded(part, width) for part in torch.split(gradient, list(sizes))]
        own = gradient.new_empty(width, *gradient.shape[1:])
        dist.reduce_scatter(own, parts)
        return own[: sizes[dist.get_rank()]], None


def _padded(rows: Tensor, count: int) -> Tensor:
    """Add rows of zeros up to ``count``."""
    missing = count - len(rows)
    return functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)).contiguous()
