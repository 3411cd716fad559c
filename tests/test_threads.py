"""Threads in which torch has one each: values, order, modes, and that they begin with one."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch

from mmrec.threads import count_pieces, map_pieces, one_thread_each
from tests.torch_threads import torch_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pieces_come_back_in_their_order_with_the_callers_modes(threads: int) -> None:
    """What the pieces come to does not depend on the threads; they know neither a gradient nor, unasked, inference."""
    weight = torch.ones(3, requires_grad=True)

    def work(piece: int) -> tuple[int, bool, bool]:
        product = weight * piece
        return piece, product.requires_grad, product.is_inference()

    with torch_threads(3), torch.no_grad():
        plain = map_pieces(work, range(5), threads=threads)
        with torch.inference_mode():
            inferred = map_pieces(work, range(5), threads=threads)
    assert plain == [(piece, False, False) for piece in range(5)]
    assert inferred == [(piece, False, True) for piece in range(5)]


def test_what_a_piece_raises_reaches_the_caller_and_threads_are_as_before() -> None:
    """An error of one piece is the caller's; torch has its threads again."""
    with torch_threads(3), torch.no_grad(), pytest.raises(ZeroDivisionError):
        map_pieces(lambda piece: 1 // piece, [1, 0], threads=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads of a process are counted in /proc")
def test_a_thread_begins_with_one_thread_of_torch_even_where_a_product_comes_first() -> None:
    """A product of matrices is the libraries' own: without a word before, it would take a team of threads for each."""
    square = torch.randn(512, 512)
    all_there = threading.Barrier(2)

    def running(_: int) -> int:
        torch.mm(square, square)
        all_there.wait(timeout=60)
        return len(list(Path("/proc/self/task").iterdir()))

    with torch_threads(2):
        torch.mm(square, square)  # the caller's own threads are there
        before = len(list(Path("/proc/self/task").iterdir()))
        with one_thread_each(2) as run:
            counted = list(run(running, range(2)))
    assert max(counted) <= before + 2


@pytest.mark.parametrize(
    ("size", "most", "threads", "least", "pieces"),
    [(10, 5, 1, 1, 2), (10, 5, 4, 1, 4), (10, 5, 4, 3, 2), (11, 5, 2, 1, 4), (1, 5, 2, 1, 1), (0, 5, 2, 1, 0)],
)
def test_pieces_are_equally_many_for_every_thread_where_there_is_enough(
    size: int, most: int, threads: int, least: int, pieces: int
) -> None:
    """As few as fit, then as many as the threads share evenly, unless each would be too small."""
    assert count_pieces(size, most=most, threads=threads, least=least) == pieces
