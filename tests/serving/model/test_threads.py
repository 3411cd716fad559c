"""Work shared out among threads: in order, each share by one thread of torch's, none for a few pieces."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from mmrec.serving.model import threads
from mmrec.serving.model.batcher import Batcher
from mmrec.serving.model.threads import Cores, use_all_threads, use_one_thread


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_ALL", 3)
    yield
    torch.set_num_threads(before)


class Work:
    """Doubles numbers and notes what it was given, and torch's threads then."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, pieces: Sequence[int]) -> Sequence[int]:
        self.given.append(list(pieces))
        self.threads.add(torch.get_num_threads())
        return [2 * piece for piece in pieces]


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (1, [1]), (3, [3]), (4, [2, 2]), (7, [2, 2, 3]), (60, [20] * 3)]
)
def test_pieces_are_shared_out_in_order(count: int, sizes: list[int]) -> None:
    cores, work = Cores(least=2), Work()
    assert cores.map(work, range(count)) == [2 * piece for piece in range(count)]
    cores.close()
    assert sorted(map(len, work.given)) == sizes
    if len(sizes) > 1:
        assert work.threads == {1}


def test_an_error_of_a_share_is_told() -> None:
    def fails(pieces: Sequence[int]) -> Sequence[int]:
        raise ZeroDivisionError

    cores = Cores(least=1)
    with pytest.raises(ZeroDivisionError):
        cores.map(fails, range(9))
    cores.close()


def test_threads_choose_for_themselves() -> None:
    found: dict[str, int] = {}

    def one() -> None:
        use_one_thread()
        found["one"] = torch.get_num_threads()

    def all_() -> None:
        use_all_threads()
        found["all"] = torch.get_num_threads()

    for work in (one, all_):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == {"one": 1, "all": 3}


def test_a_batchers_thread_chooses_before_its_first_batch() -> None:
    batcher = Batcher(
        Work(),
        most=1,
        budget=10,
        cost=abs,
        seconds=0.0,
        waiting=10,
        on_batch=lambda size: found.append(torch.get_num_threads()),
        begin=use_one_thread,
    )
    found: list[int] = []
    assert batcher.submit(4).result(10) == 8
    batcher.close()
    assert found == [1]
