"""The best possible figures of a synthetic feed, at every user's last click."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from data_tools.synthesis.filtering import Knowledge, Questions, forecast
from data_tools.synthesis.truth import Clicks, Truth

Figures = dict[str, dict[str, float]]
"""Ranker to metric to value.  Rankers: ``nothing``, ``caption``, ``image`` and ``truth`` (the Bayes-optimal one) know
that much of posts and see the history; ``oracle`` knows the wanted kind itself.  Candidates exist and are unseen."""
KNOWN: Final[tuple[Knowledge, ...]] = ("nothing", "caption", "image", "truth")
USERS_AT_ONCE = 64
DIGITS = 4


def figures_of_last_clicks(truth: Truth, clicks: Clicks) -> Figures:
    """Rank every user's last click by each ranker: HR@10 and NDCG@10."""
    starts = np.arange(0, len(clicks.user_ids), USERS_AT_ONCE)
    users = [np.arange(start, min(start + USERS_AT_ONCE, len(clicks.user_ids))) for start in starts]
    questions = [last_click_questions(truth, clicks, part) for part in users]
    last = [clicks.items[clicks.offsets[part + 1] - 1] for part in users]
    figures = {
        knowledge: _figures(
            [_ranks(forecast(truth, asked, knowledge), items) for asked, items in zip(questions, last, strict=True)]
        )
        for knowledge in KNOWN
    }
    oracle = [
        _ranks(forecast(truth, asked, "truth", wanted=clicks.current[clicks.offsets[part + 1] - 1]), items)
        for part, asked, items in zip(users, questions, last, strict=True)
    ]
    return {**figures, "oracle": _figures(oracle)}


def last_click_questions(truth: Truth, clicks: Clicks, users: Int[np.ndarray, " users"]) -> Questions:
    """Return, for each user, all clicks but the last as history and the time of the last one as the question."""
    lengths = clicks.lengths[users] - 1
    real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    positions = np.where(real, clicks.offsets[users, None] + np.arange(real.shape[1]), 0)
    return Questions(
        items=clicks.items[positions],
        times=clicks.times[positions],
        lengths=lengths,
        asked=clicks.times[clicks.offsets[users + 1] - 1],
        hidden=np.zeros(len(truth.posts), np.bool_),
    )


def _ranks(scores: Float[np.ndarray, "users items"], targets: Int[np.ndarray, " users"]) -> Int[np.ndarray, " users"]:
    """Return ranks from one; ties count against the target."""
    own = scores[np.arange(len(targets)), targets]
    return np.asarray((scores >= own[:, None]).sum(axis=1), dtype=np.int64)


def _figures(ranks: list[npt.NDArray[np.int64]]) -> dict[str, float]:
    rank = np.concatenate(ranks)
    hit = rank <= 10
    return {
        "HR@10": round(float(hit.mean()), DIGITS),
        "NDCG@10": round(float((hit / np.log2(1 + rank)).mean()), DIGITS),
    }
