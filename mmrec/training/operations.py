"""Matrix products: how many a batch asks for, and how many a second the device can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

REPEATS = 5
Shape = Sequence[int]


@contextmanager
def operation_counter() -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of matrix products, convolutions and attention in a block.

    A multiplication and its addition are two.  Not counted: whatever is done element by element, recurrent layers that
    a GPU runs as one kernel, and the optimiser.  Results stay the same to the bit, of what is not compiled; every
    operation passes through Python, which takes time.
    """
    aten = torch.ops.aten  # whose attention on a CPU, and products added in place, torch's own table lacks
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            aten.addmm_: _product,
        },
    )
    # A compiled block would hide its operations in kernels of its own; it runs as it is written meanwhile.
    with torch.compiler.set_stance("force_eager"), counter:
        yield counter


def matrix_peak(
    device: torch.device, *, dtype: torch.dtype, size: int = 0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the floating-point operations a second of the fastest of a few square matrix products.

    Args:
        device: where; a CPU with the threads that torch has there.
        dtype: number format.
        size: side of the matrices; 0 chooses one that fills the device.
        clock: seconds.
    """
    side = size or (8192 if device.type == "cuda" else 1024)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(side, side, generator=generator).to(device, dtype)
    best = float("inf")
    for _ in range(1 + REPEATS):  # the first one warms up
        _settle(device)
        start = clock()
        torch.mm(matrix, matrix)
        _settle(device)
        best = min(best, clock() - start)
    return 2.0 * side**3 / best


def _product(total: Shape, left: Shape, right: Shape, **named: object) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention(query: Shape, key: Shape, value: Shape, *rest: object, **named: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *rest: object, **named: object) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
