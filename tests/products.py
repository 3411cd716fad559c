"""Whether this processor gives the rows of a matrix product the same bits whatever stands beside them."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import linear


@cache
def rows_keep_their_bits() -> bool:
    """Try it: with AVX-512 and one thread they do, from sixteen rows on; with AVX2 the last few rows are added up in
    another order than the rest, however many there are."""
    generator = torch.Generator().manual_seed(0)
    for width, out in ((32, 64), (384, 96), (64, 256)):
        rows = torch.randn(300, width, generator=generator)
        weight, bias = torch.randn(out, width, generator=generator), torch.randn(out, generator=generator)
        whole = linear(rows, weight, bias)
        if not all(torch.equal(linear(rows[:count], weight, bias), whole[:count]) for count in range(16, 80)):
            return False
    return True


def most_that_differ(exact: float, *, rounded: float) -> float:
    """Return the largest share of values that may differ: where rows keep their bits, and where they are rounded anew."""
    return exact if rows_keep_their_bits() else rounded
