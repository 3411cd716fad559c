"""Encoding in blocks: the vectors of the whole, nothing done twice, nothing read twice; no engine is needed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmrec.errors import ArtifactError
from mmrec.inference.block_store import BlockStore
from mmrec.inference.blocks import ATTEMPTS, BlockDone, BlockEncoder, BlockRun, BlockTask, EncodeBlock, RunBlocks
from mmrec.inference.encoding import encode_catalogue
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.recommender import Recommender
from tests.tiny_run import NUM_ITEMS, TinyFeed

ROWS = np.arange(NUM_ITEMS)


def in_order(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
    """The simplest engine: one worker, which is this process."""
    return map(encode, tasks)


def bulk(recommender: Recommender, place: Path | str, engine: RunBlocks = in_order, **options: int) -> BlockRun:
    return BlockRun(recommender, str(place), engine, device="cpu", **({"block_items": 8} | options))


def gather(run: BlockRun, rows: np.ndarray = ROWS) -> np.ndarray:
    """Every row once, at its place."""
    found = np.full((NUM_ITEMS, run.recommender.assembly.model.width), np.nan, np.float32)
    for index, piece in run(rows, lambda done: None):
        assert np.isnan(found[index]).all(), "a row came twice"
        found[index] = piece
    return found[rows]


def files(place: Path) -> list[Path]:
    return sorted(place.rglob("items-*.parquet"))


@pytest.fixture(scope="module")
def expected(recommender: Recommender) -> np.ndarray:
    assembly = recommender.assembly
    return encode_catalogue(assembly.model, assembly.reader, ROWS, device=torch.device("cpu")).numpy()


class TestVectors:
    @pytest.mark.parametrize("block_items", [1, 8, NUM_ITEMS, 1000])
    def test_are_those_of_the_local_engine(
        self, recommender: Recommender, expected: np.ndarray, tmp_path: Path, block_items: int
    ) -> None:
        run = bulk(recommender, tmp_path, block_items=block_items)
        np.testing.assert_allclose(gather(run), expected, atol=1e-6, rtol=0)
        assert len(files(tmp_path)) == run.blocks == -(-NUM_ITEMS // block_items)
        assert (run.items_encoded, run.blocks_kept) == (NUM_ITEMS, 0)

    def test_bit_for_bit_in_the_same_batches(
        self, recommender: Recommender, expected: np.ndarray, tmp_path: Path
    ) -> None:
        np.testing.assert_array_equal(gather(bulk(recommender, tmp_path, block_items=NUM_ITEMS)), expected)

    def test_of_some_rows(self, recommender: Recommender, expected: np.ndarray, tmp_path: Path) -> None:
        rows = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29])
        np.testing.assert_allclose(
            gather(bulk(recommender, tmp_path, block_items=4), rows), expected[rows], atol=1e-6, rtol=0
        )
        blocks = [pq.read_table(path) for path in files(tmp_path)]
        assert [block["item_id"].to_pylist() for block in blocks] == [
            ["p02", "p03", "p05", "p07"],
            ["p11", "p13", "p17", "p19"],
            ["p23", "p29"],
        ]

    def test_of_none(self, recommender: Recommender, tmp_path: Path) -> None:
        assert gather(bulk(recommender, tmp_path), ROWS[:0]).shape == (0, 17)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("scheme", ["file://", "memory://"])
    def test_in_other_places(self, recommender: Recommender, expected: np.ndarray, tmp_path: Path, scheme: str) -> None:
        place = f"file://{tmp_path}/b" if scheme == "file://" else f"memory://{uuid.uuid4().hex}"
        np.testing.assert_allclose(gather(bulk(recommender, place)), expected, atol=1e-6, rtol=0)
        system, root = fsspec.core.url_to_fs(place)
        assert len(system.glob(f"{root}/*/items-*.parquet")) == 4

    def test_fill_the_table_of_the_run(self, tiny_run: Path, expected: np.ndarray, tmp_path: Path) -> None:
        run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))
        loaded = Recommender.load(run, device="cpu", fill_caches=False)
        found = loaded.item_embeddings(encode=bulk(loaded, tmp_path / "b"))
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(Recommender.load(run, device="cpu").item_embeddings(), found)


class TestGoingOn:
    def test_names_are_those_of_the_first_time(self, recommender: Recommender, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            gather(bulk(recommender, tmp_path / folder))
        one, other = ([p.relative_to(tmp_path / f) for p in files(tmp_path / f)] for f in ("a", "b"))
        assert one == other

    def test_whole_blocks_are_kept(self, recommender: Recommender, expected: np.ndarray, tmp_path: Path) -> None:
        def dies(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
            yield from map(encode, tasks[2::-1])
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            gather(bulk(recommender, tmp_path, dies))
        before = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
        assert len(before) == 3
        assert not list(tmp_path.rglob("manifest.json"))
        run = bulk(recommender, tmp_path)
        np.testing.assert_allclose(gather(run), expected, atol=1e-6, rtol=0)
        assert (run.blocks, run.blocks_kept, run.items_encoded) == (4, 3, NUM_ITEMS - 24)
        assert before.items() <= {path: path.stat().st_mtime_ns for path in files(tmp_path)}.items()

    def test_nothing_is_loaded_where_all_is_there(
        self, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gather(bulk(recommender, tmp_path))
        monkeypatch.setattr(Recommender, "load", None)
        assert bulk(recommender, tmp_path).blocks == 0
        gather(run := bulk(recommender, tmp_path))
        assert (run.blocks_kept, run.items_encoded) == (4, 0)

    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    def test_a_damaged_block_is_made_again_and_no_other(
        self, recommender: Recommender, tmp_path: Path, damage: str
    ) -> None:
        whole = gather(bulk(recommender, tmp_path))
        path = files(tmp_path)[1]
        data = path.read_bytes()
        path.unlink() if damage == "gone" else path.write_bytes(data[:50] if damage == "cut" else b"x" + data[1:])
        run = bulk(recommender, tmp_path)
        np.testing.assert_array_equal(gather(run), whole)
        assert (run.blocks_kept, run.items_encoded) == (3, 8)
        assert path.read_bytes() == data

    def test_another_model_or_size_has_blocks_of_its_own(
        self, recommender: Recommender, content_recommender: Recommender, tmp_path: Path
    ) -> None:
        gather(bulk(recommender, tmp_path))
        for run in (bulk(content_recommender, tmp_path), bulk(recommender, tmp_path, block_items=9)):
            gather(run)
            assert run.blocks_kept == 0
        assert len(list(tmp_path.iterdir())) == 3


class TestRetries:
    def test_a_block_that_was_made_twice_is_read_once(
        self, recommender: Recommender, expected: np.ndarray, tmp_path: Path
    ) -> None:
        """A worker that was thought dead ends after its block was made by another, with other bytes."""

        def twice(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
            assert hasattr(encode, "store")
            for task in tasks:
                done = encode(task)
                yield done
                late = encode.store.write(task.number, len(task.rows), b"late")
                yield replace(done, block=late)

        run = bulk(recommender, tmp_path, twice)
        np.testing.assert_allclose(gather(run), expected, atol=1e-6, rtol=0)
        assert (run.blocks, run.items_encoded) == (4, NUM_ITEMS)
        assert len(files(tmp_path)) == 4, "what the manifest does not list is swept"

    def test_a_block_that_every_worker_dies_of_is_given_up(
        self, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stubborn(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
            yield encode(tasks[0])
            with monkeypatch.context() as deadly:
                deadly.setattr(BlockEncoder, "_encode", None)
                for _ in range(ATTEMPTS):
                    with pytest.raises(TypeError):
                        encode(tasks[1])
            yield encode(tasks[1])

        with pytest.raises(ArtifactError, match=r"lives through block 1, got 4 that died of it.*fewer --workers"):
            gather(bulk(recommender, tmp_path, stubborn))
        run = bulk(recommender, tmp_path)
        gather(run)
        assert run.blocks_kept == 1

    def test_a_block_that_never_came(self, recommender: Recommender, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"expected 4 blocks, got none of the numbers \[1, 3\].*Run the same"):
            gather(bulk(recommender, tmp_path, lambda encode, tasks: map(encode, tasks[::2])))
        assert len(files(tmp_path)) == 2

    def test_a_block_that_changed_behind_the_manifest(
        self, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = BlockStore.write_manifest

        def spoil(self: BlockStore, blocks: Sequence[object], about: object) -> None:
            written(self, blocks, about)  # type: ignore[arg-type]
            files(tmp_path)[2].write_bytes(b"cut")

        monkeypatch.setattr(BlockStore, "write_manifest", spoil)
        with pytest.raises(ArtifactError, match=r"block 2 as the manifest lists it.*items-00000002.*Run the same"):
            gather(bulk(recommender, tmp_path))


class TestWorkers:
    def test_another_feed_than_the_export_began_with_is_refused(
        self, recommender: Recommender, content_run: Path, tmp_path: Path
    ) -> None:
        def elsewhere(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
            return map(replace(encode, run=str(content_run)), tasks)  # type: ignore[type-var]

        with pytest.raises(ArtifactError, match=r"run and feed that come to .* got .*Give every worker the same run"):
            gather(bulk(recommender, tmp_path, elsewhere))

    def test_run_in_the_format_that_is_asked_for(self, tiny_run: Path, expected: np.ndarray, tmp_path: Path) -> None:
        narrow = Recommender.load(tiny_run, device="cpu", compute_dtype="bfloat16")
        vectors = gather(bulk(narrow, tmp_path / "b"))
        near = narrow.embed([f"p{row:02}" for row in ROWS])
        np.testing.assert_allclose(vectors, near, atol=0.02 * np.abs(near).max(), rtol=0)
        assert not np.allclose(vectors, expected, atol=1e-5)

    def test_fill_no_cache_and_agree_with_it(
        self, tiny_run: Path, tiny_feed: TinyFeed, expected: np.ndarray, tmp_path: Path
    ) -> None:
        feed = shutil.copytree(tiny_feed.prepared, tmp_path / "feed")
        shutil.rmtree(feed / "trunks")
        live = Recommender.load(tiny_run, feed=feed, device="cpu", fill_caches=False)
        for name in ("text", "image"):
            assert isinstance(live.assembly.reader.modalities[name].source, LiveTrunk)
        np.testing.assert_allclose(gather(bulk(live, tmp_path / "b")), expected, atol=1e-5, rtol=0)
        assert not (feed / "trunks").exists()
        cached = Recommender.load(tiny_run, device="cpu", fill_caches=False)
        assert not isinstance(cached.assembly.reader.modalities["text"].source, LiveTrunk)
