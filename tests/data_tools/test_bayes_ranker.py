"""The Bayes-optimal ranker of a prepared feed says what the truth says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_tools.prepare import PrepareOptions, prepare
from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from data_tools.synthesis.bayes import BayesRanker
from data_tools.synthesize import SynthesizeOptions, synthesize
from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import TEST_COLD, VALIDATION_COLD, Split

SMALL = SynthesizeOptions(items=96, users=40, side=24, subjects=4, looks=4, events=8.0, without_picture=0.06)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synthetic") / "feed", options=SMALL).feed


@pytest.fixture(scope="module")
def prepared(feed: Path) -> Path:
    """The small feed, prepared; its faults are a larger share of it than a real feed may have."""
    folder = feed.parent / "prepared"
    prepare(feed, folder, options=PrepareOptions(caption=("title", "description"), max_bad=0.2, workers=1))
    write_split(folder, name="last", kind="leave_last_out", choices=SplitChoices())
    write_split(folder, name="cold", kind="cold_items", choices=SplitChoices(cold_share=0.3))
    return folder


def places(scores: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    own = scores[torch.arange(len(targets)), torch.from_numpy(targets)]
    return (scores >= own[:, None]).sum(dim=1).numpy()


class TestBayesRanker:
    def test_preparing_refuses_the_faults_and_keeps_every_true_click(self, feed: Path, prepared: Path) -> None:
        histories, catalogue = Histories.load(prepared), Catalogue.load(prepared)
        events = pd.read_parquet(feed / "truth" / "events.parquet")
        assert histories.num_events == len(events)
        for user_id, clicks in events.groupby("user_id"):
            user = histories.row(user_id)
            own = slice(histories.offsets[user], histories.offsets[user + 1])
            assert list(catalogue.item_ids[histories.item_rows[own]]) == list(clicks["item_id"])
            assert list(histories.timestamps[own] // 1000) == list(clicks["timestamp"])
        assert Split.load(prepared).kind == "global_time"

    def test_it_answers_last_clicks_as_the_report_says(self, feed: Path, prepared: Path) -> None:
        """Ranking the prepared feed by its scores gives the figures of ``truth.json``, which never saw that feed."""
        catalogue, histories = Catalogue.load(prepared), Histories.load(prepared)
        cases = Split.load(prepared, "last").part("test")
        report = pd.read_json(feed / "truth" / "truth.json", typ="series")["figures"]
        for knowledge in ("nothing", "caption", "image", "truth"):
            ranker = BayesRanker(feed / "truth", catalogue, histories, cases, knowledge=knowledge)
            scores = ranker.scores(np.arange(len(cases)))
            rank = places(scores, np.asarray(histories.item_rows)[cases.target_starts])
            assert np.mean(rank <= 10) == pytest.approx(report[knowledge]["HR@10"], abs=1e-4)
            torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(cases)))

    def test_a_case_scores_the_same_alone_and_among_others(self, feed: Path, prepared: Path) -> None:
        cases = Split.load(prepared).part("test")
        ranker = BayesRanker(feed / "truth", Catalogue.load(prepared), Histories.load(prepared), cases)
        together = ranker.scores(np.arange(len(cases)))
        backwards = ranker.scores(np.arange(len(cases))[::-1].copy())
        torch.testing.assert_close(backwards.flip(0), together)
        torch.testing.assert_close(ranker.scores(np.array([2])), together[2:3])

    def test_of_cold_events_it_knows_only_that_they_happened(self, feed: Path, prepared: Path) -> None:
        """Swapping the cold posts of a history for other cold posts changes nothing."""
        catalogue, histories = Catalogue.load(prepared), Histories.load(prepared)
        cases = Split.load(prepared, "cold").part("test")
        other = np.arange(len(catalogue))
        for role in (VALIDATION_COLD, TEST_COLD):
            cold = np.flatnonzero(cases.item_roles == role)
            other[cold] = np.roll(cold, 1)
        swapped = replace(histories, item_rows=other[histories.item_rows])
        assert (swapped.item_rows != histories.item_rows).any()
        asked = np.arange(len(cases))
        before = BayesRanker(feed / "truth", catalogue, histories, cases).scores(asked)
        after = BayesRanker(feed / "truth", catalogue, swapped, cases).scores(asked)
        torch.testing.assert_close(before, after)

    def test_the_truth_of_another_feed_is_refused(self, tmp_path: Path, prepared: Path) -> None:
        cases = Split.load(prepared).part("test")
        with pytest.raises(FeedError, match=r"truth\.json"):
            BayesRanker(tmp_path, Catalogue.load(prepared), Histories.load(prepared), cases)
