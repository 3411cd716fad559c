"""What a model must show before it answers anybody: known posts find themselves, counts agree, encoding works."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.inference.questions import Question, as_query
from mmrec.serving.answers.about import About
from mmrec.serving.answers.service import Service
from mmrec.serving.problems import ProblemError
from mmrec.serving.trace import Trace

SEARCHED, ENCODED = 64, 8
"""Items that are searched for by their own vectors, and items that are encoded once more."""
_HITS = 10
"""Rows of the index that are scored by full vectors."""
_FOUND = 0.95
"""Share that must find themselves; an index may be approximate."""
_ALIKE = 0.999
"""Cosine of an item's saved vector with one that is made now."""
_CHUNK = 65536
"""Vectors read at once."""


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Args:
        items: of the export.
        searched: items that were looked for by their own vectors.
        found: of those, the ones that came first, or level with the first.
        encoded: items that were encoded again, with the same result.
    """

    items: int
    searched: int
    found: int
    encoded: int


def check(service: Service, trace: Trace) -> Checked:
    """Check a model and its export; this also brings into memory what the first requests need.

    Raises:
        ProblemError: something is not as it must be.
    """
    _check_counts(service)
    _check_numbers(service)
    encoded = _check_encoding(service)
    searched, found = _find_themselves(service)
    if found < _FOUND * searched:
        raise _unfit(
            f"items that are found by their own vectors ({_FOUND:.0%} of {searched})", f"{found} of them", "the index"
        )
    About(service).ready(trace)
    return Checked(len(service.items.exported), searched, found, encoded)


def _check_counts(service: Service) -> None:
    exported = service.items.exported
    counts = {
        "the feed": len(service.catalogue),
        "the export": len(exported),
        "the index": len(exported.store),
        "the vectors": len(exported.full),
    }
    if len(set(counts.values())) > 1 or not counts["the feed"]:
        got = ", ".join(f"{count} in {where}" for where, count in counts.items())
        raise _unfit("as many items everywhere, and at least one", got, "the pair")


def _check_numbers(service: Service) -> None:
    full = service.items.exported.full
    for start in range(0, len(full), _CHUNK):
        if not np.isfinite(full[start : start + _CHUNK]).all():
            raise _unfit("vectors of finite numbers", "others", "the vectors")


def _check_encoding(service: Service) -> int:
    """Encode items of the feed again, and return how many; the saved vectors must be of these weights."""
    rows, full = _sample(len(service.items.exported), ENCODED), service.items.exported.full
    encoded = np.empty((len(rows), full.shape[1]), dtype=np.float32)
    places = {int(row): place for place, row in enumerate(rows)}
    for found, piece in service.recommender.encode_rows(rows, lambda count: None):
        encoded[[places[int(row)] for row in found]] = piece
    saved = np.asarray(full[rows], dtype=np.float32)
    norms = np.linalg.norm(saved, axis=1) * np.linalg.norm(encoded, axis=1)
    # Nothing on either side is alike; so is no number at all not.
    alike = (saved * encoded).sum(axis=1) >= _ALIKE * norms
    if not alike.all():
        raise _unfit(
            f"items whose saved vectors are those of the model ({len(rows)})", f"{int(alike.sum())}", "the run"
        )
    return len(rows)


def _find_themselves(service: Service) -> tuple[int, int]:
    """Search items by their own vectors; return how many, and how many came first or level with the first."""
    exported = service.items.exported
    layout, nothing = exported.layout, np.zeros(0, dtype=np.int64)
    question = Question(None, None, nothing, nothing, 0.0)
    rows, found = _sample(len(exported), SEARCHED), 0
    for row in rows:
        own = np.asarray(exported.full[row : row + 1], dtype=np.float32)
        near = as_query(layout, question, layout.shape(own)).vector
        exact = as_query(layout.full, question, layout.full.shape(own)).vector
        # What the index finds is scored by full vectors, as for requests: an index may be of smaller ones.
        hits = exported.store.search(near[None], k=min(_HITS, len(exported))).rows[0]
        best = np.asarray(exported.full[hits[hits >= 0]], dtype=np.float32)
        scores = layout.full.shape(np.concatenate([own, best])) @ exact
        found += bool((scores[1:] >= scores[0] - 1e-4 * max(abs(float(scores[0])), 1.0)).any())
    return len(rows), found


def _sample(items: int, count: int) -> npt.NDArray[np.int64]:
    """Return so many rows, spread over all."""
    return np.unique(np.linspace(0, items - 1, min(count, items)).astype(np.int64))


def _unfit(expected: str, got: str, where: str) -> ProblemError:
    return ProblemError(422, expected, got=got, where=where, fix="The model before goes on answering.")
