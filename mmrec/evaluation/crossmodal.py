"""A caption finds its own picture, and a picture its own caption: what one vector space is worth, without any user.

A post's caption alone is compared with the pictures alone of many posts, its own among them, and the other way round.
Posts that share the very same caption or picture cannot be told apart and are equally right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mmrec.evaluation.ridge import fit_ridge
from mmrec.evaluation.significance import BOOTSTRAP, Bootstrap, Difference, Estimate, differences, estimates
from mmrec.evaluation.slices import training_counts
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import WARM, Cases, Split

CAPTION_TO_PICTURE, PICTURE_TO_CAPTION = "caption to picture", "picture to caption"
FROZEN = "frozen features + ridge"
CUTOFFS = (1, 10, 50)
MIN_POSTS, MIN_UNSEEN = 20, 100
MAX_QUESTIONS, MAX_FITTED = 2000, 20_000

Scores = Mapping[str, Float[Tensor, "questions candidates"]]
"""Direction to the score of every candidate for every question; the candidates are the questions' own posts."""


@dataclass(frozen=True)
class Questions:
    """Which posts are asked about.

    Args:
        rows: shape (questions,), item rows, ascending; they are the candidates too.
        others: shape (others,), the other posts with a caption and a picture, from which a common space may be learnt.
        unseen: whether training saw none of the posts asked about.
    """

    rows: npt.NDArray[np.int64]
    others: npt.NDArray[np.int64]
    unseen: bool


@dataclass(frozen=True)
class RetrievalRow:
    """One scorer in one direction.

    Args:
        scorer: its name.
        recall: ``recall@k`` to the share of questions with a right answer among the first k, and its interval.
        median_rank: of the best right answer.
        ahead: ``recall@k`` to the model minus this scorer, paired; empty for the model itself.
    """

    scorer: str
    recall: Mapping[str, Estimate]
    median_rank: float
    ahead: Mapping[str, Difference]


@dataclass(frozen=True)
class RetrievalTable:
    """One direction.

    Args:
        direction: what is asked, and what is looked for.
        rows: the model first.
        chance: ``recall@k`` of a random order.
        chance_median_rank: of a random order.
    """

    direction: str
    rows: Sequence[RetrievalRow]
    chance: Mapping[str, float]
    chance_median_rank: float


@dataclass(frozen=True)
class CrossModal:
    """Both directions.

    Args:
        questions: posts asked about.
        candidates: posts to choose from.
        others: posts that the ridge of the frozen features was fitted on.
        unseen: whether training saw none of the posts asked about.
        tables: by direction.
    """

    questions: int
    candidates: int
    others: int
    unseen: bool
    tables: Sequence[RetrievalTable]


def unseen_items(catalogue: Catalogue, histories: Histories, split: Split, cases: Cases) -> npt.NDArray[np.bool_]:
    """Return which items training never saw, neither chosen nor drawn as a negative, shape (items,).

    Items that the split keeps for its other part are left to it.
    """
    counts = training_counts(split.train_events, histories, num_items=len(catalogue))
    mine = (split.item_roles == WARM) | (split.item_roles == cases.target_role)
    return np.asarray((counts == 0) & mine & ~split.trainable_items(histories, catalogue.first_seen))


def choose_questions(
    both: npt.NDArray[np.int64], unseen: npt.NDArray[np.bool_], *, limit: int = MAX_QUESTIONS, seed: int = 0
) -> Questions | None:
    """Choose the posts to ask about: unseen ones where there are enough; None where too few posts have both.

    At least half of the posts stay out, so that frozen features have something to learn a common space from.

    Args:
        both: shape (posts,), item rows with a caption and a picture.
        unseen: shape (items,), items that training never saw.
        limit: at most this many questions.
        seed: of the draw where there are more.
    """
    if len(both) < MIN_POSTS:
        return None
    new = both[unseen[both]]
    enough = len(new) >= MIN_UNSEEN
    pool = new if enough else both
    number = min(limit, len(pool), len(both) // 2)
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(pool, number, replace=False))
    others = np.setdiff1d(both, rows)
    if len(others) > MAX_FITTED:
        others = np.sort(generator.choice(others, MAX_FITTED, replace=False))
    return Questions(rows, others, enough)


def space_scores(text: Float[Tensor, "posts dim"], image: Float[Tensor, "posts dim"]) -> Scores:
    """Compare captions and pictures that share a space, by cosine; row ``i`` of both is the same post."""
    cosines = functional.normalize(text) @ functional.normalize(image).T
    return {CAPTION_TO_PICTURE: cosines, PICTURE_TO_CAPTION: cosines.T}


