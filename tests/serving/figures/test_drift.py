"""Figures that show when scores or posts are not what they were."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.export import export_run
from mmrec.serving.deployment.loading import load_pair
from mmrec.serving.figures.drift import REFERENCE, ScoreDrift
from tests.attribute_run import CAPTION
from tests.serving.served import Serve, Server, in_base64, picture


def test_start_and_now_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0)
    first, later = draw.normal(10, 2, REFERENCE), draw.normal(14, 1, 20 * REFERENCE)
    drift = ScoreDrift()
    drift.add("recommend", "m1", [*first[:300].tolist(), float("nan"), *first[300:].tolist()])
    figures = drift.figures()["recommend"]
    assert figures.start.mean == pytest.approx(first.mean())
    assert figures.start.deviation == pytest.approx(first.std())
    assert (figures.now, figures.shift) == (figures.start, 0)
    drift.add("recommend", "m1", later.tolist())
    figures = drift.figures()["recommend"]
    assert figures.start.mean == pytest.approx(first.mean())
    assert figures.now.mean == pytest.approx(14, abs=0.15)
    assert figures.now.deviation == pytest.approx(1, abs=0.1)
    assert figures.shift == pytest.approx(2, abs=0.15)


def test_routes_are_apart_and_another_model_starts_anew() -> None:
    drift = ScoreDrift()
    drift.add("score", "m1", [1.0] * REFERENCE)
    drift.add("search", "m1", [5.0])
    drift.add("score", "m2", [3.0, 5.0])
    figures = drift.figures()
    assert (figures["score"].start.mean, figures["score"].shift) == (4, 0)
    assert figures["search"].start.mean == 5
    drift.add("search", "m1", [])
    assert drift.figures()["search"].start.deviation == 0


def figure(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found.group(1))


def test_the_page_tells_scores_and_posts_by_route(server: Server) -> None:
    both = {"caption": "a red scarf", "image": in_base64(picture(1))}
    body = {"history": [{"caption": "soft"}], "candidates": [both, {"image": in_base64(picture(2))}, "p01"]}
    scores = [float(str(row["score"])) for row in server.results("score", body)]
    assert figure(server, 'mmrec_score_mean{of="start",route="score"}') == pytest.approx(np.mean(scores))
    assert figure(server, 'mmrec_score_deviation{of="now",route="score"}') == pytest.approx(np.std(scores))
    assert figure(server, 'mmrec_score_shift{route="score"}') == 0
    assert figure(server, 'mmrec_posts_total{route="score"}') == 3
    assert figure(server, 'mmrec_posts_without_total{modality="image",route="score"}') == 1
    assert figure(server, 'mmrec_posts_without_total{modality="text",route="score"}') == 1
    server.put("n1", {"caption": "a dress"})
    server.post("items:batch", {"items": [{"item_id": "n2", **both}, {"item_id": "n3", "caption": "b"}]})
    server.post("search", {"text": "red"})
    server.post("embeddings", {"input": ["a", "b"]})
    for route, posts, pictureless in (
        ("publish", 1, 1),
        ("publish_batch", 2, 1),
        ("search", 1, 1),
        ("embeddings", 2, 2),
    ):
        assert figure(server, f'mmrec_posts_total{{route="{route}"}}') == posts
        assert figure(server, f'mmrec_posts_without_total{{modality="image",route="{route}"}}') == pictureless
        assert figure(server, f'mmrec_posts_without_total{{modality="text",route="{route}"}}') == 0
    server.post("recommend", {"user_id": "u01", "k": 3})
    best = server.results("recommend", {"user_id": "u01", "k": 3})
    mean = np.mean([float(str(row["score"])) for row in best])
    assert figure(server, 'mmrec_score_mean{of="now",route="recommend"}') == pytest.approx(mean, rel=1e-5)


def test_posts_lack_nothing_that_the_model_does_not_read(serve: Serve, attribute_run: Path, tmp_path: Path) -> None:
    """It knows captions and attributes."""
    export_run(attribute_run, out=tmp_path / "vectors", users=False, device="cpu")
    server = serve(of=load_pair(attribute_run, tmp_path / "vectors", device="cpu"))
    server.put("n1", {"caption": CAPTION})
    server.put("n2", {"attributes": {"brand": "fir"}, "caption": CAPTION, "image": in_base64(picture(1))})
    assert figure(server, 'mmrec_posts_total{route="publish"}') == 2
    assert figure(server, 'mmrec_posts_without_total{modality="text",route="publish"}') == 0
    assert 'modality="image"' not in server.client.get("/metrics").text
