"""Work shared out among threads: in order, each share by one thread of torch's, none for a few pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
from threadpoolctl import ThreadpoolController

from mmrec.serving.model import threads
from mmrec.serving.model.batcher import Batcher
from mmrec.serving.model.threads import Cores, Helpers, one_blas_thread, use_all_threads, use_one_thread


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


class TestHelpers:
    @pytest.mark.parametrize("count", [0, 1, 2, 50])
    def test_pieces_come_back_in_order(self, count: int) -> None:
        with closing(Helpers()) as helpers:
            assert helpers.map(lambda piece: 2 * piece, range(count)) == [2 * piece for piece in range(count)]

    def test_pieces_are_done_beside_each_other(self) -> None:
        together = threading.Barrier(3)
        with closing(Helpers()) as helpers:
            assert len(helpers.map(lambda piece: together.wait(10), range(3))) == 3

    def test_who_asks_waits_for_no_helper_that_is_busy_elsewhere(self) -> None:
        begun, go = threading.Semaphore(0), threading.Event()

        def long(piece: int) -> None:
            begun.release()
            assert go.wait(20)

        with closing(Helpers()) as helpers, ThreadPoolExecutor(2) as others:
            held = [others.submit(helpers.map, long, range(3)) for _ in range(2)]
            for _ in range(5):
                assert begun.acquire(timeout=10), "both who ask, and all three helpers"
            assert helpers.map(lambda piece: piece, range(5)) == list(range(5))
            go.set()
            for one in held:
                one.result(10)

    def test_an_error_is_told_whoever_met_it(self) -> None:
        def fails(piece: int) -> int:
            if piece == 7:
                raise ZeroDivisionError
            return piece

        with closing(Helpers()) as helpers:
            with pytest.raises(ZeroDivisionError):
                helpers.map(fails, range(20))
            assert helpers.map(fails, [1, 2]) == [1, 2], "they go on"


def test_products_of_numpys_take_one_thread_while_serving_and_torchs_are_left_alone() -> None:
    def counts() -> dict[str, int]:
        found = ThreadpoolController().select(internal_api="openblas").lib_controllers
        return {str(one.filepath): int(one.num_threads) for one in found}

    with ThreadpoolController().select(internal_api="openblas").limit(limits=2):
        before = counts()
        with one_blas_thread():
            within = counts()
        assert counts() == before
    ours = {path for path in within if "torch" not in Path(path).parts}
    assert {within[path] for path in ours} <= {1}
    assert {path: within[path] for path in before if path not in ours} == {
        path: before[path] for path in before if path not in ours
    }
    if any("numpy" in path for path in before):
        assert ours
