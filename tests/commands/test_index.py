"""Another index for an export: equal to what export would have built, and whole or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands import index as module
from mmrec.commands.export import export_run
from mmrec.commands.index import index_export
from mmrec.commands.search import search_vectors
from mmrec.errors import ArtifactError, RequestError
from mmrec.inference.export import VectorFolder, write_vectors
from mmrec.inference.export_index import IndexChoice, build_index, open_store
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.search.index import ExactStore, recall
from mmrec.storage import file_hash, read_json, write_json
from tests.feeds import write_feed
from tests.tiny_run import NUM_ITEMS

POSTS = 300
CHOICES = [("faiss", "flat"), ("faiss", "hnsw"), ("faiss", "ivfpq"), ("lancedb", None)]
TIMED = "queries a second over exact"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared feed with enough posts for every index."""
    words = ("soft", "large", "striped", "red", "green", "wool", "silk")
    captions = {f"q{row}": " ".join(three) for row, three in enumerate(islice(product(words, repeat=3), POSTS))}
    events = [("u1", "q7", 1), ("u1", "q8", 2)]
    return write_feed(
        tmp_path_factory.mktemp("many") / "feed",
        interactions=events,
        item_ids=list(captions),
        captions=captions,
        split=None,
    )


@pytest.fixture(scope="module")
def bare(tiny_run: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bare") / "v"
    export_run(tiny_run, out=out, feed=many, device="cpu")
    return out


@pytest.fixture
def export(bare: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bare, tmp_path / "v")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def untimed(folder: Path) -> dict[str, object]:
    """What a manifest says, but for the clock's part and the hashes that LanceDB draws anew."""
    manifest = read_json(folder / "manifest.json")
    index, files = manifest["index"], manifest["files"]
    assert isinstance(index, dict)
    assert isinstance(files, dict)
    del index[TIMED]
    return manifest | {"files": {name: value for name, value in files.items() if not name.startswith("items.lance")}}


def answers(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    opened = VectorFolder.open(folder)
    vectors = opened.vectors("items")[1]
    hits = open_store(opened, vectors).search(vectors[:50], k=10)
    return hits.rows, hits.scores


@pytest.mark.parametrize(("store", "index"), CHOICES)
def test_equals_what_export_builds(
    store: str, index: str | None, tiny_run: Path, many: Path, export: Path, tmp_path: Path
) -> None:
    if store == "lancedb":
        pytest.importorskip("lancedb")
    options = {"store": store, "index": index}
    exported = export_run(tiny_run, out=tmp_path / "whole", feed=many, device="cpu", **options)  # type: ignore[arg-type]
    rebuilt = index_export(export, **options)  # type: ignore[arg-type]
    assert untimed(export) == untimed(tmp_path / "whole")
    for name in set(rebuilt) - {"folder", "store", TIMED}:
        assert rebuilt[name] == exported[name]
    assert float(str(rebuilt["recall@10"])) >= 0.99
    (rows, scores), (expected_rows, expected_scores) = answers(export), answers(tmp_path / "whole")
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    opened = VectorFolder.open(export)
    vectors = opened.vectors("items")[1]
    assert recall(rows, ExactStore(vectors).search(vectors[:50], k=10).rows) >= 0.99


def test_ivfpq_says_what_it_finds_with_and_without_the_vectors(export: Path) -> None:
    summary = index_export(export, index="ivfpq")
    alone, answered = float(str(summary["recall@10 of the index alone"])), float(str(summary["recall@10"]))
    assert 0.3 < alone < answered
    assert not [name for name in index_export(export, index="hnsw") if "alone" in name]


def test_needs_the_folder_alone(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    export_run(run, out=tmp_path / "v", store="faiss", index="hnsw", device="cpu")
    shutil.rmtree(run)
    (tmp_path / "v" / "notes.txt").write_text("mine")
    before, manifest = contents(tmp_path / "v"), read_json(tmp_path / "v" / "manifest.json")
    summary = index_export(tmp_path / "v", index="flat")
    assert {name: summary[name] for name in ("items", "store", "index", "recall@10")} == {
        "items": NUM_ITEMS,
        "store": "faiss",
        "index": "flat",
        "recall@10": 1.0,
    }
    after, changed = contents(tmp_path / "v"), read_json(tmp_path / "v" / "manifest.json")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"items.faiss", "manifest.json"}
    assert {name for name in changed if changed[name] != manifest[name]} == {"index", "files"}
    assert list(changed) == list(manifest)
    assert changed["files"] == {
        n: file_hash(tmp_path / "v" / n) for n in ("items.parquet", "users.parquet", "items.faiss")
    }
    assert search_vectors(tmp_path / "v", items=["p05"]).rows[0][1] == "p05"


def test_one_index_at_a_time(export: Path) -> None:
    pytest.importorskip("lancedb")
    parquet = {"items.parquet", "users.parquet", "manifest.json"}
    for store, index, added in (
        ("faiss", None, {"items.faiss"}),
        ("lancedb", None, {"items.lance"}),
        ("none", None, set()),
        ("faiss", "ivfpq", {"items.faiss"}),
    ):
        index_export(export, store=store, index=index)  # type: ignore[arg-type]
        assert {path.name for path in export.iterdir()} == parquet | added
        assert search_vectors(export, items=["q5"]).rows[0][1] == "q5"
        manifest = read_json(export / "manifest.json")
        assert {name.split("/")[0] for name in manifest["files"]} == parquet - {"manifest.json"} | added  # type: ignore[attr-defined]
        assert (manifest["store"], manifest["index"] is None) == (store, store == "none")


def test_filters_and_users_over_every_choice(tiny_run: Path, tmp_path: Path) -> None:
    export_run(tiny_run, out=tmp_path / "v", device="cpu")
    asked = [{"items": ["p01"], "where": "colour=red"}, {"user": "u01"}, {"user": "u01", "where": "stock >= 25"}]
    exact = [search_vectors(tmp_path / "v", device="cpu", **question) for question in asked]  # type: ignore[arg-type]
    for store, index in CHOICES:
        if index == "ivfpq":
            continue
        if store == "lancedb":
            pytest.importorskip("lancedb")
        index_export(tmp_path / "v", store=store, index=index)  # type: ignore[arg-type]
        for question, expected in zip(asked, exact, strict=True):
            found = search_vectors(tmp_path / "v", device="cpu", **question)  # type: ignore[arg-type]
            assert [row[1] for row in found.rows] == [row[1] for row in expected.rows]
            assert found.note == expected.note


@pytest.mark.parametrize("where", ["build_index", "hash_index", "write_json"])
def test_a_failure_anywhere_keeps_the_old_index(export: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    index_export(export, index="flat")
    before = contents(export)
    monkeypatch.setattr(module, where, stop(getattr(module, where)))
    with pytest.raises(KeyboardInterrupt):
        index_export(export, index="hnsw")
    assert contents(export) == before
    assert [path.name for path in export.parent.iterdir()] == ["v"]


def stop(function: Callable[..., object]) -> Callable[..., object]:
    """The function does its work, and then the user presses Ctrl-C."""

    def stopped(*arguments: object, **named: object) -> object:
        function(*arguments, **named)
        raise KeyboardInterrupt

    return stopped


def test_a_link_to_an_export(export: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(export, target_is_directory=True)
    index_export(tmp_path / "link", index="flat")
    assert (tmp_path / "link").is_symlink()
    assert (export / "items.faiss").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "v"]


def test_a_disk_without_links(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(module.os, "link", refuse)
    before = contents(export)
    index_export(export, index="flat")
    assert {name: contents(export)[name] for name in before if name.endswith("parquet")} == {
        name: value for name, value in before.items() if name.endswith("parquet")
    }


class TestRefusals:
    def test_no_export(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="a folder of vectors.*mmrec export"):
            index_export(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_vectors_that_changed(self, export: Path) -> None:
        with (export / "items.parquet").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match=r"items\.parquet as it was exported"):
            index_export(export)

    def test_a_manifest_of_an_earlier_version(self, export: Path) -> None:
        manifest = read_json(export / "manifest.json")
        del manifest["temperature"]
        write_json(export / "manifest.json", manifest)
        with pytest.raises(ArtifactError, match="'temperature'.*mmrec export"):
            index_export(export)

    def test_what_cannot_be_built(self, tiny_run: Path, tmp_path: Path) -> None:
        export_run(tiny_run, out=tmp_path / "v", store="faiss", device="cpu")
        before = contents(tmp_path / "v")
        with pytest.raises(RequestError, match="at least 256 vectors.*got 30"):
            index_export(tmp_path / "v", index="ivfpq")
        with pytest.raises(RequestError, match="--index flat beside --store none"):
            index_export(tmp_path / "v", store="none", index="flat")
        assert contents(tmp_path / "v") == before


def test_a_large_catalogue_gets_lists_in_lancedb(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    small = index_export(export, store="lancedb")
    monkeypatch.setattr("mmrec.search.lancedb.EXACT_ROWS", POSTS - 1)
    large = index_export(export, store="lancedb")
    assert (small["index"], large["index"]) == ("exact", "ivf_flat")
    assert (small["recall@10"], float(str(large["recall@10"])) >= 0.99) == (1.0, True)


@pytest.mark.parametrize(
    ("choice", "exact_rows", "kind", "scale"),
    [
        (IndexChoice("faiss", "flat"), POSTS, "flat", 1.0),
        (IndexChoice("faiss"), POSTS, "hnsw", 0.1 / 4),
        (IndexChoice("faiss", "ivfpq"), POSTS, "ivfpq", 0.1 / 4),
        (IndexChoice("lancedb"), POSTS, "exact", 1.0),
        (IndexChoice("lancedb"), POSTS - 1, "ivf_flat", 0.1 / 4),
    ],
)
def test_a_large_bias_is_smaller_in_what_it_would_mislead(
    choice: IndexChoice, exact_rows: int, kind: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choice.store == "lancedb":
        pytest.importorskip("lancedb")
        monkeypatch.setattr("mmrec.search.lancedb.EXACT_ROWS", exact_rows)
    vectors = np.random.default_rng(0).normal(size=(POSTS, 5)).astype(np.float32)
    vectors[:, :-1] /= np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    vectors[:, -1] = np.linspace(-4, 3, POSTS)
    for temperature, expected in ((0.05, scale), (None, 1.0)):
        folder = tmp_path / str(temperature)
        folder.mkdir()
        ids = [f"q{row}" for row in range(POSTS)]
        written = WrittenVectors(vectors, VectorFormat())
        write_vectors(folder / "items.parquet", ids, written, id_column="item_id")
        about = build_index(folder, choice, temperature=temperature)
        assert about is not None
        assert (about["kind"], about["last_scale"]) == (kind, pytest.approx(expected))
        assert float(str(about["recall@10"])) >= 0.98
