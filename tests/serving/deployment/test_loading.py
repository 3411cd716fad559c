"""A run and an export as one pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrec import Post
from mmrec.commands.export import export_run
from mmrec.errors import ArtifactError
from mmrec.inference.recommender import Recommender
from mmrec.serving.deployment.loading import load_pair
from tests.serving.served import Serve, Server
from tests.tiny_run import TinyFeed


class TestPairs:
    @pytest.mark.parametrize("choices", [{"precision": "int8"}, {"dim": 4, "store": "faiss"}, {"normalise": True}])
    def test_a_smaller_export_recommends_and_finds_the_same(
        self, tiny_run: Path, tmp_path: Path, serve: Serve, server: Server, choices: dict[str, object]
    ) -> None:
        export_run(tiny_run, out=tmp_path / "v", users=False, device="cpu", **choices)  # type: ignore[arg-type]
        small = serve("small", of=load_pair(tiny_run, tmp_path / "v", device="cpu"))
        body = {"user_id": "u04", "k": 5}
        assert small.results("recommend", body) == server.results("recommend", body)
        if not choices.get("normalise"):
            assert small.results("search", {"text": "red", "k": 5}) == server.results("search", {"text": "red", "k": 5})

    def test_posts_are_encoded_in_the_format_of_the_export(self, tiny_run: Path, tmp_path: Path, serve: Serve) -> None:
        export_run(tiny_run, out=tmp_path / "v", users=False, device="cpu", compute_dtype="bfloat16")
        narrow = serve("narrow", of=load_pair(tiny_run, tmp_path / "v", device="cpu"))
        body = {"history": ["p01", "p04"], "candidates": ["p02", {"caption": "a soft red scarf"}]}
        scored = Recommender.load(tiny_run, device="cpu", compute_dtype="bfloat16").score(
            history=["p01", "p04"], candidates=["p02", Post("a soft red scarf")]
        )
        found = [entry["score"] for entry in narrow.results("score", body)]
        assert found == pytest.approx(scored["score"].tolist(), rel=1e-4)

    def test_vectors_of_another_run_are_refused(self, content_run: Path, served_vectors: Path) -> None:
        with pytest.raises(ArtifactError, match="vectors of the model"):
            load_pair(content_run, served_vectors, device="cpu")

    def test_vectors_of_another_feed_are_refused(
        self, tiny_run: Path, served_vectors: Path, rich_feed: TinyFeed
    ) -> None:
        with pytest.raises(ArtifactError, match="another feed"):
            load_pair(tiny_run, served_vectors, feed=rich_feed.prepared, device="cpu")
