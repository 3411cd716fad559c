"""The kernel of :mod:`mmrec.objectives.row_softmax`.  It needs Triton, so it is imported only where it is used."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

VALUES_OF_A_WARP = 512
"""16 values for each of its 32 threads: four loads of 16 bytes, and registers to spare."""


def fused_softmax_rows(
    scores: Float[Tensor, "rows columns"],
    log_weights: Float[Tensor, " columns"] | None,
    *,
    out: Float[Tensor, "rows columns"],
) -> Float[Tensor, "rows 1"]:
    """Do what ``softmax_rows`` says in one pass, for float32 and 32 x 512 columns at most; ``out`` may be ``scores``."""
    assert scores.is_contiguous()
    assert out.is_contiguous()
    rows, columns = scores.shape
    tile = triton.next_power_of_2(columns)
    log_sums = scores.new_empty(rows, 1)
    with torch.cuda.device(scores.get_device()):  # Triton launches on the current device, wherever the tensors are
        _softmax_row[(rows,)](
            scores,
            scores if log_weights is None else log_weights.contiguous(),
            out,
            log_sums,
            columns,
            weighted=log_weights is not None,
            tile=tile,
            num_warps=min(max(tile // VALUES_OF_A_WARP, 1), 32),
        )
    return log_sums


@triton.jit
@no_type_check  # Triton compiles the source text, which a wrapper that checks types would hide
def _softmax_row(scores, log_weights, out, log_sums, columns, weighted: tl.constexpr, tile: tl.constexpr):
    row = tl.program_id(0)
    first = row.to(tl.int64) * columns
    column = tl.arange(0, tile)
    inside = column < columns
    values = tl.load(scores + first + column, mask=inside, other=-float("inf"))
    if weighted:
        values += tl.load(log_weights + column, mask=inside, other=0.0)
    highest = tl.max(values, axis=0)
    powers = tl.exp(values - highest)
    total = tl.sum(powers, axis=0)
    tl.store(out + first + column, powers * (1.0 / total), mask=inside)
    tl.store(log_sums + row, highest + tl.log(total))
