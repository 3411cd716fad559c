"""The map of a catalogue: neighbours stay neighbours, the same vectors give the same map, and an export carries it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.export import export_run
from mmrec.commands.index import index_export
from mmrec.errors import ArtifactError
from mmrec.inference.export import VectorFolder
from mmrec.inference.projection import MAP, SCALE, project, read_projection


def clusters(per_cluster: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around five directions, and a bias that says nothing of them."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), per_cluster)
    content = np.eye(12)[labels] + 0.15 * draw.normal(size=(len(labels), 12))
    return np.column_stack([content, 50 * draw.normal(size=len(labels))]).astype(np.float32), labels


def same_cluster(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of points whose nearest other point is of their cluster."""
    away = np.linalg.norm(points[:, None].astype(float) - points[None].astype(float), axis=2)
    np.fill_diagonal(away, np.inf)
    return float((labels[away.argmin(axis=1)] == labels).mean())


def test_tsne_keeps_neighbours_also_of_what_lies_beside_the_sample() -> None:
    pytest.importorskip("sklearn")
    vectors, labels = clusters()
    laid_out = project(vectors, has_bias=True, sample=60)
    assert (laid_out.method, laid_out.sample, laid_out.points.dtype) == ("t-SNE", 60, np.uint16)
    assert same_cluster(laid_out.points, labels) > 0.95
    assert np.ptp(laid_out.points, axis=0).max() == SCALE
    np.testing.assert_array_equal(project(vectors, has_bias=True, sample=60).points, laid_out.points)


def test_pca_where_there_is_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.delitem(sys.modules, "mmrec.inference.tsne", raising=False)
    vectors, _ = clusters()
    laid_out = project(vectors, has_bias=True)
    assert laid_out.method == "PCA"
    assert "mmrec[studio]" in laid_out.told
    # The first axis is the one along which the content varies most.
    units = vectors[:, :-1] / np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    first = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)[0][:, 0]
    assert abs(np.corrcoef(first, laid_out.points[:, 0])[0, 1]) > 0.999


def test_an_export_carries_its_map(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "vectors"
    summary = export_run(tiny_run, out=out, users=False, with_map=True, device="cpu")
    assert summary["map"] == "t-SNE of 30 items"
    index_export(out, store="faiss", index="flat")
    laid_out = read_projection(VectorFolder.open(out))
    assert laid_out is not None
    assert laid_out.points.shape == (30, 2)
    np.save(out / MAP, laid_out.points[::-1])
    with pytest.raises(ArtifactError, match=r"map\.npy as it was exported"):
        read_projection(VectorFolder.open(out))
    export_run(tiny_run, out=out, users=False, device="cpu")
    assert read_projection(VectorFolder.open(out)) is None
    assert not (out / MAP).exists()