def frozen_scores(
    text: Float[Tensor, "items text_dim"], image: Float[Tensor, "items image_dim"], questions: Questions
) -> Scores:
    """Compare captions and pictures of two encoders that know nothing of each other.

    Vectors are centred and brought to length one; a ridge regression, fitted on the other posts, takes the candidates
    into the space of the question (this way round fewer of them become everybody's neighbour: Shigeto et al. 2015).
    The halves of an open_clip pair need it as much: their own projections are no part of the encoders here.

    Args:
        text: one vector an item.
        image: one vector an item.
        questions: which of them are asked about, and which may be learnt from.
    """
    asked_text, other_text = _centred(text, questions)
    asked_image, other_image = _centred(image, questions)
    to_text, to_image = fit_ridge(other_image, other_text), fit_ridge(other_text, other_image)
    return {
        CAPTION_TO_PICTURE: asked_text @ functional.normalize(to_text(asked_image)).T,
        PICTURE_TO_CAPTION: asked_image @ functional.normalize(to_image(asked_text)).T,
    }


def crossmodal_tables(
    scorers: Mapping[str, Scores],
    questions: Questions,
    *,
    captions: npt.NDArray[np.int64],
    pictures: npt.NDArray[np.int64],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> CrossModal:
    """Rank the candidates of both directions.

    Args:
        scorers: name to scores, the model first.
        questions: the posts.
        captions: shape (questions,), the distinct caption of each.
        pictures: shape (questions,), the distinct (first) picture of each.
        bootstrap: resamples the distinct captions (or pictures) asked with, their posts kept together.
    """
    right = torch.from_numpy((captions[:, None] == captions) | (pictures[:, None] == pictures))
    owners = {CAPTION_TO_PICTURE: captions, PICTURE_TO_CAPTION: pictures}
    tables = []
    for direction, owner in owners.items():
        ranks = {name: best_ranks(scores[direction], right).cpu().numpy() for name, scores in scorers.items()}
        tables.append(_table(direction, ranks, right.sum(dim=1).numpy(), owner, bootstrap))
    number = len(questions.rows)
    return CrossModal(number, number, len(questions.others), questions.unseen, tables)


def best_ranks(
    scores: Float[Tensor, "questions candidates"], right: Bool[Tensor, "questions candidates"]
) -> Float[Tensor, " questions"]:
    """Return 1 + the number of wrong candidates that score at least as high as the best right one.

    A score that is no number counts against the question.
    """
    right = right.to(scores.device)
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + (~right & ~(scores < best)).sum(dim=1).double()


def chance_curve(num_right: npt.NDArray[np.int64], *, num_candidates: int) -> npt.NDArray[np.float64]:
    """Return the share of questions that a random order answers within the first 1 ... ``num_candidates``.

    Args:
        num_right: shape (questions,), right candidates of each question, at least one.
        num_candidates: of every question.
    """
    left = num_candidates - np.arange(num_candidates)
    found = np.zeros(num_candidates)
    for number, questions in zip(*np.unique(num_right, return_counts=True), strict=True):
        found += questions * (1 - np.cumprod(np.maximum(left - number, 0) / left))
    return found / len(num_right)


def _table(
    direction: str,
    ranks: Mapping[str, npt.NDArray[np.float64]],
    num_right: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    bootstrap: Bootstrap,
) -> RetrievalTable:
    found = {name: {f"recall@{k}": (rank <= k).astype(np.float64) for k in CUTOFFS} for name, rank in ranks.items()}
    model = next(iter(found))
    rows = [
        RetrievalRow(
            scorer=name,
            recall=estimates(values, owner, bootstrap=bootstrap),
            median_rank=float(np.median(ranks[name])),
            ahead={} if name == model else differences(found[model], values, owner, bootstrap=bootstrap),
        )
        for name, values in found.items()
    ]
    curve = chance_curve(num_right, num_candidates=len(num_right))
    chance = {f"recall@{k}": float(curve[min(k, len(curve)) - 1]) for k in CUTOFFS}
    return RetrievalTable(direction, rows, chance, float(1 + np.searchsorted(curve, 0.5 - 1e-9)))


def _centred(
    vectors: Float[Tensor, "items dim"], questions: Questions
) -> tuple[Float[Tensor, "questions dim"], Float[Tensor, "others dim"]]:
    """Return unit vectors of the posts asked about and of the others, around the mean of the others."""
    others = vectors[torch.from_numpy(questions.others)].double()
    mean = others.mean(dim=0)
    return functional.normalize(vectors[torch.from_numpy(questions.rows)].double() - mean), functional.normalize(
        others - mean
    )
