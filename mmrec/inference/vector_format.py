"""How an export writes a model's vectors: cut, normalised, in which number format."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from mmrec.model.scorer import shorten
from mmrec.search.index import Rows, VectorRows
from mmrec.search.packed import PackedVectors, Precision


@dataclass(frozen=True)
class VectorFormat:
    """How vectors are written.

    Args:
        precision: number format; int8 has one scale a vector.
        normalised: unit vectors without the bias coordinate (cosine) instead of score-ready ones.
        dim: leading content dimensions kept, or None for all.
        has_bias: whether the model's vectors end in a bias coordinate.
        keeps_length: whether content that is cut keeps its length, as it does where the model compares by cosine.
    """

    precision: Precision = "float32"
    normalised: bool = False
    dim: int | None = None
    has_bias: bool = False
    keeps_length: bool = False

    @property
    def ends_in_bias(self) -> bool:
        """Whether the written vectors do."""
        return self.has_bias and not self.normalised

    @property
    def lossy(self) -> bool:
        """Whether a full vector says more than what is written of it."""
        return self.dim is not None or self.precision != "float32"

    @property
    def whole(self) -> bool:
        """Whether what is written is the model's vectors as they are."""
        return not self.lossy and not self.normalised

    @property
    def full(self) -> VectorFormat:
        """The same vectors with nothing lost."""
        return replace(self, dim=None, precision="float32")

    def shape(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return vectors cut and normalised as the format says, still float32, shape (rows, dim)."""
        if self.dim is not None:
            whole = torch.from_numpy(np.array(vectors))
            short = shorten(whole, self.dim, has_bias=self.has_bias, keeps_length=self.keeps_length)
            vectors = np.asarray(short.numpy(), dtype=np.float32)
        if not self.normalised:
            return vectors
        content = vectors[:, :-1] if self.has_bias else vectors
        norms = np.linalg.norm(content, axis=1, keepdims=True)
        return np.asarray(content / np.maximum(norms, 1e-12), dtype=np.float32)

    def pack(self, vectors: npt.NDArray[np.float32]) -> PackedVectors:
        """Return shaped vectors as they are written."""
        return PackedVectors.pack(vectors, self.precision, has_bias=self.ends_in_bias)


@dataclass(frozen=True)
class WrittenVectors:
    """What an export gives back of a model's vectors, row by row, without writing it.

    Args:
        vectors: score-ready vectors, shape (rows, width).
        layout: the export's format.
    """

    vectors: VectorRows
    layout: VectorFormat

    @property
    def shape(self) -> tuple[int, int]:
        """Vectors and coordinates, the bias among them."""
        return len(self), self.pack(slice(0, 1)).shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | Rows) -> npt.NDArray[np.float32]:
        return self.pack(rows)[:]

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one vector, scale and bias included."""
        return self.pack(slice(0, 1)).bytes_per_vector

    def pack(self, rows: slice | Rows) -> PackedVectors:
        """Return some vectors as they are written."""
        return self.layout.pack(self.layout.shape(np.array(self.vectors[rows])))
