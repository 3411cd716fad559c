"""A score depends on the user and the candidate alone: not on company, order, batch, cache, nor on being known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrec import Post
from mmrec.assembly import assemble
from mmrec.commands.train import train_run
from mmrec.config import Config
from mmrec.feed.ids import Ids
from mmrec.inference.encoding import encode_catalogue
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.recommender import Recommender
from mmrec.inference.references import Reference
from mmrec.inference.scoring import Request
from mmrec.inference.trunk_cache import TrunkCache
from tests.tiny_run import (
    CAPTION_ONLY,
    NUM_ITEMS,
    PICTURE_ONLY,
    TWO_PICTURES,
    TinyEncoders,
    TinyFeed,
    changed,
    tiny_config,
)

CLOSE = 1e-5
ITEMS = [f"p{row:02}" for row in range(NUM_ITEMS)]


def as_post(feed: TinyFeed, item_id: str) -> Post:
    """The content of an item, as a stranger would send it."""
    images = [feed.image(item_id)] + [feed.image(item_id, 1)] * (item_id == TWO_PICTURES)
    return Post(
        caption=None if item_id == PICTURE_ONLY else feed.caption(item_id),
        image=None if item_id == CAPTION_ONLY else images,
        name=f"{item_id} again",
    )


def fresh(run: Path) -> Recommender:
    """A recommender that remembers nothing, and whose scores are inner products and no more.

    A post of the same content is not the very item that a history holds, so the repeat bonus would tell them apart.
    """
    recommender = Recommender.load(run, device="cpu")
    recommender.assembly.model.scorer.repeat_bonus.zero_()
    return recommender


def scores(recommender: Recommender, candidates: list[Reference], user: str = "u01") -> np.ndarray:
    return recommender.score(user_id=user, candidates=candidates)["score"].to_numpy(dtype=np.float64)


class TestCompany:
    def test_score_alone_equals_score_among_others_in_any_order(self, tiny_run: Path, tiny_feed: TinyFeed) -> None:
        posts: list[Reference] = [
            *ITEMS,
            Post(caption="A soft red scarf"),
            Post(caption="blue", image=tiny_feed.image("p07")),
            Post(image=[tiny_feed.image("p08"), tiny_feed.image("p09")]),
            Post(caption="striped " * 30),
        ]
        together = scores(fresh(tiny_run), posts)
        order = np.random.default_rng(0).permutation(len(posts))
        shuffled = scores(fresh(tiny_run), [posts[i] for i in order])
        alone = np.array([scores(fresh(tiny_run), [posts[i]])[0] for i in range(0, len(posts), 5)])
        np.testing.assert_allclose(shuffled, together[order], atol=CLOSE, rtol=0)
        np.testing.assert_allclose(alone, together[::5], atol=CLOSE, rtol=0)
        assert np.ptp(together) > 1, "scores that all agree would prove nothing"

    def test_requests_together_equal_requests_alone(self, tiny_run: Path, tiny_feed: TinyFeed) -> None:
        post = Post(caption="large green dress", image=tiny_feed.image("p11"))
        requests = [
            Request("known", [post, "p01", "p02"], user_id="u03"),
            Request("long", ["p09", post], history=[*ITEMS, post]),
            Request("short", [post], history=["p04"]),
            Request("nobody", ["p09", post], history=[]),
        ]
        together = list(fresh(tiny_run).scoring.score(requests))
        for request, scored in zip(requests, together, strict=True):
            (alone,) = fresh(tiny_run).scoring.score([request], group=1)
            np.testing.assert_allclose(alone.scores, scored.scores, atol=CLOSE, rtol=0)
            assert list(alone.ranks) == list(scored.ranks)
            assert scored.request_error is None


class TestKnownAndNew:
    def test_item_and_post_of_the_same_content_share_a_vector(self, content_run: Path, tiny_feed: TinyFeed) -> None:
        recommender = fresh(content_run)
        known = recommender.embed(ITEMS)
        new = recommender.embed([as_post(tiny_feed, item_id) for item_id in ITEMS])
        np.testing.assert_allclose(new, known, atol=CLOSE, rtol=0)
        assert np.linalg.norm(known[0] - known[1]) > 0.01

    def test_with_shares_of_modalities_as_well(self, content_run: Path, tiny_feed: TinyFeed) -> None:
        found = []
        for posts in (list(ITEMS), [as_post(tiny_feed, item_id) for item_id in ITEMS]):
            recommender = fresh(content_run)
            before = recommender.embed(posts)
            recommender = fresh(content_run)
            recommender.assembly.model.late.set("text", 0.5)
            recommender.vectors.table = None
            found.append(recommender.embed(posts))
            assert np.abs(found[-1] - before).max() > 1e-3
        np.testing.assert_allclose(found[1], found[0], atol=CLOSE, rtol=0)

    def test_without_its_id_an_item_differs_only_by_the_id_residual(self, tiny_run: Path, tiny_feed: TinyFeed) -> None:
        recommender = fresh(tiny_run)
        item = np.array([7])
        batch = recommender.assembly.reader.read(item)
        nameless = {name: part for name, part in batch.parts.items() if name != "item_id"}
        with torch.inference_mode():
            bare = recommender.assembly.model.encode_items(type(batch)(batch.item_rows, nameless)).numpy()
        new = recommender.embed([as_post(tiny_feed, "p07")])
        np.testing.assert_allclose(new, bare, atol=CLOSE, rtol=0)
        assert np.abs(new - recommender.embed(["p07"])).max() > 1e-3

    def test_however_the_picture_comes(self, content_run: Path, tiny_feed: TinyFeed) -> None:
        path = tiny_feed.image("p04")
        with Image.open(path) as image:
            ways = [path, str(path), path.read_bytes(), image, np.asarray(image)]
            vectors = fresh(content_run).embed([Post(image=way) for way in ways])
        np.testing.assert_allclose(vectors, np.repeat(vectors[:1], len(ways), 0), atol=0)

    def test_score_of_a_post_equals_that_of_the_item(self, content_run: Path, tiny_feed: TinyFeed) -> None:
        recommender = fresh(content_run)
        known = scores(recommender, list(ITEMS), user="u05")
        new = scores(recommender, [as_post(tiny_feed, item_id) for item_id in ITEMS], user="u05")
        # A cosine over a temperature of at least 0.01 magnifies what is left of rounding.
        np.testing.assert_allclose(new, known, atol=20 * CLOSE, rtol=0)

    def test_history_of_posts_equals_history_of_items(self, content_run: Path, tiny_feed: TinyFeed) -> None:
        recommender = fresh(content_run)
        chosen = ["p01", PICTURE_ONLY, CAPTION_ONLY, TWO_PICTURES]
        mixed: list[Reference] = [
            as_post(tiny_feed, "p01"),
            PICTURE_ONLY,
            as_post(tiny_feed, CAPTION_ONLY),
            TWO_PICTURES,
        ]
        expected = recommender.score(history=chosen, candidates=ITEMS)["score"]
        got = recommender.score(history=mixed, candidates=ITEMS)["score"]
        np.testing.assert_allclose(got, expected, atol=20 * CLOSE)


class TestCaches:
    def test_table_equals_encoding_on_demand(self, tiny_run: Path, tmp_path: Path) -> None:
        run = shutil.copytree(tiny_run, tmp_path / "run")
        shutil.rmtree(run / "embeddings", ignore_errors=True)
        on_demand = fresh(run)
        assert on_demand.vectors.table is None
        few = on_demand.embed(["p20", "p03", "p20"])
        assert on_demand.vectors.num_encoded == 2
        table = on_demand.item_embeddings()
        np.testing.assert_allclose(few, table[[20, 3, 20]], atol=CLOSE, rtol=0)
        again = fresh(run)
        assert again.vectors.table is not None, "the table is kept beside the run"
        np.testing.assert_array_equal(again.embed(["p20"]), table[[20]])
        assert again.vectors.num_encoded == 0

    def test_cached_trunk_equals_live_trunk(self, tiny_run: Path, tiny_feed: TinyFeed) -> None:
        loaded = fresh(tiny_run)
        live = assemble(
            changed(loaded.assembly.config, train={"trunk_cache": False}),
            tiny_feed.prepared,
            loaded_ids(loaded),
            device=torch.device("cpu"),
        )
        sources = {name: type(m.source) for name, m in live.reader.modalities.items() if name != "item_id"}
        cached = {name: type(m.source) for name, m in loaded.assembly.reader.modalities.items() if name != "item_id"}
        assert set(sources.values()) == {LiveTrunk}
        assert set(cached.values()) == {TrunkCache}
        rows = loaded.assembly.all_rows
        expected = encode_catalogue(loaded.assembly.model, loaded.assembly.reader, rows, device=torch.device("cpu"))
        for batch_items in (1, 7, 30):
            got = encode_catalogue(
                loaded.assembly.model, live.reader, rows, device=torch.device("cpu"), batch_items=batch_items
            )
            torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)

    @pytest.mark.parametrize("mode", ["frozen", "top", "full"])
    def test_new_post_equals_item_wherever_the_encoder_is_cut(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path, mode: str
    ) -> None:
        config = cut(tiny_config(tiny_encoders, ids=False), mode)
        train_run(config, feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu")
        recommender = fresh(tmp_path / "run")
        chosen = ["p00", CAPTION_ONLY, PICTURE_ONLY, TWO_PICTURES]
        known = recommender.embed(chosen)
        new = np.concatenate([recommender.embed([as_post(tiny_feed, item_id)]) for item_id in chosen])
        np.testing.assert_allclose(new, known, atol=CLOSE, rtol=0)


def cut(config: Config, mode: str) -> Config:
    tuning = {"mode": mode, "blocks": 1 if mode == "top" else 0}
    values = config.model_dump(mode="json")["encoders"]
    return changed(
        config,
        encoders={name: encoder | {"tuning": tuning} for name, encoder in values.items()},
        train={"epochs": 1},
    )


def loaded_ids(recommender: Recommender) -> Ids:
    return Ids.load(recommender.run.ids)
