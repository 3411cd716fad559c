"""What a user had gains the repeat bonus, and every room that scores gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec import Post
from mmrec.commands.export import export_run
from mmrec.commands.search import search_vectors
from mmrec.feed.splits import Split
from mmrec.inference.encoding import ModelScorer
from mmrec.inference.recommender import Recommender
from mmrec.model.scorer import Scorer
from tests.tiny_run import NUM_ITEMS, TinyFeed

BONUS = 2.5
EVERYTHING = [f"p{row:02}" for row in range(NUM_ITEMS)]


@pytest.fixture
def bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat_bonus(scorer: Scorer) -> Tensor:
        return torch.tensor(BONUS)

    monkeypatch.setattr(Scorer, "repeat_bonus", repeat_bonus)


def test_score_adds_it_to_items_and_to_posts_of_the_history(
    content_recommender: Recommender, tiny_feed: TinyFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = ["p03", Post(caption="a red scarf"), "p03", Post(image=tiny_feed.image("p07"))]
    candidates = ["p03", "p04", Post(caption="a red scarf"), Post(caption="a red hat"), *history[3:], "p07"]
    plain = content_recommender.score(history=history, candidates=candidates)["score"]
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "repeat_bonus", lambda scorer: torch.tensor(BONUS))
        raised = content_recommender.score(history=history, candidates=candidates)["score"]
    np.testing.assert_allclose(raised - plain, [BONUS, 0, BONUS, 0, BONUS, 0], atol=1e-5)


def test_only_the_part_of_the_history_that_counts(content_recommender: Recommender, bonus: None) -> None:
    length = content_recommender.assembly.config.train.history_length
    recent = ["p01"] * length
    with_older = content_recommender.score(history=["p05", *recent], candidates=EVERYTHING)["score"]
    np.testing.assert_allclose(
        with_older, content_recommender.score(history=recent, candidates=EVERYTHING)["score"], atol=1e-5
    )


def test_evaluation_score_recommend_and_search_agree(
    content_run: Path, content_recommender: Recommender, bonus: None, tmp_path: Path
) -> None:
    assembly = content_recommender.assembly
    cases = Split.load(assembly.catalogue.folder).test
    scorer = ModelScorer(
        assembly.model,
        content_recommender.catalogue_tensor,
        assembly.histories,
        cases,
        history_length=assembly.config.train.history_length,
        device=assembly.device,
    )
    events = cases.histories(assembly.histories, length=assembly.config.train.history_length)
    for case in (0, 3):
        rows = assembly.histories.item_rows[events.values[events.offsets[case] : events.offsets[case + 1]]]
        past = [str(assembly.catalogue.item_ids[row]) for row in rows]
        expected = content_recommender.score(history=past, candidates=EVERYTHING)["score"]
        np.testing.assert_allclose(scorer.scores(np.array([case]))[0], expected, atol=1e-5)

    export_run(content_run, out=tmp_path / "vectors", device="cpu")
    for user in ("u02", "u08"):
        scored = content_recommender.score(user_id=user, candidates=EVERYTHING)
        best = scored.sort_values("score", ascending=False, kind="stable")["candidate"].tolist()
        recommended = content_recommender.recommend(user_id=user, k=NUM_ITEMS)
        assert recommended["item_id"].tolist() == best
        np.testing.assert_allclose(np.sort(recommended["score"]), np.sort(scored["score"]), atol=1e-5)
        found = search_vectors(tmp_path / "vectors", user=user, k=5, device="cpu")
        assert [row[1] for row in found.rows] == best[:5]


def test_search_gives_it_to_what_meets_the_conditions(content_run: Path, bonus: None, tmp_path: Path) -> None:
    export_run(content_run, out=tmp_path / "vectors", store="faiss", device="cpu")
    everything = search_vectors(tmp_path / "vectors", user="u08", k=NUM_ITEMS, device="cpu")
    dear = search_vectors(tmp_path / "vectors", user="u08", where="price > 12", k=4, device="cpu")
    price = everything.columns.index("price")
    expected = [row[1] for row in everything.rows if float(str(row[price])) > 12]
    assert [row[1] for row in dear.rows] == expected[:4]
