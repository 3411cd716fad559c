"""How many threads torch and numpy take in each thread of the service.

A request's own work on tensors is a few hundred small operations: handing them to other threads takes longer than doing
them.  Only where posts are encoded are there operations worth sharing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch

from mmrec.errors import MissingExtraError

try:
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise MissingExtraError("threadpoolctl", "serve") from error

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")
_ALL = torch.get_num_threads()
"""As the process began; later threads take over what was last said, in whatever thread."""


def use_one_thread() -> None:
    """Let operations of the calling thread run in it alone."""
    _use(1)


def use_all_threads() -> None:
    """Share out operations of the calling thread among as many as the process began with."""
    _use(_ALL)


def _use(count: int) -> None:
    # With its first operation a thread takes over what was last said in any; to ask counts as one.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let every product of numpy's run in the thread that asks for it, in the whole process.

    OpenBLAS has one team of threads for all who ask: the small products of many requests, an exact search each, would wait
    for each other many times as long as they take.  A copy that torch brings along stays as it is, for encoders.
    """
    found = ThreadpoolController()
    paths = [str(one.filepath) for one in found.select(internal_api="openblas").lib_controllers]
    numpys = [path for path in paths if "torch" not in Path(path).parts]
    with found.select(filepath=numpys).limit(limits=1):
        yield


class Helpers:
    """Threads that help whoever has several pieces of work.

    The one who asks does the work, and waits for a helper only where it holds a piece: a large request holds up no small
    one, which would have to wait for its turn if threads did all of it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_ALL, thread_name_prefix="mmrec-helper", initializer=use_one_thread)

    def map(self, work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]) -> list[_Result]:
        """Return what some work makes of each piece."""
        waiting, done = deque(enumerate(pieces)), dict[int, _Result]()

        def help_out() -> None:
            while True:
                try:
                    place, piece = waiting.popleft()
                except IndexError:
                    return
                done[place] = work(piece)

        helpers = [self._pool.submit(help_out) for _ in range(min(_ALL, len(pieces)) - 1)]
        try:
            help_out()
        finally:
            waiting.clear()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
        return [done[place] for place in range(len(pieces))]

    def close(self) -> None:
        """Finish what was begun, then stop."""
        self._pool.shutdown(wait=True)


class Cores:
    """Threads in which torch has one each, as many as there are cores for it.

    Where there is enough for all of them, a core that does its share from beginning to end is faster than cores that share
    every operation: what is between two operations, tokens and pixels included, is done by all of them as well.

    Args:
        least: pieces that are worth a thread.
    """

    def __init__(self, *, least: int) -> None:
        self._least = least
        self._pool = ThreadPoolExecutor(_ALL, thread_name_prefix="mmrec-core", initializer=use_one_thread)

    def shares(self, count: int) -> int:
        """Return among how many threads so many pieces are to be shared out; 1 where that is not worth it."""
        return max(1, min(_ALL, count // self._least))

    def map(self, work: Callable[[Sequence[_Piece]], Sequence[_Result]], pieces: Sequence[_Piece]) -> list[_Result]:
        """Return what some work makes of pieces, done in shares."""
        shares = self.shares(len(pieces))
        if shares == 1:
            return list(work(pieces))
        borders = [round(number * len(pieces) / shares) for number in range(shares + 1)]
        parts = [pieces[start:stop] for start, stop in pairwise(borders)]
        return [result for part in self._pool.map(work, parts) for result in part]

    def close(self) -> None:
        """Finish what was begun, then stop."""
        self._pool.shutdown(wait=True)
