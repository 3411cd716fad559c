"""Another order for candidates that were scored exactly: newer, more different, or by some modalities more than others.

Of a pool of candidates with relevance ``r`` (the model's score; see :func:`kept_shares` for what weights of modalities
make of it)

    value(i) = (1 - freshness) * (r(i) - min r) / (max r - min r) + freshness * newer(i)

where ``newer(i)`` is the share of the other candidates that are older, and then, one after the other, whoever has most of

    (1 - diversity) * value(i) - diversity * max over the chosen j of max(0, cosine(i, j))

which is maximal marginal relevance (Carbonell and Goldstein, 1998).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from mmrec.search.index import Rows, Vectors

UNKNOWN = np.iinfo(np.int64).min
"""Time of a post that nothing places in time: older than all others."""
FACTOR, LEAST = 10, 200
Values = npt.NDArray[np.float64]


def pool_size(k: int, *, most: int) -> int:
    """Return how many candidates are put in order for the k best: ten for each, 200 at the least, ``most`` at the most."""
    return max(k, min(max(FACTOR * k, LEAST), most))


def newer_shares(times: npt.NDArray[np.int64]) -> Values:
    """Return for every post the share of the others that are older, ties counting half; 0 where the time is unknown.

    Args:
        times: shape (posts,), when each was published, or ``UNKNOWN``.  Only their order counts, so that a feed of
            years ago and one of today are treated alike.
    """
    ordered = np.sort(times)
    below = np.searchsorted(ordered, times, side="left")
    equal = np.searchsorted(ordered, times, side="right") - below - 1
    shares = (below + 0.5 * equal) / max(len(times) - 1, 1)
    return np.where(times == UNKNOWN, 0.0, shares)


def values_of(relevance: npt.NDArray[np.floating], times: npt.NDArray[np.int64], *, freshness: float) -> Values:
    """Return what candidates are worth between 0 and 1, shape (posts,); equal relevance counts as nothing.

    Args:
        relevance: shape (posts,), finite scores.
        times: shape (posts,), see :func:`newer_shares`.
        freshness: between 0 (relevance alone) and 1 (age alone).
    """
    scores = relevance.astype(np.float64)
    spread = float(np.ptp(scores)) if len(scores) else 0.0
    scaled = (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))
    return (1.0 - freshness) * scaled + freshness * newer_shares(times)


def marginal_order(values: Values, vectors: Vectors, *, diversity: float, k: int) -> Rows:
    """Return the places of the k candidates that are chosen, one after the other; without diversity the best by value.

    Args:
        values: shape (posts,), between 0 and 1.
        vectors: shape (posts, dim), of their content; compared by the cosine.
        diversity: between 0 (value alone) and 1 (after the first, difference alone); of equals the first given.
        k: candidates wanted.
    """
    order = np.argsort(-values, kind="stable")
    if diversity == 0:
        return order[:k]
    units = vectors[order] / np.maximum(np.linalg.norm(vectors[order], axis=1, keepdims=True), 1e-12)
    worth = (1.0 - diversity) * values[order]
    nearest = np.zeros(len(order))
    chosen = np.zeros(min(k, len(order)), dtype=np.int64)
    for step in range(len(chosen)):
        best = int(np.argmax(worth - diversity * nearest)) if step else 0
        chosen[step], worth[best] = best, -np.inf
        np.maximum(nearest, units @ units[best], out=nearest)
    return order[chosen]


def kept_shares(
    present: Sequence[str], weights: Mapping[str, float], *, content: frozenset[str]
) -> dict[tuple[str, ...], float]:
    """Return how much each way of reading a post counts: modalities that are kept, to a share; all shares make 1.

    The relevance of a post is the sum of its scores by these ways, times their shares: the score that is expected where
    every modality is kept with the probability that is its weight, as training hides modalities.  As in training, a
    post never loses its last content.

    Args:
        present: modalities that the post has and the model reads.
        weights: modality to a weight between 0 and 1; 1 where there is none.
        content: the modalities that are content (no item id).
    """
    shares: dict[tuple[str, ...], float] = {}
    for drawn in product((True, False), repeat=len(present)):
        share = 1.0
        for name, stays in zip(present, drawn, strict=True):
            weight = weights.get(name, 1.0)
            share *= weight if stays else 1.0 - weight
        if share > 0:
            left = {name for name, stays in zip(present, drawn, strict=True) if stays}
            kept = tuple(name for name in present if name in left or (name in content and not left & content))
            # An item that is known by its id alone keeps that.
            key = kept or tuple(present)
            shares[key] = shares.get(key, 0.0) + share
    return shares


def nearest_posts(items: Vectors, history: Vectors, *, n: int) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return for every item the n nearest posts of a history, nearest first: places and cosines, shape (items, n).

    Args:
        items: shape (items, dim), of their content.
        history: shape (posts, dim), likewise; where there are fewer than n, all of them are returned.
        n: posts wanted.
    """
    one, other = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (items, history))
    cosines = np.clip(one @ other.T, -1, 1).astype(np.float32)
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :n]
    return places, np.take_along_axis(cosines, places, axis=1)
