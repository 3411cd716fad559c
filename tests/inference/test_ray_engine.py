"""Ray: a worker that dies costs its own blocks; what is wrong is said as if no worker had been between."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.inference.block_store import Block, BlockStore
from mmrec.inference.blocks import ATTEMPTS, BlockDone, BlockEncoder, BlockRun, BlockTask, EncodeBlock
from mmrec.inference.recommender import Recommender
from tests.tiny_run import NUM_ITEMS

TASKS = [BlockTask(number, np.arange(3)) for number in range(6)]


def test_its_absence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mmrec.inference.ray_engine", raising=False)
    with pytest.raises(MissingExtraError, match=r"the optional library 'ray'.*mmrec\[ray\]"):
        import mmrec.inference.ray_engine  # noqa: F401


def dying(encode: EncodeBlock, log: Path, *, number: int, times: int, when: str) -> EncodeBlock:
    """Return what encodes, but kills its process at one block, before or after writing it, the first few times."""

    def run(task: BlockTask) -> BlockDone:
        with log.open("a") as file:
            file.write(f"{task.number} {os.getpid()}\n")
        tried = log.read_text().splitlines()
        doomed = task.number == number and sum(line.startswith(f"{number} ") for line in tried) <= times
        if doomed and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = encode(task)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return run


def attempts(log: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in log.read_text().splitlines():
        number, process = line.split()
        found.setdefault(int(number), []).append(process)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestKilledWorkers:
    @pytest.mark.parametrize(("workers", "when"), [(1, "before"), (2, "after")])
    def test_cost_their_own_block_and_change_nothing(
        self, recommender: Recommender, tmp_path: Path, workers: int, when: str
    ) -> None:
        from mmrec.inference.ray_engine import RayBlocks

        log, place = tmp_path / "log", tmp_path / "blocks"
        engine = RayBlocks(workers)
        run = BlockRun(
            recommender,
            str(place),
            lambda encode, tasks: engine(dying(encode, log, number=3, times=1, when=when), tasks),
            device="cpu",
            block_items=5,
        )
        found = np.full(recommender.item_embeddings().shape, np.nan, np.float32)
        done: list[int] = []
        for rows, piece in run(np.arange(NUM_ITEMS), done.append):
            assert np.isnan(found[rows]).all(), "a row came twice"
            found[rows] = piece
        np.testing.assert_allclose(found, recommender.item_embeddings(), atol=1e-6, rtol=0)
        tried = attempts(log)
        assert {number: len(processes) for number, processes in tried.items()} == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
        assert len(set(tried[3])) == 2, "by another process"
        assert (run.blocks, run.blocks_kept, run.items_encoded, sum(done)) == (6, 0, NUM_ITEMS, NUM_ITEMS)
        assert len(list(place.rglob("items-*.parquet"))) == 6

    def test_a_block_that_kills_everyone_is_given_up(self, tmp_path: Path) -> None:
        from mmrec.inference.ray_engine import RayBlocks

        log = tmp_path / "log"

        class Deadly(BlockEncoder):
            def _encode(self, rows: np.ndarray) -> bytes:
                os.kill(os.getpid(), signal.SIGKILL)
                return b""

        encode = Deadly("", "", "cpu", "", BlockStore(str(tmp_path / "blocks"), "f" * 32), "session")
        with pytest.raises(ArtifactError, match=r"lives through block 2, got 4 that died of it.*Run the same command"):
            list(RayBlocks(1)(dying(encode, log, number=-1, times=0, when="before"), TASKS[2:3]))
        assert len(set(attempts(log)[2])) == ATTEMPTS + 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestErrors:
    def test_reach_the_user_as_they_were(self, tmp_path: Path) -> None:
        from mmrec.inference.ray_engine import RayBlocks

        log = tmp_path / "log"

        def refuse(task: BlockTask) -> BlockDone:
            with log.open("a") as file:
                file.write(f"{task.number} {os.getpid()}\n")
            raise ArtifactError("a feed", got="none", where="/there", fix="Bring it.")

        with pytest.raises(ArtifactError) as caught:
            list(RayBlocks(1)(refuse, TASKS[:1]))
        assert str(caught.value) == "expected a feed, got none, in /there. Bring it."
        assert {number: len(tried) for number, tried in attempts(log).items()} == {0: 1}

    def test_files_that_were_found_reach_the_worker(self) -> None:
        from mmrec.inference.ray_engine import RayBlocks

        def told(task: BlockTask) -> BlockDone:
            return BlockDone(Block(task.number, "+".join(task.found), len(task.rows), "h"), False, "w")

        tasks = [BlockTask(0, np.arange(2), ["a", "b"]), BlockTask(1, np.arange(3))]
        found = sorted(RayBlocks(2)(told, tasks), key=lambda done: done.block.number)
        assert found == [BlockDone(Block(0, "a+b", 2, "h"), False, "w"), BlockDone(Block(1, "", 3, "h"), False, "w")]
