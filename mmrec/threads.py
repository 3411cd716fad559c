"""Threads in which torch has one each.

Where there is enough to do, a core that does its share from beginning to end is faster than cores that share every operation:
they wait for the slowest of them after each, and what lies between two operations is done by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


@contextmanager
def one_thread_each(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a ``map`` that runs in some threads, in which torch has one each; of one thread, the caller's own as it is.

    Modes of torch that belong to the calling thread (no gradient, autocast) do not reach them.  While one watches its
    operations, to count them, all is done in the calling thread, one piece after the other, with the same values.
    """
    if number == 1:
        yield map
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if _get_current_dispatch_mode() is not None:
            yield map
            return
        # A new thread takes over what was last said in any when it asks, or with its first operation that torch itself
        # shares out; a product of matrices is none of these, and would begin with threads of its own.
        with ThreadPoolExecutor(number, thread_name_prefix="mmrec-core", initializer=torch.get_num_threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)


def map_pieces(work: Callable[[_Piece], _Result], pieces: Sequence[_Piece], *, threads: int) -> list[_Result]:
    """Return what some work without a gradient makes of each piece; with one thread, piece after piece in the caller's."""
    if threads < 2:
        return [work(piece) for piece in pieces]
    inference = torch.is_inference_mode_enabled()

    def without_gradient(piece: _Piece) -> _Result:
        # In this order: to leave inference mode is to enter the one with a gradient.
        with torch.inference_mode(inference), torch.no_grad():
            return work(piece)

    with one_thread_each(threads) as run_all:
        return list(run_all(without_gradient, pieces))


def count_pieces(size: int, *, most: int, threads: int, least: int = 1) -> int:
    """Return in how many pieces to run a batch: equally many for every thread if there is enough for all.

    Args:
        size: of the batch.
        most: of a piece.
        threads: that are free.
        least: of a piece that is worth a thread.
    """
    count = -(-size // most)
    even = -(-count // threads) * threads
    return even if even * least <= size else count
