"""The catalogue in two dimensions, for a map: t-SNE of a sample with everything else placed beside it, or plain PCA.

The same vectors give the same map: the sample, its start and its order of sums are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.inference.export import VectorFolder
from mmrec.search.index import VectorRows, Vectors
from mmrec.storage import read_array

Method = Literal["t-SNE", "PCA"]
MAP = "map.npy"
SAMPLE = 2000
"""Items that a map is fitted on; the rest are placed beside the nearest of them."""
SCALE = (1 << 16) - 1
_ROWS = 1 << 14
_NEIGHBOURS = 3
_COMPONENTS = 50
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """Where the items of a catalogue lie on a map.

    Args:
        points: shape (items, 2), uint16; both axes on one scale, between 0 and ``SCALE``.
        method: how it was made.
        sample: items that it was fitted on.
    """

    points: npt.NDArray[np.uint16]
    method: Method
    sample: int

    def about(self) -> dict[str, object]:
        """Return what the manifest of an export says of its map."""
        return {"method": self.method, "sample": self.sample}

    @property
    def told(self) -> str:
        """The same in words."""
        fix = "" if self.method == "t-SNE" else "; t-SNE needs scikit-learn: mmrec[studio]"
        return f"{self.method} of {self.sample} items{fix}"


def project(vectors: VectorRows, *, has_bias: bool, method: Method = "t-SNE", sample: int = SAMPLE) -> Projection:
    """Lay a catalogue out in two dimensions; items whose content is alike lie near each other.

    Args:
        vectors: shape (items, width), score-ready.
        has_bias: whether they end in a bias, which is no content.
        method: ``t-SNE`` keeps neighbourhoods (needs scikit-learn; PCA where it is not installed); ``PCA`` takes no time.
        sample: items to fit on.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:sample])
    fitted = _units(vectors[rows], has_bias=has_bias)
    axes = _Axes.of(fitted, min(_COMPONENTS, fitted.shape[1]))
    placed = _embedded(axes.project(fitted)) if method == "t-SNE" and len(rows) > _NEIGHBOURS else None
    if placed is not None:
        return Projection(_scaled(_beside(vectors, fitted, placed, has_bias=has_bias)), "t-SNE", len(rows))
    pieces = [
        axes.project(_units(vectors[start : start + _ROWS], has_bias=has_bias))[:, :2]
        for start in range(0, len(vectors), _ROWS)
    ]
    return Projection(_scaled(np.concatenate(pieces)), "PCA", len(rows))


def read_projection(folder: VectorFolder) -> Projection | None:
    """Return the map of an export, None of one without.

    Raises:
        ArtifactError: a map that is missing, changed, or of other items.
    """
    about = folder.manifest.get("map")
    if not isinstance(about, dict):
        return None
    folder.verify(MAP)
    points = cast("npt.NDArray[np.uint16]", read_array(folder.folder / MAP))
    if points.shape != (folder.manifest["items"], 2) or points.dtype != np.uint16:
        raise ArtifactError(
            f"a map of {folder.manifest['items']} items",
            got=f"{points.shape} {points.dtype}",
            where=str(folder.folder / MAP),
            fix="Export again: mmrec export RUN --out DIR --map.",
        )
    return Projection(points, cast("Method", about["method"]), int(str(about["sample"])))


@dataclass(frozen=True)
class _Axes:
    """Principal axes: shape (dim,) and (dim, components), each axis with its largest entry positive."""

    mean: _Floats
    axes: _Floats

    @classmethod
    def of(cls, units: _Floats, components: int) -> _Axes:
        mean = units.mean(axis=0)
        _, vectors = np.linalg.eigh(np.cov(units - mean, rowvar=False, bias=True).reshape(units.shape[1], -1))
        axes = vectors[:, ::-1][:, : max(components, 2)]
        signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        axes = axes * np.where(signs == 0, 1.0, signs)
        # A map has two axes, whatever the content has.
        return cls(mean, np.pad(axes, ((0, 0), (0, max(0, 2 - axes.shape[1])))))

    def project(self, units: _Floats) -> _Floats:
        return np.asarray((units - self.mean) @ self.axes)


def _units(vectors: Vectors, *, has_bias: bool) -> _Floats:
    """Return content of length one, which is what the cosine compares."""
    content = np.asarray(vectors[:, :-1] if has_bias else vectors, dtype=np.float64)
    return np.asarray(content / np.maximum(np.linalg.norm(content, axis=1, keepdims=True), 1e-12))


def _embedded(points: _Floats) -> _Floats | None:
    """Return what t-SNE makes of a sample, None where it is not installed."""
    try:
        from mmrec.inference.tsne import embed
    except MissingExtraError:
        return None
    return embed(points)


def _beside(vectors: VectorRows, fitted: _Floats, placed: _Floats, *, has_bias: bool) -> _Floats:
    """Place every item among its nearest neighbours of the sample, nearer ones counting more; the sample as it is."""
    pieces = []
    for start in range(0, len(vectors), _ROWS):
        cosines = _units(vectors[start : start + _ROWS], has_bias=has_bias) @ fitted.T
        nearest = np.argpartition(-cosines, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        away = np.maximum(1.0 - np.take_along_axis(cosines, nearest, axis=1), 1e-9)
        shares = away**-2 / (away**-2).sum(axis=1, keepdims=True)
        pieces.append((placed[nearest] * shares[:, :, None]).sum(axis=1))
    return np.concatenate(pieces)


def _scaled(points: _Floats) -> npt.NDArray[np.uint16]:
    """Return points between 0 and ``SCALE``, in the middle of the shorter axis."""
    low, high = points.min(axis=0), points.max(axis=0)
    factor = SCALE / max(float((high - low).max()), 1e-12)
    placed = (points - (low + high) / 2) * factor + SCALE / 2
    return np.asarray(placed.round().clip(0, SCALE), dtype=np.uint16)
