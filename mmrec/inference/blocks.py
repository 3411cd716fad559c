"""Encoding a catalogue in blocks: what a worker does with one, whoever the workers are, and how vectors come back."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import columns
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import ArtifactError
from mmrec.inference.block_store import AGAIN, Block, BlockStore
from mmrec.inference.encoding import Progress
from mmrec.inference.export import write_vectors
from mmrec.inference.recommender import Pieces, Recommender
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.places import full_place
from mmrec.storage import content_hash

BLOCK_ITEMS = 8192
"""Items of a block: 4 MB of vectors of 129 numbers."""
ATTEMPTS = 4
"""Workers that may die of a block before it is given up."""


@dataclass(frozen=True)
class BlockTask:
    """A block to be made.

    Args:
        number: its position among the blocks.
        rows: catalogue rows of its items, in order.
        found: files that an earlier run left for it.
    """

    number: int
    rows: npt.NDArray[np.int64]
    found: Sequence[str] = ()


@dataclass(frozen=True)
class BlockDone:
    """A block that is there.

    Args:
        block: its entry in the manifest.
        encoded: whether it was encoded now; otherwise an earlier run had done so.
        worker: host and process that made it.
    """

    block: Block
    encoded: bool
    worker: str


EncodeBlock = Callable[[BlockTask], BlockDone]
RunBlocks = Callable[[EncodeBlock, Sequence[BlockTask]], Iterable[BlockDone]]
"""An engine: gives every task to some worker, does again what died, and yields what is done in any order."""


@dataclass
class BlockEncoder:
    """What a worker needs; it loads the run at the first block that has to be encoded, once.

    Args:
        run: run folder, under the same path for every worker.
        feed: prepared feed, likewise.
        device: where to compute.
        compute_dtype: number format in which encoders run.
        catalogue_hash: what run and feed must come to.
        store: where blocks go.
        session: this run of the command; attempts are counted in it.
    """

    run: str
    feed: str
    device: str
    compute_dtype: ComputeDtype
    catalogue_hash: str
    store: BlockStore
    session: str
    _loaded: Recommender | None = field(default=None, init=False, repr=False)

    def __call__(self, task: BlockTask) -> BlockDone:
        """Make a block, unless it is there and whole.

        Raises:
            ArtifactError: run and feed are not those that the export was asked of, or too many workers died of the block.
        """
        worker = f"{socket.gethostname()}:{os.getpid()}"
        for name in task.found:
            block = self.store.whole(task.number, len(task.rows), name)
            if block is not None:
                return BlockDone(block, encoded=False, worker=worker)
        if self.store.attempt(task.number, self.session) > ATTEMPTS:
            raise ArtifactError(
                f"a worker that lives through block {task.number}",
                got=f"{ATTEMPTS} that died of it",
                where=self.store.folder,
                fix="Run the same command again with fewer --workers, each of which has more memory: whole blocks are kept.",
            )
        block = self.store.write(task.number, len(task.rows), self._encode(task.rows))
        return BlockDone(block, encoded=True, worker=worker)

    def _encode(self, rows: npt.NDArray[np.int64]) -> bytes:
        recommender = self._recommender()
        ((_, vectors),) = recommender.encode_rows(rows, lambda done: None)
        written = WrittenVectors(vectors, VectorFormat(has_bias=recommender.has_bias))
        ids, sink = recommender.assembly.catalogue.external_ids(rows), pa.BufferOutputStream()
        write_vectors(sink, ids, written, id_column=columns.ITEM_ID)
        return bytes(sink.getvalue())

    def _recommender(self) -> Recommender:
        if self._loaded is None:
            loaded = Recommender.load(
                self.run, feed=self.feed, device=self.device, fill_caches=False, compute_dtype=self.compute_dtype
            )
            if loaded.catalogue_hash != self.catalogue_hash:
                raise ArtifactError(
                    f"run and feed that come to {self.catalogue_hash[:12]}, as where the export began",
                    got=loaded.catalogue_hash[:12],
                    where=f"{self.run} and {self.feed} on {socket.gethostname()}",
                    fix="Give every worker the same run and the same prepared feed under these paths.",
                )
            self._loaded = loaded
        return self._loaded


@dataclass
class BlockRun:
    """Encodes catalogue rows in blocks; an :data:`~mmrec.inference.recommender.EncodeRows`.

    Args:
        recommender: the model on the feed; runs nothing here.
        place: URL or path that blocks are kept under.
        run_blocks: the engine.
        device: where workers compute.
        block_items: items of a block; another number gives other blocks.

    Attributes:
        items_encoded: items of the blocks that had to be encoded.
        blocks: blocks in all.
        blocks_kept: blocks that an earlier run had finished.
    """

    recommender: Recommender
    place: str
    run_blocks: RunBlocks
    device: str = "auto"
    block_items: int = BLOCK_ITEMS
    items_encoded: int = field(default=0, init=False)
    blocks: int = field(default=0, init=False)
    blocks_kept: int = field(default=0, init=False)

    def __call__(self, rows: npt.NDArray[np.int64], progress: Progress) -> Pieces:
        """Have the rows encoded, and yield them block by block as the manifest lists them.

        Raises:
            ArtifactError: a block that no worker made, or that changed since.
        """
        if len(rows):
            store = self._store(rows)
            blocks = self._run(store, self._tasks(store, rows), progress)
            about = {"model_hash": self.recommender.model_hash, "items": len(rows), "block_items": self.block_items}
            store.write_manifest(blocks, about)
            yield from self._read(store, rows)

    def remove(self) -> None:
        """Delete the blocks, which the run's table of vectors has taken in."""
        BlockStore(full_place(self.place), "").remove()

    def _store(self, rows: npt.NDArray[np.int64]) -> BlockStore:
        decides = (self.recommender.catalogue_hash, str(self.block_items), rows.tobytes())
        return BlockStore(full_place(self.place), content_hash("blocks", *decides))

    def _tasks(self, store: BlockStore, rows: npt.NDArray[np.int64]) -> list[BlockTask]:
        found = store.found()
        parts = (rows[start : start + self.block_items] for start in range(0, len(rows), self.block_items))
        return [BlockTask(number, part, found.get(number, ())) for number, part in enumerate(parts)]

    def _run(self, store: BlockStore, tasks: Sequence[BlockTask], progress: Progress) -> list[Block]:
        """Return one block a task, however often the engine made it."""
        assembly = self.recommender.assembly
        encoder = BlockEncoder(
            run=str(self.recommender.run.path.resolve()),
            feed=str(assembly.catalogue.folder.resolve()),
            device=self.device,
            compute_dtype=assembly.compute_dtype,
            catalogue_hash=self.recommender.catalogue_hash,
            store=store,
            session=uuid.uuid4().hex,
        )
        blocks: dict[int, Block] = {}
        for done in self.run_blocks(encoder, tasks):
            if done.block.number in blocks:
                continue
            blocks[done.block.number] = done.block
            self.items_encoded += done.block.rows if done.encoded else 0
            self.blocks_kept += int(not done.encoded)
            progress(done.block.rows)
        lacking = [task.number for task in tasks if task.number not in blocks]
        if lacking:
            got = f"none of the numbers {lacking[:10]}"
            raise ArtifactError(f"{len(tasks)} blocks", got=got, where=store.folder, fix=AGAIN)
        self.blocks = len(blocks)
        return list(blocks.values())

    def _read(self, store: BlockStore, rows: npt.NDArray[np.int64]) -> Pieces:
        start = 0
        for block in store.listed():
            data = store.read(block.file)
            if data is None:
                raise ArtifactError(
                    f"block {block.number} as the manifest lists it",
                    got="a missing or changed file",
                    where=f"{store.folder}/{block.file}",
                    fix=AGAIN,
                )
            column = pq.read_table(pa.BufferReader(data), columns=["vector"]).column("vector").combine_chunks()
            vectors = column.flatten().to_numpy().reshape(block.rows, -1)
            yield rows[start : start + block.rows], vectors
            start += block.rows
