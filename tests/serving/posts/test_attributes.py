"""Attributes of posts that the service is sent: read by a model that knows them, kept, and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec import Post
from mmrec.commands.export import export_run
from mmrec.serving.deployment.loading import load_pair
from mmrec.serving.model.exported import Pair
from tests.attribute_run import BRANDS, CAPTION
from tests.serving.served import Serve

HISTORY = ["i02", "i06", "i10"]
"""What somebody chose who likes fir."""


@pytest.fixture(scope="module")
def knowing(attribute_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    out = tmp_path_factory.mktemp("knowing") / "vectors"
    export_run(attribute_run, out=out, users=False, device="cpu")
    return load_pair(attribute_run, out, device="cpu")


def test_raw_posts_are_scored_as_in_the_library(serve: Serve, knowing: Pair) -> None:
    server = serve(of=knowing)
    posts = [{"caption": CAPTION, "attributes": {"brand": brand, "price": 3.5}} for brand in BRANDS]
    misspelt = {"caption": CAPTION, "attributes": {"bran": "fir"}}
    *found, refused = server.results("score", {"history": HISTORY, "candidates": [*posts, misspelt]})
    expected = knowing.recommender.score(history=HISTORY, candidates=[Post(**post) for post in posts])
    assert [entry["score"] for entry in found] == pytest.approx(expected["score"].tolist(), abs=1e-4)
    assert [BRANDS[place] for place, entry in enumerate(found) if entry["rank"] == 1] == ["fir"]
    assert all(entry["present"] == ["text", "attributes"] for entry in found)
    assert "did you mean 'brand'" in str(refused["error"])


def test_a_published_post_is_what_its_attributes_say(serve: Serve, knowing: Pair) -> None:
    server = serve(of=knowing)
    for brand in BRANDS:
        body = {"caption": CAPTION, "attributes": {"brand": brand, "size": "40"}}
        assert server.put(f"new-{brand}", body)["present"] == ["text", "attributes"]
    cheap = server.put("no", {"caption": CAPTION, "attributes": {"price": "cheap"}}, 422)
    assert "a number" in str(cheap["detail"])
    published = [item_id for item_id in server.ids("recommend", {"history": HISTORY, "k": 44}) if "new" in str(item_id)]
    assert published[0] == "new-fir"
    stored = {post.item_id: post for post in server.service.store.posts()}
    expected = knowing.recommender.embed([Post(caption=CAPTION, attributes={"brand": "fir"})])[0]
    np.testing.assert_allclose(stored["new-fir"].vector, expected, atol=1e-5)


def test_another_model_reads_them_again(serve: Serve, knowing: Pair) -> None:
    first = serve("kept", of=knowing)
    first.put("new-1", {"caption": CAPTION, "attributes": {"brand": "oak", "price": 7}})
    (post,) = first.service.store.posts()
    strange = replace(post, item_id="new-2", model_hash="another", vector=np.zeros_like(post.vector), present=("text",))
    first.service.store.put_post(strange, ())
    first.client.__exit__(None, None, None)
    second = serve("kept", of=knowing)
    again = {held.item_id: held for held in second.service.store.posts()}["new-2"]
    np.testing.assert_allclose(again.vector, post.vector, atol=1e-5)
    assert (again.present, again.model_hash) == (post.present, post.model_hash)
