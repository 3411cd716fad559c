"""Vectors for downstream search: parquet files and a manifest, always whole, never of two models.

The manifest is the source of truth; an index beside it can be made again from the parquet files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mmrec import columns
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import ArtifactError
from mmrec.inference.tables import id_type
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.search.index import VectorRows
from mmrec.search.packed import PackedVectors, Precision
from mmrec.storage import file_hash, read_array, read_json, recover_folder

Side = Literal["items", "users"]
MANIFEST = "manifest.json"
EXPORT_VERSION = 2
SAMPLE = 1000
_COLUMNS = {"values": "vector", "scales": "scale", "biases": "vector_bias"}
STORED = tuple(_COLUMNS.values())
"""Columns that hold a vector."""
_ROWS = 1 << 16


def write_vectors(
    path: Path | pa.NativeFile,
    ids: Sequence[str] | Sequence[int],
    vectors: WrittenVectors,
    *,
    id_column: str,
    extra: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """Write ids and vectors as parquet with a fixed-size list column ``vector``, a piece at a time.

    int8 vectors have a column ``scale`` too, and their bias, where they end in one, a column ``vector_bias`` in float32.

    Args:
        path: file to write, or an open stream.
        ids: external ids.
        vectors: what to write.
        id_column: name of the id column.
        extra: further columns.
    """
    beside = {id_column: pa.array(ids, id_type(ids))}
    extra_columns = {name: pa.array(column) for name, column in (extra or {}).items()}
    writer: pq.ParquetWriter | None = None
    try:
        for start in range(0, max(len(vectors), 1), _ROWS):
            packed = vectors.pack(slice(start, start + _ROWS))
            table = {name: column.slice(start, _ROWS) for name, column in beside.items()}
            flat = pa.array(np.ascontiguousarray(packed.values).reshape(-1))
            table["vector"] = pa.FixedSizeListArray.from_arrays(flat, packed.values.shape[1])
            table |= {_COLUMNS[name]: pa.array(piece) for name, piece in packed.arrays().items() if name != "values"}
            table |= {name: column.slice(start, _ROWS) for name, column in extra_columns.items()}
            piece = pa.table(table)
            writer = writer or pq.ParquetWriter(path, piece.schema)
            writer.write_table(piece)
    finally:
        if writer is not None:
            writer.close()


def write_arrays(folder: Path, vectors: WrittenVectors) -> None:
    """Write item vectors once more as arrays that a search maps into memory: ``items.values.npy``, scales, biases."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for start in range(0, len(vectors), _ROWS):
        packed = vectors.pack(slice(start, start + _ROWS))
        for name, piece in packed.arrays().items():
            if name not in arrays:
                place, shape = folder / f"items.{name}.npy", (len(vectors), *piece.shape[1:])
                arrays[name] = np.lib.format.open_memmap(place, mode="w+", dtype=piece.dtype, shape=shape)
            arrays[name][start : start + len(piece)] = piece


