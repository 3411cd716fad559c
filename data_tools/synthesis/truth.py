"""The truth behind a synthetic feed: what each post is, how tastes move, what every user wanted at every click."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool, Float, Int

from mmrec import columns
from mmrec.errors import FeedError
from mmrec.storage import read_json, write_json

TRUTH_JSON = "truth.json"
TRUTH_ITEMS = "items.parquet"
TRUTH_EVENTS = "events.parquet"


@dataclass(frozen=True)
class Dynamics:
    """How a taste moves and how it chooses.  A *kind* is a pair: ``subject * looks + look``.

    A user holds two kinds that share neither subject nor look: the *current* one and the *other* one.  A click strays
    with probability ``noise`` (any post that exists and is unseen, by appeal); otherwise it goes to such a post of the
    current kind, by appeal; where nothing of that kind is left, it strays.  After each click the two swap with probability ``switch``; then, with probability
    ``drift``, the current one is given up for a fresh one.

    Args:
        subjects: number of subjects (shown by captions).
        looks: number of looks (shown by pictures).
        noise: probability that a click strays.
        switch: probability that the two kinds swap after a click.
        drift: probability that the current kind is replaced after a click.
    """

    subjects: int
    looks: int
    noise: float
    switch: float
    drift: float

    @property
    def kinds(self) -> int:
        """Number of pairs."""
        return self.subjects * self.looks

    @cached_property
    def fresh(self) -> Float[np.ndarray, "kinds kinds"]:
        """Probability of a fresh current kind (row) given the other kind (column); columns sum to one."""
        subject, look = np.divmod(np.arange(self.kinds), self.looks)
        apart = (subject[:, None] != subject) & (look[:, None] != look)
        return np.asarray(apart / apart.sum(axis=0))


@dataclass(frozen=True)
class Posts:
    """What each post truly is, in the order of ``items.csv``.

    Args:
        item_ids: ids as text.
        subjects: index of the subject.
        looks: index of the look.
        appeal: positive weight, mean one, that has nothing to do with content.
        published: seconds since 1970 from which the post can be chosen.
        captioned: whether the post has a caption.
        pictures: number of readable pictures.
    """

    item_ids: npt.NDArray[np.object_]
    subjects: Int[np.ndarray, " items"]
    looks: Int[np.ndarray, " items"]
    appeal: Float[np.ndarray, " items"]
    published: Int[np.ndarray, " items"]
    captioned: Bool[np.ndarray, " items"]
    pictures: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Clicks:
    """Every click, by user and then time; user ``u`` owns ``offsets[u]`` to ``offsets[u + 1]``.

    Args:
        user_ids: ids as text, shape (users,).
        offsets: shape (users + 1,).
        items: row in ``Posts``.
        times: seconds since 1970, strictly increasing within a user.
        current: the kind that the user was after at this click.
        other: the kind that the user held beside it.
    """

    user_ids: npt.NDArray[np.object_]
    offsets: Int[np.ndarray, " users_and_one"]
    items: Int[np.ndarray, " events"]
    times: Int[np.ndarray, " events"]
    current: Int[np.ndarray, " events"]
    other: Int[np.ndarray, " events"]

    @property
    def lengths(self) -> Int[np.ndarray, " users"]:
        """Clicks of every user."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Truth:
    """Everything that a synthetic feed was made from."""

    dynamics: Dynamics
    posts: Posts

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read the truth that :func:`save_truth` wrote.

        Raises:
            FeedError: the folder holds no truth.
        """
        if not (folder / TRUTH_JSON).is_file():
            raise FeedError(
                "the truth of a synthetic feed",
                got=f"a folder without {TRUTH_JSON}",
                where=str(folder),
                fix="Give the folder 'truth' of a feed made by: mmrec-data synthesize.",
            )
        about = read_json(folder / TRUTH_JSON)["dynamics"]
        if not isinstance(about, dict):
            raise FeedError("an object under 'dynamics'", got=repr(about), where=str(folder / TRUTH_JSON))
        dynamics = Dynamics(
            subjects=int(about["subjects"]),
            looks=int(about["looks"]),
            noise=float(about["noise"]),
            switch=float(about["switch"]),
            drift=float(about["drift"]),
        )
        table = pd.read_parquet(folder / TRUTH_ITEMS)
        posts = Posts(
            item_ids=table[columns.ITEM_ID].to_numpy(dtype=object),
            subjects=table["subject_row"].to_numpy(dtype=np.int64),
            looks=table["look_row"].to_numpy(dtype=np.int64),
            appeal=table["appeal"].to_numpy(dtype=np.float64),
            published=table[columns.PUBLISHED_AT].to_numpy(dtype=np.int64),
            captioned=table["captioned"].to_numpy(dtype=np.bool_),
            pictures=table["pictures"].to_numpy(dtype=np.int64),
        )
        return cls(dynamics, posts)


def save_truth(
    folder: Path,
    truth: Truth,
    clicks: Clicks,
    *,
    subject_names: list[str],
    look_names: list[str],
    about: dict[str, object],
) -> None:
    """Write ``truth.json`` (``about`` and the dynamics), ``items.parquet`` and ``events.parquet``."""
    posts = truth.posts
    items = {
        columns.ITEM_ID: posts.item_ids,
        "subject": [subject_names[row] for row in posts.subjects],
        "look": [look_names[row] for row in posts.looks],
        "subject_row": posts.subjects,
        "look_row": posts.looks,
        "appeal": posts.appeal,
        columns.PUBLISHED_AT: posts.published,
        "captioned": posts.captioned,
        "pictures": posts.pictures,
    }
    events = {
        columns.USER_ID: np.repeat(clicks.user_ids, clicks.lengths),
        columns.ITEM_ID: posts.item_ids[clicks.items],
        columns.TIMESTAMP: clicks.times,
        "current_kind": clicks.current,
        "other_kind": clicks.other,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(items).to_parquet(folder / TRUTH_ITEMS, index=False)
    pd.DataFrame(events).to_parquet(folder / TRUTH_EVENTS, index=False)
    names: dict[str, object] = {"subjects": subject_names, "looks": look_names}
    write_json(folder / TRUTH_JSON, {**about, "dynamics": asdict(truth.dynamics), "names": names})
