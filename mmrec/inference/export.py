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

from mmrec.errors import ArtifactError
from mmrec.inference.tables import id_type
from mmrec.storage import file_hash, read_json, recover_folder

Precision = Literal["float32", "float16", "int8"]
Side = Literal["items", "users"]
MANIFEST = "manifest.json"
EXPORT_VERSION = 1
SAMPLE = 1000
_ROWS = 1 << 16


@dataclass(frozen=True)
class VectorFormat:
    """How vectors are written.

    Args:
        precision: number format; int8 has one scale a vector.
        normalised: unit vectors without the bias coordinate (cosine) instead of score-ready ones.
        dim: leading content dimensions kept, or None for all.
        has_bias: whether the model's vectors end in a bias coordinate.
    """

    precision: Precision = "float32"
    normalised: bool = False
    dim: int | None = None
    has_bias: bool = False

    def shape(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return vectors cut and normalised as the format says, still float32, shape (rows, dim)."""
        content = vectors[:, :-1] if self.has_bias else vectors
        content = content[:, : self.dim] if self.dim else content
        if self.normalised:
            norms = np.linalg.norm(content, axis=1, keepdims=True)
            return np.asarray(content / np.maximum(norms, 1e-12), dtype=np.float32)
        return np.hstack([content, vectors[:, -1:]]) if self.has_bias else content


def quantise(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 vectors and the scale of each: ``vector = int8 * scale``, error at most half a scale."""
    scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    return np.rint(vectors / safe[:, None]).astype(np.int8), scales


def write_vectors(
    path: Path,
    ids: Sequence[str] | Sequence[int],
    vectors: npt.NDArray[np.float32],
    *,
    id_column: str,
    precision: Precision,
    extra: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """Write ids and vectors as parquet with a fixed-size list column ``vector`` (and ``scale`` for int8).

    Args:
        path: file to write.
        ids: external ids.
        vectors: shape (rows, dim).
        id_column: name of the id column.
        precision: number format.
        extra: further columns.
    """
    table: dict[str, pa.Array] = {id_column: pa.array(ids, id_type(ids))}
    if precision == "int8":
        values, scales = quantise(vectors)
        table["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), vectors.shape[1])
        table["scale"] = pa.array(scales)
    else:
        flat = vectors.astype(precision).reshape(-1)
        table["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])
    for name, column in (extra or {}).items():
        table[name] = pa.array(column)
    pq.write_table(pa.table(table), path, row_group_size=_ROWS)


def read_vectors(path: Path, *, id_column: str) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
    """Read ids (as text) and vectors (float32) of a parquet file that :func:`write_vectors` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        fix = "Export again: mmrec export RUN --out DIR."
        raise ArtifactError("a file of vectors", got=str(error)[:200], where=str(path), fix=fix) from error
    column = table.column("vector").combine_chunks()
    dim = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors = np.asarray(flat, dtype=np.float32).reshape(-1, dim)
    if "scale" in table.column_names:
        vectors = vectors * table.column("scale").to_numpy()[:, None]
    ids = np.array([str(value) for value in table.column(id_column).to_pylist()], dtype=object)
    return ids, vectors


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
                f"export version {EXPORT_VERSION}", got=repr(manifest.get("export_version")), where=str(folder)
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
        )

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

    def table(self) -> pd.DataFrame:
        """Return everything known of the items but their vectors, in the order of the vectors."""
        names = [n for n in pq.read_schema(self.folder / "items.parquet").names if n not in {"vector", "scale"}]
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
