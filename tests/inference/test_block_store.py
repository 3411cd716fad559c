"""Blocks in any place that fsspec reaches: whole or absent, found again by name, read by way of one manifest."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from mmrec.errors import ArtifactError
from mmrec.inference.block_store import BlockStore
from mmrec.storage import bytes_hash, file_hash

PRINT = "0123456789abcdef" * 2


@pytest.fixture(params=["path", "file://", "memory://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlockStore:
    if request.param == "memory://":
        return BlockStore(f"memory://{uuid.uuid4().hex}/blocks", PRINT)
    prefix = "" if request.param == "path" else "file://"
    return BlockStore(f"{prefix}{tmp_path / 'deep' / 'blocks'}", PRINT)


def names(store: BlockStore) -> list[str]:
    system, root = fsspec.core.url_to_fs(store.folder)
    return sorted(str(path).rpartition("/")[2] for path in system.ls(root, detail=False))


def put(store: BlockStore, name: str, data: bytes) -> None:
    system, root = fsspec.core.url_to_fs(store.folder)
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/{name}", data)


class TestNames:
    def test_come_from_number_and_bytes_alone(self, store: BlockStore) -> None:
        block = store.write(3, 10, b"three")
        assert block.file == f"items-00000003-{bytes_hash(b'three')}.parquet"
        assert store.write(3, 10, b"three") == block, "a second attempt"
        assert names(store) == [block.file], "nothing half written is left"
        assert store.found() == {3: [block.file]}

    def test_a_hash_of_bytes_is_that_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"three")
        assert bytes_hash(b"three") == file_hash(tmp_path / "x")

    def test_nothing_there(self, store: BlockStore) -> None:
        assert store.found() == {}

    def test_other_blocks_of_the_place_are_not_these(self, store: BlockStore) -> None:
        BlockStore(store.place, "f" * 32).write(0, 1, b"other")
        assert store.found() == {}


class TestWhole:
    def test_is_what_was_written(self, store: BlockStore) -> None:
        block = store.write(3, 10, b"three")
        assert store.read(block.file) == b"three"
        assert store.whole(3, 10, block.file) == block

    @pytest.mark.parametrize("damage", [b"", b"thre", b"threx", b"three and more"])
    def test_damaged_is_as_good_as_gone(self, store: BlockStore, damage: bytes) -> None:
        block = store.write(3, 10, b"three")
        put(store, block.file, damage)
        assert store.whole(3, 10, block.file) is None
        assert store.read(block.file) is None

    def test_gone_or_of_a_foreign_name(self, store: BlockStore) -> None:
        block = store.write(3, 10, b"three")
        put(store, "items.parquet", b"three")
        assert store.read("items.parquet") is None
        assert store.read(block.file.replace("00000003", "00000004")) is None


class TestManifest:
    def test_lists_each_block_once_and_sweeps_the_rest(self, store: BlockStore) -> None:
        late = store.write(1, 2, b"one, by a worker that was thought dead")
        blocks = [store.write(1, 2, b"one"), store.write(0, 3, b"zero")]
        put(store, f"{blocks[0].file}.partial-123", b"on")
        put(store, "notes.txt", b"mine")
        store.write_manifest(blocks, {"items": 5})
        assert store.listed() == [blocks[1], blocks[0]]
        assert late.file not in names(store)
        assert names(store) == sorted(["manifest.json", "notes.txt", *(block.file for block in blocks)])

    def test_attempts_are_counted_by_block_and_session(self, store: BlockStore) -> None:
        assert [store.attempt(3, "a") for _ in range(3)] == [1, 2, 3]
        assert (store.attempt(4, "a"), store.attempt(3, "b")) == (1, 1)
        assert store.found() == {}
        store.write_manifest([store.write(0, 1, b"zero")], {})
        assert len(names(store)) == 2

    def test_none_or_another(self, store: BlockStore) -> None:
        with pytest.raises(ArtifactError, match=r"manifest of blocks.*FileNotFound.*Run the same command again"):
            store.listed()
        for text in (b"{", b"[]", b'{"blocks_version": 1}', b'{"blocks_version": 1, "fingerprint": "x", "blocks": []}'):
            put(store, "manifest.json", text)
            with pytest.raises(ArtifactError, match=r"a manifest of .*Run the same command again"):
                store.listed()

    def test_remove_leaves_what_is_not_ours(self, store: BlockStore) -> None:
        system, place = fsspec.core.url_to_fs(store.place)
        store.write(0, 1, b"zero")
        BlockStore(store.place, "f" * 32).write(0, 1, b"of an earlier model")
        system.pipe_file(f"{place}/notes.txt", b"mine")
        store.remove()
        assert [str(path).rpartition("/")[2] for path in system.ls(place, detail=False)] == ["notes.txt"]
        system.rm_file(f"{place}/notes.txt")
        store.write(0, 1, b"zero")
        store.remove()
        assert not system.exists(place)
        store.remove()
