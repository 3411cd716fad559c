"""The softmax of every row of a block of scores, and the logarithm of the row's sum.

On a GPU a block is read once and written once, by a kernel in Triton; torch's own operations (weights, maximum, softmax,
maximum again) pass over it several times.  Elsewhere torch's softmax is the fast way.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

WIDEST = 1 << 14
"""Columns that the kernel takes at most: it holds a whole row in the registers of one block of threads."""


def softmax_rows(
    scores: Float[Tensor, "rows columns"],
    log_weights: Float[Tensor, " columns"] | None,
    *,
    out: Float[Tensor, "rows columns"],
) -> Float[Tensor, "rows 1"]:
    """Write the softmax of each row of ``scores + log_weights`` to ``out``; return the logarithms of the rows' sums.

    Args:
        scores: shape (rows, columns), contiguous; its content is lost.
        log_weights: shape (columns,), added to every row; None adds nothing.
        out: shape (rows, columns), contiguous.  It may be ``scores`` itself, which is best where :func:`fuses` is True;
            a second room is faster elsewhere.
    """
    if fuses(scores) and scores.shape[1] <= WIDEST:
        from mmrec.objectives.row_kernel import fused_softmax_rows

        return fused_softmax_rows(scores, log_weights, out=out)
    if log_weights is not None:
        scores.add_(log_weights)
    highest = scores.amax(1, keepdim=True)
    if out.is_set_to(scores):  # torch does not promise to work in place
        out.copy_(torch.softmax(scores, 1))
    else:
        torch.softmax(scores, 1, out=out)
    # The largest probability is exp(highest) / sum.  torch's softmax is one pass over the scores, and twice as fast as
    # subtraction, exponential and sum one by one.
    return highest - out.amax(1, keepdim=True).log()


def fuses(like: Tensor) -> bool:
    """Whether :func:`softmax_rows` is one pass for tensors such as this one, and works in place without a second room."""
    return like.is_cuda and like.dtype == torch.float32 and _kernel_works(like.get_device())


@cache
def _kernel_works(device: int) -> bool:
    """Try the kernel on a GPU: Triton may be absent or too old for it, or miss the C compiler that it needs."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False  # never tried there
    try:
        from mmrec.objectives.row_kernel import fused_softmax_rows

        scores = torch.zeros(2, 3, device=f"cuda:{device}")
        log_sums = fused_softmax_rows(scores, torch.zeros_like(scores[0]), out=scores)
        return torch.allclose(scores * log_sums.exp(), torch.ones_like(scores))
    except ImportError:
        return False
    except Exception as error:
        warnings.warn(f"the softmax runs without its Triton kernel, more slowly: {error}", stacklevel=2)
        return False
