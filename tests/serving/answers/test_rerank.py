"""Another order for scored candidates: the fast way equals the naive one, and the service keeps to its formula."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mmrec.feed.items import ItemReader
from mmrec.inference.encoding import encode_catalogue
from mmrec.serving.answers.rerank import (
    UNKNOWN,
    kept_shares,
    marginal_order,
    nearest_posts,
    newer_shares,
    pool_size,
    values_of,
)
from mmrec.serving.model.exported import Pair
from tests.serving.served import Serve, Server, in_base64, picture, trace
from tests.tiny_run import CAPTION_ONLY, NUM_ITEMS, PICTURE_ONLY

CONTENT = frozenset({"text", "image"})
Floats = npt.NDArray[np.float32]


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def naive_order(values: npt.NDArray[np.float64], vectors: Floats, diversity: float, k: int) -> list[int]:
    """Greedy, one comparison after the other."""
    left, chosen = list(np.argsort(-values, kind="stable")), []
    while left and len(chosen) < k:
        best, most = left[0], -np.inf
        for place in left if chosen else left[:1]:
            nearest = max((cosine(vectors[place], vectors[other]) for other in chosen), default=0.0)
            worth = (1 - diversity) * values[place] - diversity * max(0.0, nearest)
            if worth > most + 1e-9:
                best, most = place, worth
        chosen.append(best)
        left.remove(best)
    return [int(place) for place in chosen]


class TestFormula:
    @pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
    @pytest.mark.parametrize("k", [1, 5, 40, 50])
    def test_equals_the_naive_way(self, diversity: float, k: int) -> None:
        draw = np.random.default_rng(k)
        values, vectors = draw.random(40), draw.normal(size=(40, 8)).astype(np.float32)
        vectors[7] = vectors[3]
        assert marginal_order(values, vectors, diversity=diversity, k=k).tolist() == naive_order(
            values, vectors, diversity, k
        )

    def test_a_twin_comes_last_where_only_difference_counts(self) -> None:
        vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
        values = np.array([1.0, 0.9, 0.0])
        assert marginal_order(values, vectors, diversity=0.0, k=3).tolist() == [0, 1, 2]
        assert marginal_order(values, vectors, diversity=1.0, k=3).tolist() == [0, 2, 1]

    def test_age_is_the_share_of_others_that_are_older(self) -> None:
        times = np.array([30, 10, UNKNOWN, 10, 40])
        assert newer_shares(times).tolist() == [3 / 4, (1 + 0.5) / 4, 0, (1 + 0.5) / 4, 4 / 4]
        assert newer_shares(times[:1]).tolist() == [0]

    def test_values_blend_relevance_and_age(self) -> None:
        relevance, times = np.array([2.0, 4.0, 3.0]), np.array([3, 1, 2])
        assert values_of(relevance, times, freshness=0.0).tolist() == [0, 1, 0.5]
        assert values_of(relevance, times, freshness=1.0).tolist() == [1, 0, 0.5]
        assert values_of(relevance, times, freshness=0.25).tolist() == [0.25, 0.75, 0.5]
        assert values_of(np.ones(2), times[:2], freshness=0.5).tolist() == [0.5, 0]
        assert values_of(np.zeros(0), times[:0], freshness=0.5).tolist() == []

    def test_ways_to_read_a_post(self) -> None:
        both = ("text", "image", "item_id")
        assert kept_shares(both, {}, content=CONTENT) == {both: 1}
        assert kept_shares(both, {"image": 0.25}, content=CONTENT) == {both: 0.25, ("text", "item_id"): 0.75}
        assert kept_shares(both, {"image": 0.0, "item_id": 0.5}, content=CONTENT) == {
            ("text", "item_id"): 0.5,
            ("text",): 0.5,
        }
        only = ("image", "item_id")
        assert kept_shares(only, {"image": 0.25}, content=CONTENT) == {only: 1}, "the last content stays"
        assert kept_shares(only, {"image": 0.0, "item_id": 0.0}, content=CONTENT) == {("image",): 1}
        assert kept_shares(("text", "image"), {"text": 0.5, "image": 0.5}, content=CONTENT) == {
            ("text", "image"): 0.5,
            ("text",): 0.25,
            ("image",): 0.25,
        }
        assert kept_shares(("item_id",), {"item_id": 0.0}, content=frozenset()) == {("item_id",): 1}

    def test_size_of_the_pool(self) -> None:
        assert [pool_size(k, most=1000) for k in (1, 20, 50, 100, 400, 2000)] == [200, 200, 500, 1000, 1000, 2000]

    def test_nearest_posts(self) -> None:
        draw = np.random.default_rng(0)
        items, history = (draw.normal(size=(n, 4)).astype(np.float32) for n in (6, 5))
        places, cosines = nearest_posts(items, history, n=2)
        for item, row, found in zip(items, places, cosines, strict=True):
            every = [cosine(item, post) for post in history]
            assert row.tolist() == np.argsort(np.negative(every))[:2].tolist()
            np.testing.assert_allclose(found, sorted(every)[::-1][:2], rtol=1e-5)
        assert nearest_posts(items, history[:1], n=3)[0].shape == (6, 1)


class TestService:
    def test_defaults_change_nothing(self, server: Server) -> None:
        plain = server.post("recommend", {"user_id": "u03", "k": 8})
        told = {"freshness": 0, "diversity": 0.0, "modality_weights": {"text": 1, "image": 1.0}, "reasons": 0}
        same = server.post("recommend", {"user_id": "u03", "k": 8, **told})
        assert same["results"] == plain["results"]
        assert (plain["pool"], same["pool"]) == (0, 0)

    def test_freshness_puts_the_newest_first(self, server: Server) -> None:
        for number, item_id in enumerate(["n1", "n2", "n3"]):
            server.put(item_id, {"caption": f"post {number}", "published_at": 1_700_000_000_000 + number})
        answer = server.post("recommend", {"user_id": "u03", "k": 3, "freshness": 1.0})
        assert [row["item_id"] for row in answer["results"]] == ["n3", "n2", "n1"]  # type: ignore[attr-defined]
        assert answer["pool"] == NUM_ITEMS + 3
        assert [row["rank"] for row in answer["results"]] == [1, 2, 3]  # type: ignore[attr-defined]
        scored = server.results("score", {"user_id": "u03", "candidates": ["n3", "n2", "n1"]})
        np.testing.assert_allclose(
            [row["score"] for row in answer["results"]],  # type: ignore[attr-defined]
            [row["score"] for row in scored],
            rtol=1e-5,
        )

    def test_diversity_follows_the_formula(self, server: Server, pair: Pair) -> None:
        every = server.results("recommend", {"user_id": "u04", "k": NUM_ITEMS})
        ids = [str(row["item_id"]) for row in every]
        scores = np.array([row["score"] for row in every], dtype=np.float64)
        vectors = pair.recommender.embed(ids)[:, : pair.recommender.assembly.model.dim]
        values = (scores - scores.min()) / (scores.max() - scores.min())
        wanted = [ids[place] for place in naive_order(values, vectors, 0.6, 9)]
        assert server.ids("recommend", {"user_id": "u04", "k": 9, "diversity": 0.6}) == wanted
        assert wanted != ids[:9]

    def test_weights_of_modalities_follow_the_formula(self, server: Server, pair: Pair) -> None:
        catalogue, assembly = pair.recommender.assembly.catalogue, pair.recommender.assembly
        rows = np.arange(NUM_ITEMS)
        every = server.results("recommend", {"user_id": "u04", "k": NUM_ITEMS})
        scores = {row["item_id"]: float(str(row["score"])) for row in every}
        asking = server.service.askers.one("u04", None, {}, trace())
        modalities = assembly.reader.modalities
        no_picture = ItemReader({name: modalities[name] for name in modalities if name != "image"})
        vectors = encode_catalogue(assembly.model, no_picture, rows, device=assembly.device).numpy()
        change = server.service.compare(asking.vectors, vectors) - server.service.compare(
            asking.vectors, np.array(pair.exported.full)
        )
        for row in rows:
            item_id = str(catalogue.item_ids[row])
            scores[item_id] += 0.0 if item_id in (PICTURE_ONLY, CAPTION_ONLY) else 0.75 * float(change[row])
        wanted = sorted(scores, key=lambda item_id: -scores[item_id])
        body = {"user_id": "u04", "k": NUM_ITEMS, "modality_weights": {"image": 0.25}}
        assert server.ids("recommend", body) == wanted
        assert wanted != [row["item_id"] for row in every]
        before = len(server.batches)
        assert server.ids("recommend", body) == wanted
        assert len(server.batches) == before + 1, "the second time only the user is encoded"

    def test_a_published_post_is_read_by_weight_too(self, serve: Serve) -> None:
        server = serve()
        server.put("both", {"caption": "a red scarf", "image": in_base64(picture(1))})
        server.put("words", {"caption": "a red scarf"})
        body = {"user_id": "u04", "k": 100, "modality_weights": {"image": 0.0}, "where": ""}
        ids = server.ids("recommend", body)
        assert abs(ids.index("both") - ids.index("words")) == 1, "without its picture it is the same post"

    def test_reasons_are_the_nearest_posts_of_the_history(self, server: Server, pair: Pair) -> None:
        history = ["p04", {"caption": "a soft dress"}, "p11", "p04", "p20"]
        results = server.results("recommend", {"history": history, "k": 6, "reasons": 3, "diversity": 0.2})
        for row in results:
            because: list[dict[str, object]] = row["because"]  # type: ignore[assignment]
            assert len(because) == 3
            assert len({entry["item_id"] for entry in because}) == 3
            cosines = [float(str(entry["similarity"])) for entry in because]
            assert cosines == sorted(cosines, reverse=True)
            dim = pair.recommender.assembly.model.dim
            for entry in because:
                if entry["item_id"] != "new:1":
                    one, other = pair.recommender.embed([str(row["item_id"]), str(entry["item_id"])])[:, :dim]
                    assert float(str(entry["similarity"])) == pytest.approx(cosine(one, other), abs=1e-5)
            if row["item_id"] in ("p04", "p11", "p20"):
                assert because[0]["item_id"] == row["item_id"], "the very same post is nearest"
        known = server.results("recommend", {"user_id": "u04", "k": 2, "reasons": 5})
        assert all(len(row["because"]) == 5 for row in known)  # type: ignore[arg-type]

    def test_strangers_are_not_reranked(self, server: Server) -> None:
        body = {"history": [], "k": 4, "freshness": 1.0, "diversity": 1.0, "reasons": 2}
        answer = server.post("recommend", body)
        assert (answer["strategy"], answer["pool"]) == ("popular_and_fresh", 0)
        assert all(row["because"] == [] for row in answer["results"])  # type: ignore[attr-defined]

    def test_refusals(self, server: Server) -> None:
        for wrong in (
            {"freshness": 1.5},
            {"freshness": -0.1},
            {"freshness": "new"},
            {"diversity": 2},
            {"diversity": True},
            {"reasons": 6},
            {"reasons": -1},
            {"reasons": 1.5},
            {"modality_weights": {"image": 1.01}},
            {"modality_weights": ["image"]},
            {"modality_weights": {"text": 0, "image": 0}},
        ):
            assert server.post("recommend", {"user_id": "u03", **wrong}, 422)["title"] == "Cannot be answered", wrong
        problem = server.post("recommend", {"user_id": "u03", "modality_weights": {"imag": 0.5}}, 422)
        assert "'image'" in str(problem["detail"])
