"""Ray Data as the engine that encodes blocks: actors that load the run once, on this machine or on a cluster.

Where a worker dies, Ray starts it again and gives it the blocks it had not handed back; nobody else's are touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from mmrec.errors import ArtifactError, MissingExtraError, MmrecError
from mmrec.inference.block_store import AGAIN, Block
from mmrec.inference.blocks import BlockDone, BlockTask, EncodeBlock

try:
    import ray
    import ray.data
    from ray.exceptions import RayActorError
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

ATTEMPTS = 3
"""How often a block is given to a worker again after one died of it."""
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
        workers: actors at most; None takes one a GPU of the cluster, or one a core where it has none.
        on_gpu: whether each takes a GPU.
    """

    workers: int | None = None
    on_gpu: bool = False

    def __call__(self, encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterator[BlockDone]:
        """Yield blocks as they are done.

        Raises:
            ArtifactError: a block that a worker could not make, or under which workers died again and again.
        """
        start_ray()
        most = self.workers or int(ray.cluster_resources().get("GPU" if self.on_gpu else "CPU", 1)) or 1
        most = min(most, len(tasks))
        rows = [pa.table([[task.number], [task.rows], [list(task.found)]], schema=_TASK) for task in tasks]
        done = ray.data.from_arrow(rows).map_batches(
            _Worker,
            fn_constructor_args=[encode],
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=1,
            num_gpus=1 if self.on_gpu else None,
            max_restarts=-1,
            max_task_retries=ATTEMPTS,
        )
        try:
            for row in done.iter_rows():
                yield _from_row(row)
        except RayActorError as error:
            raise ArtifactError(
                "workers that live through their blocks",
                got=f"one that died {ATTEMPTS + 1} times over the same block ({str(error).splitlines()[0][:200]})",
                where="--engine ray",
                fix="Run the same command again with smaller --block-items or fewer --workers: whole blocks are kept.",
            ) from error


def has_gpu() -> bool:
    """Return whether the cluster has one."""
    start_ray()
    return bool(ray.cluster_resources().get("GPU", 0) >= 1)


def start_ray() -> None:
    """Join the cluster that there is, or start one on this machine, quietly."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(logging_level="WARNING", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


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