def read_vectors(path: Path, *, id_column: str) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
    """Read ids (as text) and vectors (float32) of a parquet file that :func:`write_vectors` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    table = _read_columns(path, [id_column, *STORED])
    column = table.column("vector").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    scales, biases = (
        table.column(name).to_numpy() if name in table.column_names else None for name in ("scale", "vector_bias")
    )
    vectors = PackedVectors(flat.reshape(-1, column.type.list_size), scales, biases)[:]
    return _ids(table, id_column), vectors


def _read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    try:
        there = pq.read_schema(path).names
        return pq.read_table(path, columns=[name for name in names if name in there])
    except (pa.ArrowException, OSError) as error:
        fix = "Export again: mmrec export RUN --out DIR."
        raise ArtifactError("a file of vectors", got=str(error)[:200], where=str(path), fix=fix) from error


def _ids(table: pa.Table, id_column: str) -> npt.NDArray[np.object_]:
    return np.array([str(value) for value in table.column(id_column).to_pylist()], dtype=object)


@dataclass(frozen=True)
class VectorFolder:
    """An export on disk.

    Args:
        folder: where it is.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Mapping[str, object]

    @classmethod
    def open(cls, folder: Path) -> VectorFolder:
        """Read the manifest of an export.

        Raises:
            ArtifactError: no export, or one of another version.
        """
        recover_folder(folder)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(
                "a folder of vectors", got="no manifest.json", where=str(folder), fix="Run: mmrec export RUN --out DIR."
            )
        manifest = read_json(folder / MANIFEST)
        if manifest.get("export_version") != EXPORT_VERSION:
            raise ArtifactError(
                f"export version {EXPORT_VERSION}",
                got=repr(manifest.get("export_version")),
                where=str(folder),
                fix="Export again: mmrec export RUN --out DIR.",
            )
        return cls(folder, manifest)

    @property
    def format(self) -> VectorFormat:
        """How its vectors were written."""
        entry = cast("dict[str, object]", self.manifest["format"])
        return VectorFormat(
            precision=cast("Precision", entry["precision"]),
            normalised=bool(entry["normalised"]),
            dim=cast("int | None", entry["dim"]),
            has_bias=bool(entry["has_bias"]),
            keeps_length=bool(entry["keeps_length"]),
        )

    @property
    def compute_dtype(self) -> ComputeDtype:
        """Number format in which the encoders ran, and in which what is compared with these vectors is encoded."""
        return cast("ComputeDtype", self.manifest.get("compute_dtype", "float32"))

    @property
    def model_hash(self) -> str:
        """Hash of the model and preprocessing the vectors come from."""
        return str(self.manifest["model_hash"])

    def require_model(self, model_hash: str) -> None:
        """Refuse vectors of another model.

        Raises:
            ArtifactError: the vectors were made by another model or another preprocessing.
        """
        if model_hash != self.model_hash:
            raise ArtifactError(
                f"vectors of the model {model_hash[:12]}",
                got=f"vectors of the model {self.model_hash[:12]}",
                where=str(self.folder),
                fix="Export again with this run: mmrec export RUN --out DIR.",
            )

    def vectors(self, side: Side) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
        """Return ids and vectors of one side."""
        return read_vectors(self.folder / f"{side}.parquet", id_column=f"{side[:-1]}_id")

    def items(self) -> tuple[npt.NDArray[np.object_], VectorRows]:
        """Return ids and vectors of the items, mapped into memory where they are in a smaller format.

        Raises:
            ArtifactError: a file is missing, damaged, or of other items.
        """
        if self.format.precision == "float32":
            return self.vectors("items")
        ids = _ids(_read_columns(self.folder / "items.parquet", [columns.ITEM_ID]), columns.ITEM_ID)
        names = [name for name in _COLUMNS if f"items.{name}.npy" in cast("dict[str, str]", self.manifest["files"])]
        arrays = {name: read_array(self.folder / f"items.{name}.npy") for name in names}
        vectors = PackedVectors(**cast("dict[str, npt.NDArray[np.float32]]", arrays))
        if len(vectors) != len(ids):
            raise ArtifactError(
                f"{len(ids)} vectors",
                got=str(len(vectors)),
                where=str(self.folder / "items.values.npy"),
                fix="Export again: mmrec export RUN --out DIR.",
            )
        return ids, vectors

    def table(self) -> pd.DataFrame:
        """Return everything known of the items but their vectors, in the order of the vectors."""
        names = [name for name in pq.read_schema(self.folder / "items.parquet").names if name not in STORED]
        return pd.read_parquet(self.folder / "items.parquet", columns=names)

    def verify(self, name: str) -> None:
        """Check the hash of a file.

        Raises:
            ArtifactError: it is missing or is not the one that was written.
        """
        path = self.folder / name
        if not path.is_file() or file_hash(path) != cast("dict[str, str]", self.manifest["files"]).get(name):
            raise ArtifactError(
                f"{name} as it was exported",
                got="a missing or changed file",
                where=str(path),
                fix="Export again: mmrec export RUN --out DIR.",
            )
