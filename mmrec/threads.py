"""Threads in which torch has one each.

Where there is enough to do, a core that does its share from beginning to end is faster than cores that share every operation:
they wait for the slowest of them after each, and what lies between two operations is done by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def one_thread_each(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a ``map`` that runs in some threads, in which torch has one each; of one thread, the caller's own as it is.

    Modes of torch that belong to the calling thread (no gradient, autocast) do not reach them.
    """
    if number == 1:
        yield map
        return
    before = torch.get_num_threads()
    # A new thread takes over what was last said in any.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number, thread_name_prefix="mmrec-core") as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)
