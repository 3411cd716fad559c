"""Exports: whole or as they were, equal however they came about, and in agreement with scores."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec.commands import export as module
from mmrec.commands.export import export_run
from mmrec.commands.export_choices import compare_choices
from mmrec.commands.train import train_run
from mmrec.config import validate
from mmrec.errors import ArtifactError, MissingExtraError, RequestError
from mmrec.inference.export import VectorFolder
from mmrec.inference.recommender import Recommender
from mmrec.storage import file_hash, read_json
from tests.tiny_run import (
    NUM_ITEMS,
    NUM_USERS,
    PICTURE_ONLY,
    TinyEncoders,
    TinyFeed,
    changed,
    draw,
    interactions_table,
    items_table,
    prepare_tiny,
    tiny_config,
    write_raw,
)


@pytest.fixture(scope="module")
def whole(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "whole"
    export_run(tiny_run, out=out, store="faiss", index="flat", device="cpu")
    return out


def plain(value: object) -> object:
    """A cell that can be compared: lists for arrays, None for what is missing."""
    if isinstance(value, np.ndarray | list):
        return list(value)
    return None if pd.isna(value) else value  # type: ignore[call-overload]


def vectors(folder: Path, side: str = "items") -> tuple[list[str], np.ndarray]:
    ids, found = VectorFolder.open(folder).vectors(side)  # type: ignore[arg-type]
    return ids.tolist(), found


class TestWhatIsWritten:
    def test_files_manifest_and_hashes(self, whole: Path, recommender: Recommender) -> None:
        folder = VectorFolder.open(whole)
        assert sorted(path.name for path in whole.iterdir()) == [
            "items.faiss",
            "items.parquet",
            "manifest.json",
            "users.parquet",
        ]
        manifest = folder.manifest
        names = {"items.faiss", "items.parquet", "users.parquet"}
        assert manifest["files"] == {name: file_hash(whole / name) for name in names}
        assert (manifest["items"], manifest["users"], manifest["dim"]) == (NUM_ITEMS, NUM_USERS, 17)
        assert manifest["metric"] == "inner_product"
        assert manifest["model_hash"] == recommender.model_hash
        assert manifest["feed_hash"] == recommender.assembly.catalogue.feed_hash

    def test_items_with_captions_and_attributes(self, whole: Path, recommender: Recommender) -> None:
        ids, found = vectors(whole)
        table = VectorFolder.open(whole).table()
        assert ids == table["item_id"].tolist() == [f"p{row:02}" for row in range(NUM_ITEMS)]
        np.testing.assert_array_equal(found, recommender.item_embeddings())
        given = items_table().set_index("item_id")
        assert table.set_index("item_id")["caption"].dropna().to_dict() == given["caption"].dropna().to_dict()
        assert table["caption"].isna().tolist() == [item_id == PICTURE_ONLY for item_id in ids]
        assert table["colour"].tolist() == given["colour"].tolist()
        assert pd.to_numeric(table["price"]).tolist() == given["price"].tolist()

    def test_search_and_score_agree(self, whole: Path, recommender: Recommender) -> None:
        ids, items = vectors(whole)
        user_ids, users = vectors(whole, "users")
        assert user_ids == [f"u{row:02}" for row in range(NUM_USERS)]
        for user_id in ("u00", "u13"):
            scored = recommender.score(user_id=user_id, candidates=ids)["score"]
            product = items @ users[user_ids.index(user_id)]
            table = interactions_table()
            had = table[table["user_id"] == user_id]["item_id"][-8:]  # history_length of the tiny run
            product = product + np.isin(ids, had) * recommender.repeat_bonus
            np.testing.assert_allclose(product, scored, atol=1e-5, rtol=1e-6)

    def test_without_users_or_index(self, tiny_run: Path, tmp_path: Path) -> None:
        summary = export_run(tiny_run, out=tmp_path / "v", users=False, device="cpu")
        assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["items.parquet", "manifest.json"]
        assert read_json(tmp_path / "v" / "manifest.json")["users"] == 0
        assert read_json(tmp_path / "v" / "manifest.json")["index"] is None
        assert not [key for key in summary if "recall" in key]


class TestFormats:
    def test_cut_and_unit_length(self, tiny_run: Path, whole: Path, tmp_path: Path) -> None:
        export_run(tiny_run, out=tmp_path / "cut", dim=5, device="cpu")
        cut, full = vectors(tmp_path / "cut")[1], vectors(whole)[1]
        np.testing.assert_array_equal(cut[:, -1], full[:, -1])
        lengths = np.linalg.norm(full[:, :5], axis=1, keepdims=True)
        np.testing.assert_allclose(cut[:, :-1], full[:, :5] / lengths, atol=1e-6)
        users, whole_users = vectors(tmp_path / "cut", "users")[1], vectors(whole, "users")[1]
        np.testing.assert_array_equal(users[:, -1], 1)
        for side in (users, whole_users):
            temperature = float(str(read_json(whole / "manifest.json")["temperature"]))
            np.testing.assert_allclose(np.linalg.norm(side[:, :-1], axis=1), 1 / temperature, rtol=1e-5)
        export_run(tiny_run, out=tmp_path / "unit", dim=5, normalise=True, device="cpu")
        _, units = vectors(tmp_path / "unit")
        assert units.shape == (NUM_ITEMS, 5)
        np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-6)
        first = vectors(whole)[1][:, :5]
        np.testing.assert_allclose(units, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6)

    def test_more_dimensions_than_there_are(self, tiny_run: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="at most 16 dimensions, got 17"):
            export_run(tiny_run, out=tmp_path / "v", dim=17, device="cpu")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("precision", ["float16", "int8"])
    def test_narrow_numbers(self, tiny_run: Path, whole: Path, tmp_path: Path, precision: str) -> None:
        export_run(tiny_run, out=tmp_path / "v", precision=precision, store="faiss", device="cpu")  # type: ignore[arg-type]
        exact, narrow = vectors(whole)[1], vectors(tmp_path / "v")[1]
        part = exact if precision == "float16" else exact[:, :-1]
        worst = np.abs(part).max(axis=1, keepdims=True) / (2048 if precision == "float16" else 253)
        assert np.abs(narrow - exact).max() > 0
        assert (np.abs(narrow - exact) <= worst).all()
        mapped = VectorFolder.open(tmp_path / "v").items()[1]
        np.testing.assert_array_equal(mapped[:], narrow)  # type: ignore[index]
        files = read_json(tmp_path / "v" / "manifest.json")["files"]
        assert {path.name for path in (tmp_path / "v").glob("*.npy")} == {n for n in files if n.endswith(".npy")}  # type: ignore[attr-defined]

    def test_smaller_vectors_say_what_they_lose(self, tiny_run: Path, tmp_path: Path) -> None:
        summary = export_run(tiny_run, out=tmp_path / "v", dim=4, precision="int8", device="cpu")
        assert summary["bytes a post"] == 4 + 4 + 4
        manifest = read_json(tmp_path / "v" / "manifest.json")
        lost = manifest["against_full"]
        assert isinstance(lost, dict)
        assert {key: value for key, value in summary.items() if key.startswith("recall")} == lost
        assert 0 < lost["recall@10, users"] < 1
        # A hundred and more of thirty posts are all of them.
        assert lost["recall@100, posts"] == lost["recall@10, users, rescored"] == 1
        assert (manifest["bytes_per_item"], manifest["dim"]) == (12, 5)

    def test_vectors_that_lose_nothing_are_not_measured(self, whole: Path) -> None:
        manifest = read_json(whole / "manifest.json")
        assert (manifest["against_full"], manifest["bytes_per_item"]) == (None, 4 * 17)

    def test_recall_of_an_index(self, tiny_run: Path, tmp_path: Path) -> None:
        flat = export_run(tiny_run, out=tmp_path / "flat", store="faiss", index="flat", device="cpu")
        graph = export_run(tiny_run, out=tmp_path / "graph", store="faiss", index="hnsw", device="cpu")
        assert flat["recall@10"] == 1.0
        # Thirty items are fewer than an HNSW search looks at.
        assert graph["recall@10"] == 1.0
        index = read_json(tmp_path / "graph" / "manifest.json")["index"]
        assert isinstance(index, dict)
        assert (index["kind"], index["recall@10"]) == ("hnsw", 1.0)
        assert (flat["index"], graph["index"]) == ("flat", "hnsw")

    def test_an_index_that_cannot_be_built_is_refused_before_anything_is_encoded(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Recommender, "item_embeddings", None)
        with pytest.raises(RequestError, match="at least 256 vectors.*got 30.*hnsw or flat"):
            export_run(tiny_run, out=tmp_path / "v", store="faiss", index="ivfpq", device="cpu")
        for store in ("none", "lancedb"):
            with pytest.raises(RequestError, match=f"--store faiss, got --index flat beside --store {store}"):
                export_run(tiny_run, out=tmp_path / "v", store=store, index="flat", device="cpu")  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "lancedb", None)
        monkeypatch.delitem(sys.modules, "mmrec.search.lancedb", raising=False)
        with pytest.raises(MissingExtraError, match=r"mmrec\[lancedb\]"):
            export_run(tiny_run, out=tmp_path / "v", store="lancedb", device="cpu")
        assert not list(tmp_path.iterdir())

    def test_a_table_of_lancedb(self, tiny_run: Path, whole: Path, tmp_path: Path) -> None:
        lancedb = pytest.importorskip("lancedb")
        summary = export_run(tiny_run, out=tmp_path / "v", store="lancedb", device="cpu")
        assert (summary["index"], summary["recall@10"]) == ("exact", 1.0)
        table = lancedb.connect(tmp_path / "v").open_table("items").to_pandas()
        expected = VectorFolder.open(whole).table().drop(columns="content_hash")
        pd.testing.assert_frame_equal(table[list(expected)].map(plain), expected.map(plain), check_dtype=False)
        np.testing.assert_array_equal(np.stack(table["vector"]), vectors(whole)[1])
        manifest = read_json(tmp_path / "v" / "manifest.json")
        files = {p.relative_to(tmp_path / "v").as_posix(): p for p in (tmp_path / "v").rglob("*") if p.is_file()}
        del files["manifest.json"]
        assert len(files) > 3
        assert manifest["files"] == {name: file_hash(path) for name, path in files.items()}


class TestChoices:
    def test_say_what_each_export_would(self, tiny_run: Path, tmp_path: Path) -> None:
        rows = compare_choices(tiny_run, dim=5, device="cpu")
        assert [(row["dim"], row["precision"]) for row in rows] == [
            (dim, precision) for dim in (16, 8, 5, 4) for precision in ("float32", "float16", "int8")
        ]
        assert [row["trained"] for row in rows] == ["yes"] * 3 + ["no"] * 9
        assert {value for key, value in rows[0].items() if key.startswith("recall")} == {1.0}
        assert [row["bytes a post"] for row in rows[:3]] == [68, 34, 24]
        summary = export_run(tiny_run, out=tmp_path / "v", dim=5, precision="int8", device="cpu")
        row = next(row for row in rows if (row["dim"], row["precision"]) == (5, "int8"))
        assert {key: row[key] for key in row if key.startswith("recall")} == {
            key: summary[key] for key in summary if key.startswith("recall")
        }
        assert row["bytes a post"] == summary["bytes a post"]

    def test_more_dimensions_than_there_are(self, tiny_run: Path) -> None:
        with pytest.raises(RequestError, match="at most 16 dimensions, got 17"):
            compare_choices(tiny_run, dim=17, device="cpu")


class TestOnlyNew:
    @pytest.fixture(scope="class")
    def grown(self, tmp_path_factory: pytest.TempPathFactory) -> TinyFeed:
        """One caption and one picture changed, one item gone, two new ones that nobody has chosen."""
        root = tmp_path_factory.mktemp("grown")
        items = items_table()
        items.loc[items["item_id"] == "p08", "caption"] = "a green silk scarf"
        items = items[items["item_id"] != "p29"]
        new = [
            {"item_id": "n0", "caption": "a large red dress", "image": ["images/p00.png"], "colour": "red", "tags": []},
            {"item_id": "n1", "caption": items["caption"][1], "image": [], "colour": "blue", "tags": []},
        ]
        interactions = interactions_table()
        raw = write_raw(
            root / "raw", pd.concat([items, pd.DataFrame(new)]), interactions[interactions["item_id"] != "p29"]
        )
        draw(27, second=True).save(raw / "images" / "p09.png")
        return prepare_tiny(raw, root / "prepared")

    def export(self, run: Path, out: Path, feed: TinyFeed, **options: object) -> dict[str, object]:
        return export_run(run, out=out, feed=feed.prepared, device="cpu", **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("options", [{}, {"precision": "int8"}, {"normalise": True, "dim": 4}, {"dim": 4}])
    @pytest.mark.parametrize("keep_table", [True, False])
    def test_encodes_what_changed_and_equals_a_whole_export(
        self,
        tiny_run: Path,
        tiny_feed: TinyFeed,
        grown: TinyFeed,
        tmp_path: Path,
        options: dict[str, object],
        keep_table: bool,
    ) -> None:
        run = shutil.copytree(tiny_run, tmp_path / "run")
        shutil.rmtree(run / "embeddings", ignore_errors=True)
        assert self.export(run, tmp_path / "v", tiny_feed, **options)["items encoded"] == NUM_ITEMS
        if not keep_table:
            shutil.rmtree(run / "embeddings")
        summary = self.export(run, tmp_path / "v", grown, only_new=True, **options)
        lossless = not options
        assert summary["items encoded"] == (4 if keep_table or lossless else NUM_ITEMS + 1)
        shutil.rmtree(run / "embeddings")
        self.export(run, tmp_path / "full", grown, **options)
        for side in ("items", "users"):
            (ids, some), (expected_ids, every) = vectors(tmp_path / "v", side), vectors(tmp_path / "full", side)
            assert ids == expected_ids
            np.testing.assert_allclose(some, every, atol=1e-5 if lossless else 0.02, rtol=0)
        assert (ids := vectors(tmp_path / "v")[0])[-2:] == ["n0", "n1"]
        assert "p29" not in ids

    def test_nothing_new(self, tiny_run: Path, tmp_path: Path) -> None:
        export_run(tiny_run, out=tmp_path / "v", device="cpu")
        before = vectors(tmp_path / "v")[1]
        assert export_run(tiny_run, out=tmp_path / "v", only_new=True, device="cpu")["items encoded"] == 0
        np.testing.assert_array_equal(vectors(tmp_path / "v")[1], before)

    def test_vectors_that_changed_on_disk_are_not_carried_over(self, tiny_run: Path, tmp_path: Path) -> None:
        out = tmp_path / "v"
        export_run(tiny_run, out=out, device="cpu")
        table = pd.read_parquet(out / "items.parquet")
        table["vector"] = 2 * table["vector"]
        table.to_parquet(out / "items.parquet")
        with pytest.raises(ArtifactError, match=r"items\.parquet as it was exported, got a missing or changed file"):
            export_run(tiny_run, out=out, only_new=True, device="cpu")
        export_run(tiny_run, out=out, device="cpu")
        VectorFolder.open(out).verify("items.parquet")

    def test_without_an_export_all_is_new(self, tiny_run: Path, tmp_path: Path) -> None:
        run = shutil.copytree(tiny_run, tmp_path / "run")
        shutil.rmtree(run / "embeddings", ignore_errors=True)
        assert export_run(run, out=tmp_path / "v", only_new=True, device="cpu")["items encoded"] == NUM_ITEMS

    def test_another_model_or_format_is_refused(
        self, tiny_run: Path, content_run: Path, tmp_path: Path, recommender: Recommender
    ) -> None:
        out = tmp_path / "v"
        export_run(content_run, out=out, device="cpu")
        before = (out / "items.parquet").read_bytes()
        with pytest.raises(ArtifactError, match=f"vectors of the model {recommender.model_hash[:12]}"):
            export_run(tiny_run, out=out, only_new=True, device="cpu")
        with pytest.raises(ArtifactError, match=r"float16.*got.*float32.*--only-new"):
            export_run(content_run, out=out, only_new=True, precision="float16", device="cpu")
        assert (out / "items.parquet").read_bytes() == before


class TestWholeOrAsBefore:
    @pytest.mark.parametrize(
        "where", ["_write_side", "_write_users", "build_index", "file_hash", "hash_index", "write_json"]
    )
    def test_a_failure_anywhere_keeps_the_old_export(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        out = tmp_path / "v"
        export_run(tiny_run, out=out, dim=3, store="faiss", device="cpu")
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        monkeypatch.setattr(module, where, stop(getattr(module, where)))
        with pytest.raises(KeyboardInterrupt):
            export_run(tiny_run, out=out, store="faiss", device="cpu")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["v"]

    def test_a_failure_leaves_nothing_where_there_was_nothing(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_write_users", stop(module._write_users))
        with pytest.raises(KeyboardInterrupt):
            export_run(tiny_run, out=tmp_path / "v", device="cpu")
        assert not list(tmp_path.iterdir())

    def test_a_folder_of_something_else_is_never_replaced(
        self, tiny_run: Path, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "mine.jpg").write_bytes(b"dear")
        (tmp_path / "file").write_bytes(b"dear")
        for precious in (
            tmp_path / "photos",
            tmp_path / "file",
            tiny_run,
            shutil.copytree(tiny_feed.prepared, tmp_path / "f"),
        ):
            names = sorted(path.name for path in precious.parent.rglob("*"))
            with pytest.raises(ArtifactError, match="got one that holds something else"):
                export_run(tiny_run, out=precious, device="cpu")
            assert sorted(path.name for path in precious.parent.rglob("*")) == names
        (tmp_path / "empty").mkdir()
        export_run(tiny_run, out=tmp_path / "empty", device="cpu")
        VectorFolder.open(tmp_path / "empty").verify("items.parquet")


def stop(function: Callable[..., object]) -> Callable[..., object]:
    """The function does its work, and then the user presses Ctrl-C."""

    def stopped(*arguments: object, **named: object) -> object:
        function(*arguments, **named)
        raise KeyboardInterrupt

    return stopped


def test_vectors_made_elsewhere_count_as_content(
    tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path
) -> None:
    given = pd.DataFrame({"item_id": [f"p{row:02}" for row in range(25)]})
    given["vector"] = list(np.random.default_rng(0).normal(size=(25, 5)).astype(np.float32))
    given.to_parquet(tmp_path / "given.parquet")
    base = tiny_config(tiny_encoders)
    encoders = {
        "text": base.model_dump(mode="json")["encoders"]["text"],
        "shop": {"kind": "precomputed", "path": str(tmp_path / "given.parquet")},
    }
    values = changed(base, train={"epochs": 1}).model_dump(mode="json") | {"encoders": encoders}
    train_run(validate(values, where="test"), feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu")
    assert export_run(tmp_path / "run", out=tmp_path / "v", device="cpu")["items encoded"] == NUM_ITEMS
    before = vectors(tmp_path / "v")[1]
    given.at[7, "vector"] = np.ones(5, np.float32)
    given.to_parquet(tmp_path / "given.parquet")
    assert export_run(tmp_path / "run", out=tmp_path / "v", only_new=True, device="cpu")["items encoded"] == 1
    after = vectors(tmp_path / "v")[1]
    different = np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-4)
    assert different.tolist() == [7]
