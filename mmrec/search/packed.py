"""Vectors in a smaller number format, decoded where they are read; the arrays may be memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.search.index import Rows, Vectors

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class PackedVectors:
    """Vectors as they are stored; ``packed[rows]`` is float32.

    int8 has one scale a vector, so that a vector says the same whatever it is stored with.  The bias stays out of it in
    float32: it may be ten times the largest coordinate of content, and would leave that a handful of steps.

    Args:
        values: shape (vectors, dim), or of int8 vectors with a bias (vectors, dim - 1).
        scales: shape (vectors,), of int8 only: ``content = values * scale``.
        biases: shape (vectors,), of int8 vectors that end in a bias.
    """

    values: npt.NDArray[np.generic]
    scales: Vectors | None = None
    biases: Vectors | None = None

    @classmethod
    def pack(cls, vectors: Vectors, precision: Precision, *, has_bias: bool) -> PackedVectors:
        """Store float32 vectors, shape (vectors, dim), the last coordinate of which may be a bias."""
        if precision != "int8":
            return cls(vectors.astype(precision))
        values, scales = quantise(vectors[:, :-1] if has_bias else vectors)
        return cls(values, scales, np.array(vectors[:, -1], dtype=np.float32) if has_bias else None)

    @property
    def shape(self) -> tuple[int, int]:
        """Vectors and coordinates, the bias among them."""
        return len(self.values), self.values.shape[1] + int(self.biases is not None)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Rows) -> Vectors:
        vectors = np.asarray(self.values[rows], dtype=np.float32)
        if self.scales is not None:
            vectors = vectors * self.scales[rows][:, None]
        return vectors if self.biases is None else np.hstack([vectors, self.biases[rows][:, None]])

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one vector, scale and bias included."""
        return sum(array.dtype.itemsize * array.size // max(len(array), 1) for array in self.arrays().values())

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays there are, by name."""
        arrays = {"values": self.values, "scales": self.scales, "biases": self.biases}
        return {name: array for name, array in arrays.items() if array is not None}


def quantise(vectors: Vectors) -> tuple[npt.NDArray[np.int8], Vectors]:
    """Return int8 vectors and the scale of each: ``vector = int8 * scale``, error at most half a scale."""
    scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    return np.rint(vectors / safe[:, None]).astype(np.int8), scales
