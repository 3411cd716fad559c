"""What smaller vectors lose: recall against exact search in the full ones, for users and for posts that ask.

Questions are those that ``mmrec search`` puts: never quantised, a user's with bias and repeat bonus, a post's by content
alone and never answered by the post itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.search.index import ExactStore, Rows, VectorRows, Vectors, recall
from mmrec.search.repeats import search_with_repeats
from mmrec.search.rescored import num_candidates

QUESTIONS = 500
_AT_ONCE = 100
_DEPTHS = (10, 100)


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Args:
        vectors: shape (questions, width), score-ready full vectors.
        had: of each question, rows of items that gain.
        bonus: what they gain, in score-ready units; ``-inf`` keeps them out.
    """

    vectors: Vectors
    had: Sequence[Rows]
    bonus: float

    def parts(self, layout: VectorFormat) -> Iterator[tuple[slice, Vectors, npt.NDArray[np.float32]]]:
        """Yield some questions at a time: which, their vectors in a format, and what a row gains."""
        for start in range(0, len(self.vectors), _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, len(self.vectors)))
            whole = self.vectors[part]
            scale = np.ones(len(whole), np.float32)
            if layout.normalised:
                content = whole[:, :-1] if layout.has_bias else whole
                scale = 1 / np.maximum(np.linalg.norm(content, axis=1), 1e-12).astype(np.float32)
            yield part, layout.shape(whole), (self.bonus * scale).astype(np.float32)


def questions_of(recommender: Recommender, vectors: VectorRows, *, seed: int = 0) -> dict[str, Questions]:
    """Draw users of the feed, after their whole history, and posts of the catalogue.

    Args:
        recommender: knows the users.
        vectors: the catalogue's full score-ready vectors, shape (items, width).
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    user_ids = recommender.assembly.histories.user_ids
    asking = np.sort(generator.choice(len(user_ids), min(QUESTIONS, len(user_ids)), replace=False))
    users = recommender.scoring.users([Request("recall", (), user_id=str(user_ids[row])) for row in asking])
    had = [np.unique([entry.row for entry in own if entry.row >= 0]).astype(np.int64) for own in users.had]
    rows = np.sort(generator.choice(len(vectors), min(QUESTIONS, len(vectors)), replace=False)).astype(np.int64)
    posts = np.array(vectors[rows], dtype=np.float32)
    if recommender.has_bias:
        posts[:, -1] = 0
    return {
        "users": Questions(users.vectors.mean(dim=1).numpy(), had, recommender.repeat_bonus),
        "posts": Questions(posts, [rows[i : i + 1] for i in range(len(rows))], -np.inf),
    }


def recall_against_full(
    vectors: VectorRows, layouts: Sequence[VectorFormat], questions: dict[str, Questions]
) -> list[dict[str, float]]:
    """Return for each format the share of the best posts by full vectors that are found with the written ones.

    ``rescored`` is the share found where candidates are scored again with full vectors, as ``mmrec search`` does where it
    has the run.  Nothing but a chunk of vectors is in memory at a time.

    Args:
        vectors: the catalogue's full score-ready vectors, shape (items, width).
        layouts: formats, alike in ``normalised``.
        questions: by who asks.
    """
    found: list[dict[str, float]] = [{} for _ in layouts]
    (full,) = {layout.full for layout in layouts}
    exact = _answers(vectors, full, questions, deep=False)
    for layout, report in zip(layouts, found, strict=True):
        for name, rows in _answers(vectors, layout, questions, deep=True).items():
            for depth in _DEPTHS:
                k = min(depth, len(vectors))
                candidates = rows[:, : num_candidates(k, items=len(vectors))]
                report[f"recall@{depth}, {name}"] = _recall(rows[:, :k], exact[name][:, :k])
                report[f"recall@{depth}, {name}, rescored"] = _recall(candidates, exact[name][:, :k])
    return found


def _answers(
    vectors: VectorRows, layout: VectorFormat, questions: dict[str, Questions], *, deep: bool
) -> dict[str, Rows]:
    """Return the best rows of each question by exact search in written vectors; deep ones include every candidate."""
    written = WrittenVectors(vectors, layout)
    store, k = ExactStore(written), min(max(_DEPTHS), len(vectors))
    k = num_candidates(k, items=len(vectors)) if deep else k
    rows = {name: np.full((len(asked.vectors), k), -1, dtype=np.int64) for name, asked in questions.items()}
    for name, asked in questions.items():
        for part, queries, bonus in asked.parts(layout):
            hits = search_with_repeats(store, written, queries, had=asked.had[part], bonus=bonus, k=k)
            rows[name][part] = hits.rows
    return rows


def _recall(found: Rows, exact: Rows) -> float:
    """Return the recall over all questions, some at a time: every pair of rows is compared."""
    shares = [
        (recall(found[start : start + _AT_ONCE], part), int((part >= 0).sum()))
        for start in range(0, len(exact), _AT_ONCE)
        for part in [exact[start : start + _AT_ONCE]]
    ]
    total = sum(count for _, count in shares)
    return round(sum(share * count for share, count in shares) / max(total, 1), 4)
