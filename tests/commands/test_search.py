"""Search: a question in words, pictures, items, a user or a mix finds what the vectors say, and refuses what it must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmrec import Post
from mmrec.commands.export import export_run
from mmrec.commands.index import index_export
from mmrec.commands.score import recommend_file
from mmrec.commands.search import Found, search_vectors
from mmrec.errors import ArtifactError, RequestError
from mmrec.inference.export import VectorFolder
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.inference.tables import read_rows
from mmrec.search.faiss import FaissStore
from mmrec.storage import read_json, write_array, write_json
from tests.feeds import write_feed
from tests.tiny_run import (
    CAPTION_ONLY,
    NUM_ITEMS,
    PICTURE_ONLY,
    TinyFeed,
    draw,
    interactions_table,
    items_table,
    prepare_tiny,
    write_raw,
)

CLOSE = 1e-4


@pytest.fixture(scope="module")
def exported(content_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "content"
    export_run(content_run, out=out, device="cpu")
    return out


def search(vectors: Path, **asked: object) -> Found:
    return search_vectors(vectors, device="cpu", **asked)  # type: ignore[arg-type]


def ids(found: Found) -> list[object]:
    return [row[found.columns.index("item_id")] for row in found.rows]


def top(found: Found) -> tuple[object, float]:
    return ids(found)[0], float(str(found.rows[0][found.columns.index("score")]))


class TestQuestions:
    def test_the_words_of_a_post(self, exported: Path, tiny_feed: TinyFeed) -> None:
        found = search(exported, text=tiny_feed.caption(CAPTION_ONLY))
        assert top(found) == (CAPTION_ONLY, pytest.approx(1, abs=CLOSE))
        assert len(found.rows) == 10
        assert [row[0] for row in found.rows] == list(range(1, 11))
        assert found.note == ""

    def test_the_picture_of_a_post(self, exported: Path, tiny_feed: TinyFeed) -> None:
        found = search(exported, images=[tiny_feed.image(PICTURE_ONLY)])
        assert top(found) == (PICTURE_ONLY, pytest.approx(1, abs=CLOSE))

    def test_words_and_picture_are_one_post(self, exported: Path, tiny_feed: TinyFeed) -> None:
        found = search(exported, text=tiny_feed.caption("p07"), images=[tiny_feed.image("p07")])
        assert top(found) == ("p07", pytest.approx(1, abs=CLOSE))

    def test_an_item(self, exported: Path) -> None:
        found = search(exported, items=["p11"], k=NUM_ITEMS)
        assert top(found) == ("p11", pytest.approx(1, abs=CLOSE))
        item_ids, vectors = VectorFolder.open(exported).vectors("items")
        content = vectors[:, :16]
        similar = content @ content[11] / np.linalg.norm(content[11])
        assert ids(found) == item_ids[np.argsort(-similar, kind="stable")].tolist()

    def test_a_user_gets_what_would_be_recommended(self, exported: Path, content_recommender: Recommender) -> None:
        found = search(exported, user="u08", k=NUM_ITEMS)
        expected = content_recommender.recommend(user_id="u08", k=NUM_ITEMS)
        assert ids(found) == expected["item_id"].tolist()
        vector = content_recommender.scoring.users([Request("u08", (), user_id="u08")]).vectors[0, 0].numpy()
        scores = np.array([float(str(row[2])) for row in found.rows]) * np.linalg.norm(vector[:16])
        # The scores shown are rounded to four digits.
        np.testing.assert_allclose(scores, expected["score"], atol=5.1e-5 * np.linalg.norm(vector[:16]) + 1e-5)

    def test_a_mix_lies_between(self, exported: Path, tiny_feed: TinyFeed, content_recommender: Recommender) -> None:
        found = search(exported, items=["p04", "p18"], text="a green dress", k=NUM_ITEMS)
        _, vectors = VectorFolder.open(exported).vectors("items")
        text = content_recommender.embed([Post("a green dress")])[0]
        units = [v[:16] / np.linalg.norm(v[:16]) for v in (vectors[4], vectors[18], text)]
        expected = vectors[:, :16] @ np.mean(units, axis=0)
        order = np.argsort(-expected, kind="stable")
        assert ids(found) == [f"p{row:02}" for row in order]
        assert float(str(found.rows[0][2])) == pytest.approx(expected.max(), abs=CLOSE)

    def test_user_and_words_share_the_weight(self, exported: Path) -> None:
        found = search(exported, user="u08", text="a green dress", k=NUM_ITEMS)
        both = {str(row[1]): float(str(row[2])) for row in found.rows}
        halves = [
            {str(row[1]): float(str(row[2])) for row in search(exported, k=NUM_ITEMS, **half).rows}  # type: ignore[arg-type]
            for half in ({"user": "u08"}, {"text": "a green dress"})
        ]
        for item_id, score in both.items():
            assert score == pytest.approx((halves[0][item_id] + halves[1][item_id]) / 2, abs=2 * CLOSE)


class TestAnswers:
    def test_captions_and_attributes_are_shown(self, exported: Path, tiny_feed: TinyFeed) -> None:
        found = search(exported, items=[PICTURE_ONLY], k=NUM_ITEMS)
        assert found.columns == ("rank", "item_id", "score", "caption", "colour", "price", "stock", "tags")
        shown = {str(row[1]): row for row in found.rows}
        assert shown[PICTURE_ONLY][3] == ""
        assert shown["p07"][3:6] == (tiny_feed.caption("p07"), "green", "10.5")
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["found"][0]["item_id"] == PICTURE_ONLY

    def test_conditions(self, exported: Path) -> None:
        found = search(exported, text="a scarf", where="colour=red and price < 20", k=5)
        assert sorted(map(str, ids(found))) == ["p00", "p03", "p06", "p09", "p12"]
        assert found.note == ""
        found = search(exported, text="a scarf", where="colour=red and price < 20", k=6)
        assert len(found.rows) == 5
        assert found.note == "only 5 of 30 posts meet the conditions, 6 were asked for"
        found = search(exported, text="a scarf", where="colour=purple")
        assert (found.rows, found.note) == ((), "only 0 of 30 posts meet the conditions, 10 were asked for")

    def test_more_than_there_is(self, exported: Path) -> None:
        found = search(exported, items=["p00"], k=31)
        assert len(found.rows) == 30
        assert found.note == "only 30 posts were exported, 31 were asked for"

    @pytest.mark.parametrize(("store", "index"), [("faiss", "flat"), ("faiss", "hnsw"), ("lancedb", None)])
    def test_an_index_finds_the_same(
        self, content_run: Path, exported: Path, tmp_path: Path, store: str, index: str | None
    ) -> None:
        if store == "lancedb":
            pytest.importorskip("lancedb")
        export_run(content_run, out=tmp_path / "v", store=store, index=index, device="cpu")  # type: ignore[arg-type]
        for asked in ({"text": "a red scarf"}, {"user": "u01"}, {"text": "silk", "where": "stock >= 25", "k": 40}):
            found, exact = search(tmp_path / "v", **asked), search(exported, **asked)
            assert ids(found) == ids(exact)
            assert found.note == exact.note

    @pytest.mark.parametrize(
        "options", [{"normalise": True}, {"dim": 8}, {"normalise": True, "dim": 8}, {"precision": "int8"}]
    )
    def test_every_format_is_searched(
        self, content_run: Path, tmp_path: Path, tiny_feed: TinyFeed, options: dict[str, object]
    ) -> None:
        export_run(content_run, out=tmp_path / "v", store="faiss", device="cpu", **options)  # type: ignore[arg-type]
        found = search(tmp_path / "v", text=tiny_feed.caption("p07"), images=[tiny_feed.image("p07")], user="u01", k=30)
        assert len(found.rows) == 30
        for asked in ({"items": ["p07"]}, {"text": tiny_feed.caption("p07"), "images": [tiny_feed.image("p07")]}):
            assert top(search(tmp_path / "v", **asked)) == ("p07", pytest.approx(1, abs=0.01))


class TestSmallerVectors:
    """Candidates come from what was exported; their scores are those of the run, where it is at hand."""

    @pytest.fixture(params=[("none", None), ("faiss", "hnsw")], ids=["exact", "hnsw"])
    def small(self, request: pytest.FixtureRequest, content_run: Path, tmp_path: Path) -> Path:
        store, index = request.param
        export_run(content_run, out=tmp_path / "v", store=store, index=index, dim=4, precision="int8", device="cpu")
        return tmp_path / "v"

    @pytest.mark.parametrize(
        "asked",
        [
            {"user": "u08"},
            {"text": "a green dress"},
            {"text": "a green dress", "user": "u03", "items": ["p11"]},
            {"text": "silk", "where": "stock >= 12"},
        ],
    )
    def test_search_as_the_full_export(self, exported: Path, small: Path, asked: dict[str, object]) -> None:
        # Thirty posts are fewer than are scored again.
        found, exact = search(small, **asked), search(exported, **asked)
        assert found == exact

    def test_items_alone_need_no_run_and_the_note_says_so(self, exported: Path, small: Path, content_run: Path) -> None:
        found = search(small, items=["p11"], k=30)
        assert found.note == "scores are those of the exported vectors (dim 4, int8)"
        item_ids, vectors = VectorFolder.open(small).vectors("items")
        content = vectors[:, :4]
        similar = content @ content[11] / np.linalg.norm(content[11])
        order = np.argsort(-similar, kind="stable")
        assert ids(found) == item_ids[order].tolist()
        np.testing.assert_allclose([float(str(row[2])) for row in found.rows], similar[order], atol=CLOSE)
        assert ids(found) != ids(search(exported, items=["p11"], k=30))
        assert search(small, items=["p11"], k=30, run=content_run) == search(exported, items=["p11"], k=30)

    def test_another_index_of_them_finds_the_same(self, exported: Path, small: Path) -> None:
        index_export(small, store="faiss", index="flat")
        assert VectorFolder.open(small).manifest["index"]["recall@10"] == 1.0  # type: ignore[index]
        assert search(small, user="u08") == search(exported, user="u08")
        index_export(small, store="none")
        assert search(small, user="u08") == search(exported, user="u08")

    def test_another_feed_is_not_asked_for_scores(self, small: Path, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        items = items_table()
        items["caption"] = "a red scarf"
        feed = prepare_tiny(write_raw(tmp_path / "raw", items, interactions_table()), tmp_path / "prepared")
        found = search(small, user="u08", feed=feed.prepared)
        assert found.note == "scores are those of the exported vectors (dim 4, int8)"

    def test_arrays_of_other_items_are_refused(self, small: Path) -> None:
        write_array(small / "items.values.npy", np.zeros((29, 4), np.int8))
        with pytest.raises(ArtifactError, match=r"expected 30 vectors, got 29, in .*items\.values\.npy"):
            search(small, items=["p11"])
        (small / "items.values.npy").unlink()
        with pytest.raises(ArtifactError, match=r"an array file, got no file"):
            search(small, items=["p11"])


class TestRefusals:
    def test_nothing_asked(self, exported: Path) -> None:
        for nothing in ({}, {"text": "  "}, {"text": ""}):
            with pytest.raises(RequestError, match="expected a"):
                search(exported, **nothing)

    def test_unknown_names(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="exported item.*'p99'.*--item"):
            search(exported, items=["p01", "p99"])
        with pytest.raises(RequestError, match="'u99'"):
            search(exported, user="u99")
        with pytest.raises(RequestError, match=r"no\.png"):
            search(exported, images=[tmp_path / "no.png"])
        with pytest.raises(RequestError, match="'color'.*did you mean 'colour'"):
            search(exported, items=["p01"], where="color=red")
        with pytest.raises(ArtifactError, match="mmrec export"):
            search(tmp_path, items=["p01"])

    def test_vectors_of_another_model(self, exported: Path, tiny_run: Path) -> None:
        with pytest.raises(ArtifactError, match="Export again with this run"):
            search(exported, text="red", run=tiny_run)
        with pytest.raises(ArtifactError, match="Export again with this run"):
            search(exported, user="u01", run=tiny_run)

    def test_a_run_that_is_gone(self, content_run: Path, tmp_path: Path) -> None:
        run = shutil.copytree(content_run, tmp_path / "run")
        export_run(run, out=tmp_path / "v", device="cpu")
        search(tmp_path / "v", text="red")
        shutil.rmtree(run)
        assert ids(search(tmp_path / "v", items=["p05"]))[0] == "p05", "items need no run"
        with pytest.raises(ArtifactError, match="a run folder"):
            search(tmp_path / "v", text="red")
        assert len(search(tmp_path / "v", text="red", run=content_run).rows) == 10


class TestStores:
    """What the manifest names is opened, or refused; never quietly something else."""

    @pytest.fixture
    def indexed(self, content_run: Path, tmp_path: Path) -> Path:
        export_run(content_run, out=tmp_path / "v", store="faiss", device="cpu")
        return tmp_path / "v"

    @pytest.mark.parametrize(
        ("store", "index", "got"),
        [
            ("milvus", {"kind": "hnsw"}, r"milvus \(hnsw\)"),
            ("faiss", {"kind": "scann"}, r"faiss \(scann\)"),
            ("lancedb", {"kind": "hnsw"}, r"lancedb \(hnsw\)"),
            ("faiss", None, r"faiss \(None\)"),
            (None, None, r"None \(None\)"),
        ],
    )
    def test_unknown_ones(self, indexed: Path, store: object, index: object, got: str) -> None:
        manifest = read_json(indexed / "manifest.json") | {"store": store, "index": index}
        write_json(indexed / "manifest.json", manifest)
        with pytest.raises(ArtifactError, match=rf"none, faiss .*, lancedb .* got {got}.*mmrec index"):
            search(indexed, items=["p01"])

    def test_an_index_that_is_gone(self, indexed: Path) -> None:
        (indexed / "items.faiss").unlink()
        with pytest.raises(ArtifactError, match="an index file, got no file.*mmrec index"):
            search(indexed, items=["p01"])

    def test_an_index_of_other_vectors(self, indexed: Path) -> None:
        FaissStore.build(VectorFolder.open(indexed).vectors("items")[1][1:], kind="hnsw").save(indexed / "items.faiss")
        with pytest.raises(ArtifactError, match="index of 30 vectors of width 17, got one of 29 vectors.*mmrec index"):
            search(indexed, items=["p01"])


def test_users_of_the_exported_feed_are_asked_not_those_of_training(
    content_run: Path, tiny_feed: TinyFeed, tmp_path: Path
) -> None:
    other = interactions_table()
    other["user_id"] = "new-" + other["user_id"]
    feed = prepare_tiny(write_raw(tmp_path / "raw", items_table(), other), tmp_path / "prepared")
    export_run(content_run, out=tmp_path / "v", feed=feed.prepared, device="cpu")
    assert len(search(tmp_path / "v", user="new-u08").rows) == 10
    with pytest.raises(RequestError, match="'u08'"):
        search(tmp_path / "v", user="u08")
    assert len(search(tmp_path / "v", user="u08", feed=tiny_feed.prepared).rows) == 10


def test_a_drawn_picture_and_new_words_find_something(exported: Path, tmp_path: Path) -> None:
    draw(13, second=True).save(tmp_path / "new.webp")
    assert len(search(exported, text="a striped emoji 😀", images=[tmp_path / "new.webp"]).rows) == 10


@pytest.mark.parametrize("large", [10**16 + 1, 2**63 + 1, 10**30 + 1])
def test_integer_ids_come_back_as_they_went_in(tiny_run: Path, tmp_path: Path, large: int) -> None:
    feed = write_feed(
        tmp_path / "feed",
        interactions=[("1", "7", 1), ("1", str(large), 2)],
        captions={"7": "red scarf", str(large): "blue scarf"},
        split=None,
    )
    types = {"item_id_type": "integer", "user_id_type": "integer"}
    write_json(feed / "manifest.json", read_json(feed / "manifest.json") | types)
    export_run(tiny_run, out=tmp_path / "v", feed=feed, device="cpu")
    found = json.loads(json.dumps(search(tmp_path / "v", items=[str(large)], user="1").to_dict()))
    assert sorted(entry["item_id"] for entry in found["found"]) == [7, large]
    assert export_run(tiny_run, out=tmp_path / "v", feed=feed, only_new=True, device="cpu")["items encoded"] == 0
    for suffix in (".parquet", ".jsonl"):
        recommend_file(tiny_run, out=tmp_path / f"top{suffix}", feed=feed, device="cpu")
        assert sorted(int(str(row["item_id"])) for row in read_rows(tmp_path / f"top{suffix}")) == [7, large]
        assert not any(isinstance(row["item_id"], str) for row in read_rows(tmp_path / f"top{suffix}"))
