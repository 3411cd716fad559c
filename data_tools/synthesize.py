"""Write a raw feed with a known truth, to try the whole pipeline on and to know what the best possible figures are.

What a user likes is a *conjunction*: a subject, which only captions show, in a look (palette and pattern), which only
pictures show.  Whoever reads one of the two knows little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from data_tools.synthesis.captions import SUBJECTS
from data_tools.synthesis.clicks import FEWEST_CLICKS, draw_clicks, draw_posts
from data_tools.synthesis.figures import Figures, figures_of_last_clicks
from data_tools.synthesis.files import write_interactions, write_items, write_pictures
from data_tools.synthesis.patterns import LOOKS
from data_tools.synthesis.truth import TRUTH_JSON, Clicks, Dynamics, Truth, save_truth
from mmrec.errors import ConfigError, FeedError
from mmrec.storage import atomic_folder

TRUTH: Final = "truth"
"""Folder of a synthetic feed that holds its truth."""
START: Final = 1_735_689_600
"""2025-01-01T00:00:00Z, the first second of the clicks."""
POSTS_STREAM, CLICKS_STREAM = 0, 1

Progress = Callable[[int, int], None]
"""Called with posts drawn and posts in all."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeOptions:
    """Size and difficulty of a synthetic feed.

    Args:
        items: posts.
        users: users.
        events: clicks of a user on average, at least 4.
        days: length of the feed in days.
        seed: of everything; one seed gives one feed, byte for byte.
        side: pixels a side of a picture.
        subjects: number of subjects, 2 to 10.
        looks: number of looks, 2 to 10.
        noise: share of clicks that have nothing to do with taste.
        switch: probability that a user turns to their other kind after a click.
        drift: probability that a user gives up the current kind for a fresh one after a click.
        popularity: exponent of the Zipf law of appeal; 0 makes all posts equally appealing.
        difficulty: 0 (plain pictures) to 1 (noisy, small, off-colour, in borrowed patterns).
        late_share: share of posts published in the last third of the time, at most 0.4.
        without_picture: share of posts with a caption only.
        without_caption: share of posts with a picture only.
        two_pictures: share of posts with two pictures, both in its look.
        bad_rows: faulty rows of ``interactions.csv`` and, a third as many, posts without any content: all to be refused.
        bad_pictures: damaged picture files, among the posts counted as without picture.

    Raises:
        ConfigError: a value is out of range.
    """

    items: int = 1200
    users: int = 1500
    events: float = 14.0
    days: int = 90
    seed: int = 0
    side: int = 96
    subjects: int = 8
    looks: int = 8
    noise: float = 0.1
    switch: float = 0.1
    drift: float = 0.03
    popularity: float = 0.45
    difficulty: float = 0.1
    late_share: float = 0.2
    without_picture: float = 0.02
    without_caption: float = 0.02
    two_pictures: float = 0.05
    bad_rows: int = 9
    bad_pictures: int = 3

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "items": (16, 10_000_000),
            "users": (1, 10_000_000),
            "events": (FEWEST_CLICKS, 30),
            "days": (2, 10_000),
            "seed": (0, 2**63 - 1),
            "side": (16, 1024),
            "subjects": (2, len(SUBJECTS)),
            "looks": (2, len(LOOKS)),
            "popularity": (0, 3),
            "late_share": (0, 0.4),
            "without_picture": (0, 0.3),
            "without_caption": (0, 0.3),
            "two_pictures": (0, 0.3),
            "bad_rows": (0, 1_000_000),
            "bad_pictures": (0, round(self.items * self.without_picture)),
        }
        for field in fields(self):
            low, high = limits.get(field.name, (0, 1))
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise ConfigError(f"{low} <= {field.name} <= {high}", got=str(value), where="synthesize")

    @property
    def dynamics(self) -> Dynamics:
        """How tastes move and choose."""
        return Dynamics(
            subjects=self.subjects, looks=self.looks, noise=self.noise, switch=self.switch, drift=self.drift
        )


@dataclass(frozen=True)
class SynthesisReport:
    """What was written.

    Args:
        feed: the raw feed.
        truth: the folder of its truth, for ``BayesRanker``.
        posts: posts, faulty ones not counted.
        clicks: interactions, faulty ones not counted.
        pictures: readable pictures.
        figures: the best possible figures at every user's last click, by what the ranker knows; see ``figures.py``.
    """

    feed: Path
    truth: Path
    posts: int
    clicks: int
    pictures: int
    figures: Figures


def synthesize(out: Path, *, options: SynthesizeOptions, progress: Progress | None = None) -> SynthesisReport:
    """Write a raw feed (``items.csv``, ``interactions.csv``, ``images/``) and its truth (``truth/``) to ``out``.

    Args:
        out: a new or empty folder, or an earlier synthetic feed, which is replaced.
        options: size and difficulty.
        progress: told of every hundredth post drawn.

    Raises:
        FeedError: ``out`` holds something other than a synthetic feed.
    """
    _refuse_foreign(out)
    truth, clicks = draw_truth(options)
    posts = truth.posts
    figures = figures_of_last_clicks(truth, clicks)
    with atomic_folder(out) as partial:
        images = write_pictures(
            partial,
            posts,
            looks=options.looks,
            side=options.side,
            difficulty=options.difficulty,
            damaged=options.bad_pictures,
            seed=options.seed,
            progress=progress,
        )
        write_items(partial, posts, images, empty=options.bad_rows // 3, seed=options.seed)
        write_interactions(partial, posts, clicks, faulty=options.bad_rows, seed=options.seed)
        save_truth(
            partial / TRUTH,
            truth,
            clicks,
            subject_names=[subject.name for subject in SUBJECTS[: options.subjects]],
            look_names=[look.name for look in LOOKS[: options.looks]],
            about={"options": asdict(options), "figures": figures},
        )
    return SynthesisReport(
        feed=out,
        truth=out / TRUTH,
        posts=len(posts),
        clicks=len(clicks.items),
        pictures=int(posts.pictures.sum()),
        figures=figures,
    )


def draw_truth(options: SynthesizeOptions) -> tuple[Truth, Clicks]:
    """Draw what posts are and who clicked what, without pictures or captions."""
    posts = draw_posts(
        items=options.items,
        dynamics=options.dynamics,
        zipf=options.popularity,
        start=START,
        days=options.days,
        late_share=options.late_share,
        without_caption=options.without_caption,
        without_picture=options.without_picture,
        two_pictures=options.two_pictures,
        generator=np.random.default_rng([options.seed, POSTS_STREAM]),
    )
    clicks = draw_clicks(
        posts,
        options.dynamics,
        users=options.users,
        mean=options.events,
        start=START,
        days=options.days,
        generator=np.random.default_rng([options.seed, CLICKS_STREAM]),
    )
    return Truth(options.dynamics, posts), clicks


def _refuse_foreign(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / TRUTH / TRUTH_JSON).is_file():
        raise FeedError(
            "a new or empty folder, or an earlier synthetic feed",
            got="other files",
            where=str(out),
            fix="Choose another --out.",
        )
