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
that much of posts and see one user's history; ``oracle`` knows the wanted kind itself.  Candidates exist and are unseen.
On posts that training saw, a learned ranker of one modality may pass ``caption`` or ``image``: other users' clicks tell
it what the missing part is.  Nothing can pass ``truth`` in expectation."""
KNOWN: Final[tuple[Knowledge, ...]] = ("nothing", "caption", "image", "truth")
USERS_AT_ONCE = 64
DIGITS = 4


def figures_of_last_clicks(truth: Truth, clicks: Clicks) -> Figures:
    """Rank every user's last click by each ranker: HR@10 and NDCG@10."""
    num_users = len(clicks.user_ids)
    ranks: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in (*KNOWN, "oracle")}
    for start in range(0, num_users, USERS_AT_ONCE):
        users = np.arange(start, min(start + USERS_AT_ONCE, num_users))
        asked, last = last_click_questions(truth, clicks, users), clicks.offsets[users + 1] - 1
        for knowledge in KNOWN:
            ranks[knowledge].append(_ranks(forecast(truth, asked, knowledge), clicks.items[last]))
        ideal = forecast(truth, asked, "truth", wanted=clicks.current[last])
        ranks["oracle"].append(_ranks(ideal, clicks.items[last]))
    return {name: _figures(np.concatenate(pieces)) for name, pieces in ranks.items()}


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


def _figures(rank: Int[np.ndarray, " users"]) -> dict[str, float]:
    hit = rank <= 10
    return {
        "HR@10": round(float(hit.mean()), DIGITS),
        "NDCG@10": round(float((hit / np.log2(1 + rank)).mean()), DIGITS),
    }
