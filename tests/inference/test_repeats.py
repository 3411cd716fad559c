"""What a user had gains the repeat bonus, and every room that scores gives it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from mmrec import Post
from mmrec.commands.export import export_run
from mmrec.commands.search import search_vectors
from mmrec.feed.splits import Split
from mmrec.inference.encoding import ModelScorer
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.training.checkpoint import MODEL, best_checkpoint, read_checkpoint, write_checkpoint
from tests.tiny_run import NUM_ITEMS, TinyFeed

BONUS = 2.5
EVERYTHING = [f"p{row:02}" for row in range(NUM_ITEMS)]


def with_bonus(content_run: Path, run: Path, bonus: float) -> Path:
    """Copy a run, as if validation had found that people come back for what they had, or never do."""
    shutil.copytree(content_run, run)
    name = best_checkpoint(run / "checkpoints").name
    checkpoint = read_checkpoint(run / "checkpoints" / name)
    checkpoint.tensors[MODEL]["scorer.repeat_bonus"] = torch.tensor(bonus)
    shutil.rmtree(run / "checkpoints" / name)
    write_checkpoint(run / "checkpoints" / name, checkpoint)
    return run


@pytest.fixture(scope="module")
def repeating_run(content_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_bonus(content_run, tmp_path_factory.mktemp("runs") / "repeating", BONUS)


@pytest.fixture(scope="module")
def repeating(repeating_run: Path) -> Recommender:
    return Recommender.load(repeating_run, device="cpu")


def test_score_adds_it_to_items_and_to_posts_of_the_history(
    content_recommender: Recommender, repeating: Recommender, tiny_feed: TinyFeed
) -> None:
    history = ["p03", Post(caption="a red scarf"), "p03", Post(image=tiny_feed.image("p07"))]
    candidates = ["p03", "p04", Post(caption="a red scarf"), Post(caption="a red hat"), *history[3:], "p07"]
    usual = content_recommender.repeat_bonus
    plain = content_recommender.score(history=history, candidates=candidates)["score"]
    raised = repeating.score(history=history, candidates=candidates)["score"]
    gains = np.array([1, 0, 1, 0, 1, 0])  # the last one is an item, which a post of the same content is not
    np.testing.assert_allclose(raised - plain, (BONUS - usual) * gains, atol=1e-5)


def test_only_the_part_of_the_history_that_counts(repeating: Recommender) -> None:
    length = repeating.assembly.config.train.history_length
    recent = ["p01"] * length
    with_older = repeating.score(history=["p05", *recent], candidates=EVERYTHING)["score"]
    np.testing.assert_allclose(with_older, repeating.score(history=recent, candidates=EVERYTHING)["score"], atol=1e-5)


def test_evaluation_score_recommend_and_search_agree(
    repeating_run: Path, repeating: Recommender, tmp_path: Path
) -> None:
    assembly = repeating.assembly
    cases = Split.load(assembly.catalogue.folder).test
    scorer = ModelScorer(
        assembly.model,
        repeating.catalogue_tensor,
        assembly.histories,
        cases,
        history_length=assembly.config.train.history_length,
        device=assembly.device,
    )
    events = cases.histories(assembly.histories, length=assembly.config.train.history_length)
    for case in (0, 3):
        rows = assembly.histories.item_rows[events.values[events.offsets[case] : events.offsets[case + 1]]]
        past = [str(assembly.catalogue.item_ids[row]) for row in rows]
        expected = repeating.score(history=past, candidates=EVERYTHING)["score"]
        np.testing.assert_allclose(scorer.scores(np.array([case]))[0], expected, atol=1e-5)

    export_run(repeating_run, out=tmp_path / "vectors", device="cpu")
    for user in ("u02", "u08"):
        scored = repeating.score(user_id=user, candidates=EVERYTHING)
        best = scored.sort_values("score", ascending=False, kind="stable")["candidate"].tolist()
        recommended = repeating.recommend(user_id=user, k=NUM_ITEMS)
        assert recommended["item_id"].tolist() == best
        np.testing.assert_allclose(np.sort(recommended["score"]), np.sort(scored["score"]), atol=1e-5)
        found = search_vectors(tmp_path / "vectors", user=user, k=5, device="cpu")
        assert [row[1] for row in found.rows] == best[:5]


def test_search_gives_it_to_what_meets_the_conditions(repeating_run: Path, tmp_path: Path) -> None:
    export_run(repeating_run, out=tmp_path / "vectors", store="faiss", device="cpu")
    everything = search_vectors(tmp_path / "vectors", user="u08", k=NUM_ITEMS, device="cpu")
    dear = search_vectors(tmp_path / "vectors", user="u08", where="price > 12", k=4, device="cpu")
    price = everything.columns.index("price")
    expected = [row[1] for row in everything.rows if float(str(row[price])) > 12]
    assert [row[1] for row in dear.rows] == expected[:4]


@pytest.mark.parametrize("bonus", [-20.0, -3.0, 3.0])
@pytest.mark.parametrize("store", ["none", "faiss"])
def test_search_ranks_as_recommend_does_whatever_the_bonus(
    content_run: Path, tmp_path: Path, bonus: float, store: Literal["none", "faiss"]
) -> None:
    run = with_bonus(content_run, tmp_path / "run", bonus)
    export_run(run, out=tmp_path / "vectors", store=store, device="cpu")
    expected = Recommender.load(run, device="cpu").recommend(user_id="u08", k=6)["item_id"].tolist()
    found = search_vectors(tmp_path / "vectors", user="u08", k=6, device="cpu")
    assert [row[1] for row in found.rows] == expected


def test_unit_vectors_keep_the_proportion_of_the_bonus(content_run: Path, tmp_path: Path) -> None:
    run = with_bonus(content_run, tmp_path / "run", 3.0)
    export_run(run, out=tmp_path / "vectors", normalise=True, device="cpu")
    recommender = Recommender.load(run, device="cpu")
    users = recommender.scoring.users([Request("u08", (), user_id="u08")])
    length = np.linalg.norm(users.vectors[0, 0, : recommender.assembly.model.dim].numpy())
    found = search_vectors(tmp_path / "vectors", user="u08", k=NUM_ITEMS, device="cpu")
    shown = {str(row[1]): float(str(row[2])) for row in found.rows}
    content = recommender.item_embeddings()[:, : recommender.assembly.model.dim]
    cosines = content @ users.vectors[0, 0, : recommender.assembly.model.dim].numpy() / length
    had = {entry.row for entry in users.had[0]}
    for row, item_id in enumerate(EVERYTHING):
        assert shown[item_id] == pytest.approx(cosines[row] + (3.0 / length) * (row in had), abs=1e-4)
