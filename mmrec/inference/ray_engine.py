"""Ray Data as the engine that encodes blocks: actors that load the run once, on this machine or on a cluster.

Where a worker dies, Ray starts it again and gives it the blocks it had not handed back; nobody else's are touched.  Ray
does so without end; who ends it is :class:`~mmrec.inference.blocks.BlockEncoder`, which counts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from mmrec.errors import ArtifactError, MissingExtraError, MmrecError
from mmrec.inference.block_store import AGAIN, Block
from mmrec.inference.blocks import BlockDone, BlockTask, EncodeBlock

try:
    import ray
    import ray.data
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

_TASK = pa.schema({"number": pa.int64(), "rows": pa.list_(pa.int64()), "found": pa.list_(pa.string())})
_DONE = pa.schema(
    {name: pa.string() for name in ("file", "hash", "worker", "expected", "got", "where", "fix")}
    | {"number": pa.int64(), "rows": pa.int64(), "encoded": pa.bool_()}
)


@dataclass(frozen=True)
class RayBlocks:
    """An engine of blocks, see :data:`~mmrec.inference.blocks.RunBlocks`.

    A cluster that Ray finds (``RAY_ADDRESS``, or one started on this machine) is used, otherwise one is started here.

    Args:
        workers: actors at most; None takes one a GPU of the cluster, or one a core where none is used.
        device: cuda gives each a GPU, auto where the cluster has one.
    """

    workers: int | None = None
    device: str = "auto"

    def __call__(self, encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
        """Yield blocks as they are done.

        Raises:
            ArtifactError: a block that a worker could not make.
        """
        with _session():
            for row in self._dataset(encode, tasks).iter_rows():
                yield _from_row(row)

    def _dataset(self, encode: EncodeBlock, tasks: Sequence[BlockTask]) -> ray.data.Dataset:
        """Return rows of blocks that are done, to be iterated over: a table a task, so that each is tried by itself."""
        there = ray.cluster_resources()
        on_gpu = self.device.startswith("cuda") or (self.device == "auto" and there.get("GPU", 0) >= 1)
        most = min(len(tasks), self.workers or max(1, int(there.get("GPU" if on_gpu else "CPU", 1))))
        tables = [pa.table([[task.number], [task.rows], [list(task.found)]], schema=_TASK) for task in tasks]
        return ray.data.from_arrow(tables).map_batches(
            _Worker,
            fn_constructor_args=[encode],
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )


@contextmanager
def _session() -> Iterator[None]:
    """Join the cluster that there is, or start one on this machine; leave it afterwards, unless we were part of it.

    Ray prints what happens to workers to stdout, where results go; meanwhile that is stderr.
    """
    joins = not ray.is_initialized()
    with redirect_stdout(sys.stderr):
        if joins:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(logging_level="WARNING", log_to_driver=False)
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            yield
        finally:
            if joins:
                ray.shutdown()


class _Worker:
    """An actor; what goes wrong by the user's input comes back as a row, so that it is neither tried again nor garbled."""

    def __init__(self, encode: EncodeBlock) -> None:
        self._encode = encode

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._row(row) for row in batch.to_pylist()], schema=_DONE)

    def _row(self, row: dict[str, object]) -> dict[str, object]:
        number, rows, found = (row[name] for name in ("number", "rows", "found"))
        try:
            done = self._encode(BlockTask(int(str(number)), np.array(rows, dtype=np.int64), [*found]))  # type: ignore[misc]
        except MmrecError as error:
            return {name: getattr(error, name) for name in ("expected", "got", "where", "fix")}
        return asdict(done.block) | {"encoded": done.encoded, "worker": done.worker}


def _from_row(row: dict[str, object]) -> BlockDone:
    if row["expected"] is not None:
        expected, got, where, fix = (str(row[name]) for name in ("expected", "got", "where", "fix"))
        raise ArtifactError(expected, got=got, where=where, fix=fix or AGAIN)
    block = Block(int(str(row["number"])), str(row["file"]), int(str(row["rows"])), str(row["hash"]))
    return BlockDone(block, encoded=bool(row["encoded"]), worker=str(row["worker"]))
