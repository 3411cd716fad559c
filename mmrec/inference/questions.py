"""Questions in words, pictures, items or a user, as vectors of an export."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrec.inference.vector_format import VectorFormat
from mmrec.search.index import Rows, Vectors


@dataclass(frozen=True)
class Question:
    """What is looked for, before it is a vector of some format.

    Args:
        post: shape (1, width), score-ready vector of words and pictures, or of each for itself, shape (2, width); None
            without.
        user: shape (1, width), score-ready vector of the user; None without.
        item_rows: rows of the export that are asked for.
        had: rows of the export that the asking user had.
        bonus: what their scores gain, in score-ready units.
        weights: shape (directions,), how much the rows of ``post``, the user and each item count, in that order; None:
            all the same.
    """

    post: Vectors | None
    user: Vectors | None
    item_rows: Rows
    had: Rows
    bonus: float
    weights: Vectors | None = None


@dataclass(frozen=True)
class Query:
    """A question as a vector of one format.

    Args:
        vector: shape (dim,).
        bonus: what the rows gain that the user had.
    """

    vector: Vectors
    bonus: float


def as_query(layout: VectorFormat, question: Question, items: Vectors) -> Query:
    """Return a question as a vector.

    Args:
        layout: format of the vector.
        question: what is asked.
        items: shape (items asked for, dim), their vectors in that format.
    """
    parts = [layout.shape(part) for part in (question.post, question.user) if part is not None]
    directions = np.concatenate([*parts, items])
    content = directions[:, :-1] if layout.ends_in_bias else directions
    units = content / np.maximum(np.linalg.norm(content, axis=1, keepdims=True), 1e-12)
    weights = np.ones(len(directions), dtype=np.float32) if question.weights is None else question.weights
    shares = weights / weights.sum()
    bias = 0.0
    if question.user is not None:
        # Scaled with the direction, so that user, bias and repeat bonus keep their proportion.
        counted = layout if layout.ends_in_bias else VectorFormat(has_bias=layout.has_bias)
        user = counted.shape(question.user)[0]
        length = float(np.linalg.norm(user[:-1] if layout.has_bias else user))
        posts = 0 if question.post is None else len(question.post)
        bias = float(shares[posts]) / max(length, 1e-12)
    tail = [bias] if layout.ends_in_bias else []
    return Query(np.concatenate([shares @ units, tail]).astype(np.float32), bias * question.bonus)
