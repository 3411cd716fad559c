"""Work shared out among threads: in order, each share by one thread of torch's, none for a few pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

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


def test_threads_choose_for_themselves_whatever_others_say_meanwhile() -> None:
    found: dict[int, int] = {}
    both, size = threading.Barrier(2), (64, 64)

    def work(choose: Callable[[], None], number: int) -> None:
        choose()
        both.wait(10)
        # What is said by one thread alone must not be taken over with the first operation of the other.
        torch.rand(size).exp()
        found[number] = torch.get_num_threads()

    for choices in ((use_one_thread, use_all_threads), (use_all_threads, use_one_thread)):
        started = [threading.Thread(target=work, args=(choose, n)) for n, choose in enumerate(choices)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        assert [found[n] for n in range(2)] == [1 if choose is use_one_thread else 3 for choose in choices]


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
