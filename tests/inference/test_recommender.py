"""The façade: what it loads, what it refuses, and that its vectors belong to one model and one feed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmrec import Post
from mmrec.commands.train import train_run
from mmrec.errors import ArtifactError, ConfigError, FeedError, RequestError
from mmrec.inference.embedding_table import EmbeddingTable, filling, item_keys, reuse, saved_tables
from mmrec.inference.recommender import Recommender
from mmrec.storage import read_json, write_json
from tests.feeds import write_feed
from tests.tiny_run import NUM_ITEMS, TinyEncoders, TinyFeed, draw, tiny_config


def load(run: Path, **options: object) -> Recommender:
    return Recommender.load(run, device="cpu", **options)  # type: ignore[arg-type]


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed, without vectors of its catalogue."""
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))


class TestLoad:
    def test_the_same_weights_have_the_same_hash(
        self, tiny_run: Path, content_run: Path, recommender: Recommender
    ) -> None:
        assert load(tiny_run).model_hash == recommender.model_hash
        assert load(content_run).model_hash != recommender.model_hash

    def test_the_best_checkpoint_not_the_last(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        train_run(tiny_config(tiny_encoders), feed=tiny_feed.prepared, out=run, device="cpu")
        hashes = set()
        for number in (1, 2):
            best = {"checkpoint": f"epoch-000{number}-batch-000000", "metric": "ndcg@10", "value": 0.5}
            write_json(run / "checkpoints" / "best.json", best)
            hashes.add(load(run).model_hash)
        assert len(hashes) == 2

    def test_folders_that_are_no_runs(self, tmp_path: Path, tiny_feed: TinyFeed) -> None:
        for folder in (tmp_path, tmp_path / "nowhere", tiny_feed.prepared):
            with pytest.raises(ArtifactError, match=r"a run folder, got no run\.json.*mmrec train"):
                load(folder)

    def test_a_run_of_another_version(self, copy: Path) -> None:
        write_json(copy / "run.json", read_json(copy / "run.json") | {"run_version": 99})
        with pytest.raises(ArtifactError, match="run version 1, got 99"):
            load(copy)

    def test_a_run_without_a_checkpoint(self, copy: Path) -> None:
        shutil.rmtree(copy / "checkpoints")
        with pytest.raises(ArtifactError, match="checkpoints"):
            load(copy)

    def test_a_damaged_checkpoint(self, copy: Path) -> None:
        name = read_json(copy / "checkpoints" / "best.json")["checkpoint"]
        weights = copy / "checkpoints" / str(name) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        with pytest.raises(ArtifactError, match=r"matches its hash.*model\.safetensors"):
            load(copy)

    def test_a_feed_that_moved(self, copy: Path, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        about = read_json(copy / "run.json")
        write_json(copy / "run.json", about | {"feed": str(tmp_path / "gone")})
        with pytest.raises(ArtifactError, match="prepared feed of the run.*gone.*--feed"):
            load(copy)
        assert len(load(copy, feed=tiny_feed.prepared).recommend(user_id="u01", k=3)) == 3
        with pytest.raises((FeedError, ArtifactError), match="prepared feed"):
            load(copy, feed=tiny_feed.raw)

    def test_a_device_that_is_not_there(self, tiny_run: Path) -> None:
        with pytest.raises(ConfigError, match="a device of this machine"):
            Recommender.load(tiny_run, device="tpu")


class TestEmbed:
    def test_one_row_a_reference(self, recommender: Recommender) -> None:
        vectors = recommender.embed(["p01", Post("red"), "p01"])
        assert vectors.shape == (3, 17)
        np.testing.assert_array_equal(vectors[0], vectors[2])
        assert recommender.embed([]).shape == (0, 17)

    def test_what_cannot_be_read(self, recommender: Recommender) -> None:
        with pytest.raises(RequestError, match=r"no\.png"):
            recommender.embed(["p01", Post(image="no.png")])


class TestOtherFeeds:
    def test_a_catalogue_of_one_item(self, tiny_run: Path, tmp_path: Path) -> None:
        feed = write_feed(
            tmp_path / "feed",
            interactions=[("me", "only", 1), ("me", "only", 2)],
            captions={"only": "a red scarf"},
            split=None,
        )
        recommender = load(tiny_run, feed=feed)
        assert recommender.recommend(user_id="me", k=5)["item_id"].tolist() == ["only"]
        assert len(recommender.recommend(user_id="me", k=5, new_only=True)) == 0
        found = recommender.score(history=["only"], candidates=["only", Post("a blue scarf")])
        assert sorted(found["rank"]) == [1, 2]
        assert found["present"].tolist() == ["text", "text"], "an item that training never saw has no id"

    def test_the_same_item_elsewhere_has_the_same_vector(
        self, tiny_run: Path, tiny_feed: TinyFeed, recommender: Recommender, tmp_path: Path
    ) -> None:
        feed = write_feed(
            tmp_path / "feed",
            interactions=[("me", "p04", 1), ("me", "new", 2)],
            captions={"p04": tiny_feed.caption("p04"), "new": tiny_feed.caption("p04")},
            pictures={"p04": np.asarray(draw(4)), "new": np.asarray(draw(4))},
            split=None,
        )
        elsewhere = load(tiny_run, feed=feed).embed(["p04", "new"])
        np.testing.assert_allclose(elsewhere[0], recommender.embed(["p04"])[0], atol=1e-5)
        np.testing.assert_allclose(
            elsewhere[1], recommender.embed([Post(tiny_feed.caption("p04"), draw(4))])[0], atol=1e-5
        )

    def test_events_are_known_by_name_not_by_number(
        self, tiny_encoders: TinyEncoders, rich_feed: TinyFeed, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        train_run(tiny_config(tiny_encoders, train={"epochs": 1}), feed=rich_feed.prepared, out=run, device="cpu")
        expected = load(run).score(user_id="u03", candidates=["p01", "p02"])["score"]

        def scores(names: list[str], codes: list[int]) -> np.ndarray:
            """The same feed whose events are numbered otherwise."""
            feed = shutil.copytree(rich_feed.prepared, tmp_path / "-".join(names or ["none"]), dirs_exist_ok=True)
            write_json(feed / "manifest.json", read_json(feed / "manifest.json") | {"event_names": names})
            old = np.load(rich_feed.prepared / "events.codes.npy")
            np.save(feed / "events.codes.npy", np.array(codes, dtype=old.dtype)[old])
            found = load(run, feed=feed).score(user_id="u03", candidates=["p01", "p02"])["score"]
            return found.to_numpy(dtype=np.float64)

        assert read_json(rich_feed.prepared / "manifest.json")["event_names"] == ["click", "like"]
        np.testing.assert_allclose(scores(["like", "share", "click"], [2, 0]), expected, atol=1e-5)
        assert np.abs(scores(["like", "click"], [0, 1]) - expected).max() > 1e-4
        assert np.isfinite(scores([], [0, 0])).all()
        assert np.isfinite(scores(["buy", "see"], [0, 1])).all()

    def test_integer_ids_come_back_as_integers(self, tiny_run: Path, tmp_path: Path) -> None:
        feed = write_feed(
            tmp_path / "feed",
            interactions=[("1", "7", 1), ("1", "10000000000000001", 2)],
            captions={"7": "red", "10000000000000001": "blue"},
            split=None,
        )
        write_json(feed / "manifest.json", read_json(feed / "manifest.json") | {"item_id_type": "integer"})
        recommender = load(tiny_run, feed=feed)
        assert sorted(recommender.recommend(user_id=1, k=5)["item_id"]) == [7, 10**16 + 1]
        assert recommender.score(user_id="1", candidates=[7])["score"].notna().all()


class TestTable:
    def test_is_kept_and_found_again(self, copy: Path) -> None:
        first = load(copy)
        table = first.item_embeddings()
        assert first.items_encoded == NUM_ITEMS
        again = load(copy)
        np.testing.assert_array_equal(again.item_embeddings(), table)
        assert again.items_encoded == 0

    def test_a_damaged_one_is_made_again(self, copy: Path) -> None:
        table = np.array(load(copy).item_embeddings())
        (folder,) = (copy / "embeddings").iterdir()
        (folder / "vectors.npy").write_bytes(b"cut")
        again = load(copy)
        np.testing.assert_allclose(again.item_embeddings(), table, atol=1e-6)
        assert again.items_encoded == NUM_ITEMS

    def test_tables_of_earlier_weights_go(self, copy: Path) -> None:
        stale = copy / "embeddings" / "stale"
        with filling(stale, ["k"], width=17, model_hash="other") as vectors:
            vectors[:] = 0
        load(copy).item_embeddings()
        assert not stale.exists()
        assert len(list((copy / "embeddings").iterdir())) == 1

    def test_keys_say_what_a_vector_is_made_from(self, recommender: Recommender) -> None:
        keys = item_keys(recommender.assembly)
        assert len(set(keys)) == NUM_ITEMS, "items of the same content differ by their id"

    def test_reuse(self, tmp_path: Path) -> None:
        one = EmbeddingTable(["a", "b"], np.array([[1, 1], [2, 2]], np.float32))
        other = EmbeddingTable(["b", "c"], np.array([[9, 9], [3, 3]], np.float32))
        vectors = np.zeros((4, 2), np.float32)
        missing = reuse(["c", "new", "b", "a"], iter([one, other]), vectors)
        assert missing.tolist() == [1]
        assert vectors[[0, 2, 3]].tolist() == [[3, 3], [2, 2], [1, 1]]
        assert reuse(["x"], iter([]), vectors[:1]).tolist() == [0]
        for table, model_hash in ((one, "m"), (other, "n")):
            with filling(tmp_path / model_hash, table.keys, width=2, model_hash=model_hash) as kept:
                kept[:] = table.vectors
        (found,) = saved_tables(tmp_path, model_hash="m")
        assert found.keys == ["a", "b"]
        np.testing.assert_array_equal(found.vectors, one.vectors)

    def test_a_table_that_was_not_filled_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), filling(tmp_path / "t", ["a"], width=2, model_hash="m") as vectors:
            vectors[:] = 1 / int(vectors.sum())
        assert not list(tmp_path.iterdir())


class TestComputeDtype:
    def test_vectors_are_near_those_of_float32_and_never_taken_for_them(self, copy: Path) -> None:
        whole = load(copy)
        vectors, post = np.array(whole.item_embeddings()), whole.embed([Post("a red scarf", image=draw(3))])
        narrow = load(copy, compute_dtype="bfloat16")
        assert narrow.model_hash != whole.model_hash
        assert narrow.vectors.table is None, "the table of the other format"
        near, same = np.array(narrow.item_embeddings()), narrow.embed([Post("a red scarf", image=draw(3))])
        assert narrow.items_encoded == NUM_ITEMS
        for one, other in ((vectors, near), (post, same)):
            assert np.abs(one - other).max() < 0.05 * np.abs(one).max()
            assert not np.array_equal(one, other)

    def test_tables_of_both_formats_are_kept(self, copy: Path) -> None:
        for dtype in ("float32", "bfloat16"):
            load(copy, compute_dtype=dtype).item_embeddings()
        for dtype in ("float32", "bfloat16"):
            again = load(copy, compute_dtype=dtype)
            again.item_embeddings()
            assert again.items_encoded == 0

    def test_a_post_depends_on_its_neighbours_by_a_rounding_at_most(self, copy: Path) -> None:
        narrow = load(copy, compute_dtype="bfloat16")
        posts = [Post(f"a {word} scarf", image=draw(row)) for row, word in enumerate(("red", "blue", "soft green"))]
        together, alone = narrow.embed(posts), np.concatenate([narrow.embed([post]) for post in posts])
        apart = np.abs(together - alone).max() / np.abs(alone).max()
        other = np.abs(alone[0] - alone[1]).max() / np.abs(alone).max()
        assert apart < 0.004, "a rounding of bfloat16"
        assert other > 10 * apart
