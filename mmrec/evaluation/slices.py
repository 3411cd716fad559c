"""Groups of targets whose figures are shown apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.ranking import Ranks
from mmrec.evaluation.tally import case_item_keys
from mmrec.feed.catalogue import NO_CAPTION, Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases

HISTORY_EDGES = (0, 1, 2, 5, 10, 20, 50)
QUINTILES = 5


@dataclass(frozen=True)
class Slicing:
    """One way to divide the targets.

    Args:
        name: what divides them.
        groups: names of the groups, in reading order.
        codes: shape (targets,), position in ``groups``.
    """

    name: str
    groups: Sequence[str]
    codes: npt.NDArray[np.int64]


def training_counts(
    train_events: npt.NDArray[np.bool_], histories: Histories, *, num_items: int
) -> npt.NDArray[np.int64]:
    """Count the training events of every item, shape (items,)."""
    return np.bincount(np.asarray(histories.item_rows)[np.asarray(train_events)], minlength=num_items)


def by_training(targets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Slicing:
    """Divide targets, shape (targets,), into items that training saw and items that it never saw."""
    return Slicing(
        "target", ["warm (in training)", "cold (never in training)"], (counts[targets] == 0).astype(np.int64)
    )


def by_popularity(targets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Slicing:
    """Divide targets by the popularity quintile of their item among the items that training saw.

    Items with equal counts share the quintile of the middle of their run; items never seen stand apart.
    """
    seen = np.sort(counts[counts > 0])
    below = np.searchsorted(seen, counts[targets], side="left")
    upto = np.searchsorted(seen, counts[targets], side="right")
    quintile = 1 + (below + upto) * QUINTILES // (2 * max(1, len(seen)))
    codes = np.where(counts[targets] == 0, 0, np.minimum(quintile, QUINTILES)).astype(np.int64)
    names = ["never seen", "1 (rarest fifth)", "2", "3", "4", "5 (most popular fifth)"]
    return Slicing("popularity of the target in training", names, codes)


def by_history_length(lengths: npt.NDArray[np.int64], cases: npt.NDArray[np.int64]) -> Slicing:
    """Divide targets by the history length of their case.

    Args:
        lengths: shape (cases,), events of each case's history.
        cases: shape (targets,), case of each target.
    """
    edges = np.asarray(HISTORY_EDGES)
    codes = np.searchsorted(edges, lengths[cases], side="right") - 1
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    return Slicing("length of the history", [*names, f"{edges[-1]}+"], codes.astype(np.int64))


def by_modality(targets: npt.NDArray[np.int64], catalogue: Catalogue) -> Slicing:
    """Divide targets by what their post carries."""
    text = np.asarray(catalogue.caption_rows)[targets] != NO_CAPTION
    image = catalogue.item_images.lengths[targets] > 0
    codes = np.where(text & image, 2, np.where(text, 0, np.where(image, 1, 3))).astype(np.int64)
    return Slicing("content of the target", ["text only", "image only", "both", "none"], codes)


def by_repeat(repeated: npt.NDArray[np.bool_]) -> Slicing:
    """Divide targets, shape (targets,), into new ones and repeats of an item of the history."""
    return Slicing("novelty of the target", ["new to the user", "repeat"], repeated.astype(np.int64))


def repeated_targets(ranks: Ranks, cases: Cases, histories: Histories) -> npt.NDArray[np.bool_]:
    """Return which targets are in the history of their own case, shape (targets,)."""
    num_items = len(cases.item_roles)
    seen = case_item_keys(cases.take(ranks.cases).histories(histories), histories, num_items=num_items)
    return np.isin(ranks.places.case_index * num_items + ranks.targets, seen)


def all_slicings(
    ranks: Ranks, cases: Cases, histories: Histories, catalogue: Catalogue, counts: npt.NDArray[np.int64]
) -> list[Slicing]:
    """Return every slicing of the targets of ``ranks``; those with fewer than two groups in use are left out."""
    lengths = cases.take(ranks.cases).histories(histories).lengths
    slicings = [
        by_training(ranks.targets, counts),
        by_popularity(ranks.targets, counts),
        by_history_length(lengths, ranks.places.case_index),
        by_modality(ranks.targets, catalogue),
        by_repeat(repeated_targets(ranks, cases, histories)),
    ]
    return [slicing for slicing in slicings if len(np.unique(slicing.codes)) > 1]
