"""The Bayes-optimal ranker of a prepared synthetic feed, in the form that an evaluation ranks with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from data_tools.synthesis.filtering import HIDDEN, Knowledge, Questions, forecast
from data_tools.synthesis.truth import Truth
from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import WARM, Cases

CASES_AT_ONCE = 64


class BayesRanker:
    """Scores every post of a prepared synthetic feed by its probability of being the next click.

    Of the history it sees what a model sees: the events of warm posts before the question.  Of the events that a
    ``cold_items`` split hides it knows that they happened, which no model knows, so there its figure is an upper bound;
    elsewhere no ranker of the same knowledge can do better in expectation.  Where a case has several targets, it ranks
    for the first.

    Args:
        truth: the folder ``truth`` of the raw feed.
        catalogue: of the prepared feed.
        histories: of the prepared feed.
        cases: the questions.
        knowledge: what it knows of posts: ``truth`` (default), ``caption``, ``image`` or ``nothing`` (appeal only).

    Raises:
        FeedError: the folder holds no truth, or the truth of another feed.
    """

    def __init__(
        self,
        truth: Path,
        catalogue: Catalogue,
        histories: Histories,
        cases: Cases,
        *,
        knowledge: Knowledge = "truth",
    ) -> None:
        self._truth = Truth.load(truth)
        self._histories, self._cases, self._knowledge = histories, cases, knowledge
        rows = {str(item_id): row for row, item_id in enumerate(self._truth.posts.item_ids)}
        self._post_rows = np.array([rows.get(str(item_id), -1) for item_id in catalogue.item_ids], dtype=np.int64)
        if (self._post_rows < 0).sum() * 2 > len(catalogue) or not histories.has_time:
            raise FeedError(
                "the prepared feed of this truth, with its times",
                got=f"{int((self._post_rows < 0).sum())} of {len(catalogue)} posts unknown to the truth",
                where=str(truth),
                fix="Give the truth of the feed that was prepared.",
            )

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Return the probability of each post of the catalogue for the given cases; posts out of reach get zero."""
        pieces = [
            self._score(self._cases.take(cases[start : start + CASES_AT_ONCE]))
            for start in range(0, len(cases), CASES_AT_ONCE)
        ]
        return torch.cat(pieces) if pieces else torch.zeros(0, len(self._post_rows))

    def _score(self, cases: Cases) -> Float[Tensor, "cases items"]:
        probabilities = forecast(self._truth, self._questions(cases), self._knowledge)
        known = self._post_rows >= 0
        scores = np.zeros((len(cases), len(self._post_rows)), np.float32)
        scores[:, known] = probabilities[:, self._post_rows[known]]
        return torch.from_numpy(scores)

    def _questions(self, cases: Cases) -> Questions:
        histories = self._histories
        starts = histories.offsets[cases.user_rows]
        lengths = np.asarray(cases.history_stops - starts, dtype=np.int64)
        positions = starts[:, None] + np.arange(lengths.max(initial=0))
        real = np.arange(lengths.max(initial=0)) < lengths[:, None]
        rows = np.asarray(histories.item_rows)[np.where(real, positions, 0)]
        times = np.asarray(histories.timestamps)[np.where(real, positions, 0)] // 1000
        shown = cases.item_roles[rows] == WARM
        hidden = np.zeros(len(self._truth.posts), np.bool_)
        cold = self._post_rows[cases.item_roles != WARM]
        hidden[cold[cold >= 0]] = True
        return Questions(
            items=np.where(shown, self._post_rows[rows], HIDDEN),
            times=times,
            lengths=lengths,
            asked=cases.times(histories) // 1000,
            hidden=hidden,
        )
