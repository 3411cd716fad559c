"""The best possible forecast of the next click: an exact forward filter over the two kinds a user holds.

The hidden state is (current kind, other kind), a few thousand values, so the posterior given a history is computed
exactly (the forward algorithm of hidden Markov models, Rabiner 1989), for many users at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from data_tools.synthesis.truth import Dynamics, Posts, Truth

Knowledge = Literal["nothing", "caption", "image", "truth"]
"""What a ranker knows of each post beside its appeal: nothing, its subject where it has a caption, its look where it
has a picture, or both for all posts."""
HIDDEN = -1
"""An event of which only this is known: it was a click on a post of the hidden set."""
NOTHING = 1e-9
"""A kind of less weight has no post left; above rounding, below any post's appeal."""


@dataclass(frozen=True)
class Questions:
    """Histories, right-padded, and the instant asked about.

    Args:
        items: row in ``Posts``, or ``HIDDEN``.
        times: seconds.
        lengths: real events of each row.
        asked: seconds at which the next click comes.
        hidden: posts of which ``HIDDEN`` events are made.
    """

    items: Int[np.ndarray, "users time"]
    times: Int[np.ndarray, "users time"]
    lengths: Int[np.ndarray, " users"]
    asked: Int[np.ndarray, " users"]
    hidden: Bool[np.ndarray, " items"]


def memberships(posts: Posts, dynamics: Dynamics, knowledge: Knowledge) -> Float[np.ndarray, "items kinds"]:
    """Return the probability that a post is of a kind, for a ranker of the given knowledge; rows sum to one."""
    everything = knowledge == "truth"
    knows_subject = (posts.captioned & (knowledge == "caption")) | everything
    knows_look = ((posts.pictures > 0) & (knowledge == "image")) | everything
    subject = _one_hot_or_uniform(posts.subjects, dynamics.subjects, knows_subject)
    look = _one_hot_or_uniform(posts.looks, dynamics.looks, knows_look)
    return np.asarray(subject[:, :, None] * look[:, None, :]).reshape(len(posts), dynamics.kinds)


def _one_hot_or_uniform(
    values: Int[np.ndarray, " items"], count: int, known: Bool[np.ndarray, " items"]
) -> Float[np.ndarray, "items count"]:
    return np.where(known[:, None], np.eye(count)[values], 1.0 / count)


def forecast(
    truth: Truth,
    questions: Questions,
    knowledge: Knowledge,
    *,
    wanted: Int[np.ndarray, " users"] | None = None,
) -> Float[np.ndarray, "users items"]:
    """Return the probability that the next click is on each post, given the history; rows sum to one.

    Posts not yet published or already chosen in the history have probability zero.

    Args:
        truth: posts and dynamics.
        questions: histories and the instants asked about.
        knowledge: what is known of each post.
        wanted: the kind each user truly wants next, for an oracle; None infers it from the history.
    """
    posts, dynamics = truth.posts, truth.dynamics
    members = memberships(posts, dynamics, knowledge)
    chances = current_kinds(truth, questions, members) if wanted is None else np.eye(dynamics.kinds)[wanted]
    available = posts.published <= questions.asked[:, None]
    slots = (np.arange(questions.items.shape[1]) < questions.lengths[:, None]) & (questions.items != HIDDEN)
    available[np.nonzero(slots)[0], questions.items[slots]] = False
    weights = posts.appeal * available
    astray, per_kind = _rates(weights @ members, weights.sum(axis=1), noise=dynamics.noise)
    return np.asarray(weights * ((astray * chances).sum(axis=1, keepdims=True) + (per_kind * chances) @ members.T))


def current_kinds(
    truth: Truth, questions: Questions, members: Float[np.ndarray, "items kinds"]
) -> Float[np.ndarray, "users kinds"]:
    """Return the posterior of the kind that each user wants next; rows sum to one."""
    posts, dynamics = truth.posts, truth.dynamics
    weighted = posts.appeal[:, None] * members
    shelf, hidden_shelf = _Shelf.of(posts, weighted), _Shelf.of(posts, weighted * questions.hidden[:, None])
    seen = np.zeros((len(questions.lengths), dynamics.kinds))
    belief = np.tile(dynamics.fresh / dynamics.kinds, (len(questions.lengths), 1, 1))
    for time in range(int(questions.lengths.max(initial=0))):
        rows = np.flatnonzero(questions.lengths > time)
        items, times = questions.items[rows, time], questions.times[rows, time]
        shown = (items != HIDDEN)[:, None]
        left = shelf.at(times) - seen[rows]
        astray, per_kind = _rates(left, left.sum(axis=1), noise=dynamics.noise)
        unshown = hidden_shelf.at(times)
        # A shown post's appeal is the same for every wanted kind, so it is left out.
        likelihood = np.where(
            shown, astray + per_kind * members[items], astray * unshown.sum(axis=1, keepdims=True) + per_kind * unshown
        )
        belief[rows] = _advance(belief[rows] * likelihood[:, :, None], dynamics)
        seen[rows] += np.where(shown, weighted[items], 0.0)
    return np.asarray(belief.sum(axis=2))


@dataclass(frozen=True)
class _Shelf:
    """Weight by kind of all posts published so far, at any time.

    Args:
        published: sorted times.
        totals: weight by kind of the first ``n`` posts.
    """

    published: Int[np.ndarray, " items"]
    totals: Float[np.ndarray, "items_and_one kinds"]

    @classmethod
    def of(cls, posts: Posts, weighted: Float[np.ndarray, "items kinds"]) -> _Shelf:
        order = np.argsort(posts.published, kind="stable")
        none = np.zeros((1, weighted.shape[1]))
        return cls(posts.published[order], np.concatenate([none, np.cumsum(weighted[order], axis=0)]))

    def at(self, times: Int[np.ndarray, " users"]) -> Float[np.ndarray, "users kinds"]:
        return self.totals[np.searchsorted(self.published, times, side="right")]


def _rates(
    left: Float[np.ndarray, "users kinds"], total: Float[np.ndarray, " users"], *, noise: float
) -> tuple[Float[np.ndarray, "users kinds"], Float[np.ndarray, "users kinds"]]:
    """Return, by wanted kind, the chance per unit of weight of straying to a post and of choosing one of the kind."""
    some = left > NOTHING
    per_kind = np.divide(1.0 - noise, left, out=np.zeros_like(left), where=some)
    return np.where(some, noise, 1.0) / total[:, None], per_kind


def _advance(
    belief: Float[np.ndarray, "users kinds kinds"], dynamics: Dynamics
) -> Float[np.ndarray, "users kinds kinds"]:
    """Normalise, swap, drift: the belief before the next click, axes (user, current, other)."""
    belief = belief / belief.sum(axis=(1, 2), keepdims=True)
    belief = (1.0 - dynamics.switch) * belief + dynamics.switch * belief.transpose(0, 2, 1)
    fresh = belief.sum(axis=1, keepdims=True) * dynamics.fresh
    return np.asarray((1.0 - dynamics.drift) * belief + dynamics.drift * fresh)
