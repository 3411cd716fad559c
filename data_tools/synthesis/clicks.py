"""Draw posts and clicks from the truth."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from data_tools.synthesis.truth import Clicks, Dynamics, Posts

DAY = 86_400
FEWEST_CLICKS = 4
MOST_CLICKS = 40
LATE_FROM, LATE_TO = 0.7, 0.98
"""Late posts are published in this stretch of the feed's time."""


def draw_posts(
    *,
    items: int,
    dynamics: Dynamics,
    zipf: float,
    start: int,
    days: int,
    late_share: float,
    without_caption: float,
    without_picture: float,
    two_pictures: float,
    generator: np.random.Generator,
) -> Posts:
    """Draw what each post is: kinds in equal numbers, appeal by ``rank ** -zipf``, content parts by share."""
    kinds = generator.permutation(np.arange(items) % dynamics.kinds)
    appeal = generator.permutation(np.arange(1, items + 1, dtype=np.float64) ** -zipf)
    late = generator.permutation(items) < round(items * late_share)
    early_days = generator.uniform(-days, 0.0, items)
    late_days = generator.uniform(LATE_FROM * days, LATE_TO * days, items)
    order = generator.permutation(items)
    bare, silent = round(items * without_picture), round(items * without_caption)
    pictures = np.ones(items, np.int64)
    pictures[order[:bare]] = 0
    pictures[order[bare + silent : bare + silent + round(items * two_pictures)]] = 2
    captioned = np.ones(items, np.bool_)
    captioned[order[bare : bare + silent]] = False
    width = max(4, len(str(items)))
    return Posts(
        item_ids=np.array([f"p{row:0{width}d}" for row in range(items)], dtype=object),
        subjects=kinds // dynamics.looks,
        looks=kinds % dynamics.looks,
        appeal=appeal / appeal.mean(),
        published=start + (np.where(late, late_days, early_days) * DAY).astype(np.int64),
        captioned=captioned,
        pictures=pictures,
    )


def draw_clicks(
    posts: Posts, dynamics: Dynamics, *, users: int, mean: float, start: int, days: int, generator: np.random.Generator
) -> Clicks:
    """Draw every user's clicks; ``mean`` clicks a user, no post twice, no post before it is published."""
    lengths = _draw_lengths(users, mean=mean, most=min(MOST_CLICKS, len(posts) // 2), generator=generator)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = _draw_times(lengths, start=start, days=days, generator=generator)
    current, other = _draw_tastes(lengths, dynamics, generator)
    slots = np.arange(lengths.max()) < lengths[:, None]
    padded_times = np.zeros(slots.shape, np.int64)
    padded_times[slots] = times
    items = _draw_items(posts, dynamics, current, padded_times, slots, generator)
    width = max(4, len(str(users)))
    return Clicks(
        user_ids=np.array([f"u{row:0{width}d}" for row in range(users)], dtype=object),
        offsets=offsets,
        items=items[slots],
        times=times,
        current=current[slots],
        other=other[slots],
    )


def _draw_lengths(users: int, *, mean: float, most: int, generator: np.random.Generator) -> Int[np.ndarray, " users"]:
    rates = generator.gamma(2.0, (mean - FEWEST_CLICKS) / 2, users)
    return np.minimum(FEWEST_CLICKS + generator.poisson(rates), most).astype(np.int64)


def _draw_times(
    lengths: Int[np.ndarray, " users"], *, start: int, days: int, generator: np.random.Generator
) -> Int[np.ndarray, " events"]:
    joined = generator.uniform(0.0, 0.3, len(lengths))
    end = days * DAY - MOST_CLICKS
    pieces = [
        # Adding the position makes equal seconds differ, so that every user's clicks have an order.
        np.sort(generator.integers(int(first * days * DAY), end, length)) + np.arange(length)
        for first, length in zip(joined, lengths, strict=True)
    ]
    return start + np.concatenate(pieces).astype(np.int64)


def _draw_tastes(
    lengths: Int[np.ndarray, " users"], dynamics: Dynamics, generator: np.random.Generator
) -> tuple[Int[np.ndarray, "users time"], Int[np.ndarray, "users time"]]:
    shape = (len(lengths), int(lengths.max()))
    current, other = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    cumulative = np.cumsum(dynamics.fresh, axis=0)
    now_other = generator.integers(dynamics.kinds, size=shape[0])
    now = _draw_fresh(cumulative, now_other, generator)
    for time in range(shape[1]):
        current[:, time], other[:, time] = now, now_other
        swapped = generator.random(shape[0]) < dynamics.switch
        now, now_other = np.where(swapped, now_other, now), np.where(swapped, now, now_other)
        drifted = generator.random(shape[0]) < dynamics.drift
        now = np.where(drifted, _draw_fresh(cumulative, now_other, generator), now)
    return current, other


def _draw_fresh(
    cumulative: Float[np.ndarray, "kinds kinds"], other: Int[np.ndarray, " users"], generator: np.random.Generator
) -> Int[np.ndarray, " users"]:
    chance = generator.random(len(other)) * cumulative[-1, other]
    return np.asarray((cumulative[:, other] <= chance).sum(axis=0), dtype=np.int64)


def _draw_items(
    posts: Posts,
    dynamics: Dynamics,
    current: Int[np.ndarray, "users time"],
    times: Int[np.ndarray, "users time"],
    slots: Bool[np.ndarray, "users time"],
    generator: np.random.Generator,
) -> Int[np.ndarray, "users time"]:
    kinds = posts.subjects * dynamics.looks + posts.looks
    unseen = np.ones((len(slots), len(posts)), np.bool_)
    items = np.zeros(slots.shape, np.int64)
    for time in range(slots.shape[1]):
        stray, chance = generator.random(len(slots)) < dynamics.noise, generator.random(len(slots))
        rows = np.flatnonzero(slots[:, time])
        weights = posts.appeal * ((posts.published <= times[rows, time, None]) & unseen[rows])
        wanted = weights * (stray[rows, None] | (kinds == current[rows, time, None]))
        # A kind of which nothing is left is strayed from.
        totals = np.cumsum(np.where(wanted.any(axis=1, keepdims=True), wanted, weights), axis=1)
        chosen = (totals <= chance[rows, None] * totals[:, -1:]).sum(axis=1)
        items[rows, time] = chosen
        unseen[rows, chosen] = False
    return items
