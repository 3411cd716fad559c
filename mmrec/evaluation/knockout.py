"""Knock-outs: what a modality is worth, measured by taking it away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.ranking import CaseScorer, Ranks
from mmrec.evaluation.significance import BOOTSTRAP, Bootstrap, Difference, differences

KnockoutName = Literal["drop_caption", "drop_picture", "drop_attributes", "shuffle_pictures"]
ScorerFactory = Callable[[], CaseScorer]
"""Builds the model's scorer under a knock-out; called once, and the scorer is let go before the next."""


@dataclass(frozen=True)
class Knockout:
    """What one knock-out costs.

    Args:
        name: what was done to the catalogue.
        metrics: metric to its mean under the knock-out.
        losses: metric to full model minus knocked-out model, paired.
    """

    name: str
    metrics: Mapping[str, float]
    losses: Mapping[str, Difference]


def knockout(
    name: str, full: Ranks, knocked: Ranks, *, users: npt.NDArray[np.int64], bootstrap: Bootstrap = BOOTSTRAP
) -> Knockout:
    """Compare the ranks of the full and of the knocked-out model on the same cases.

    Args:
        users: shape (cases,), user of every case that was asked.
    """
    before, after = case_metrics(full.places), case_metrics(knocked.places)
    means = {metric: float(values.mean()) for metric, values in after.items()}
    return Knockout(name, means, differences(before, after, users[full.cases], bootstrap=bootstrap))


def shuffled_pictures(has_picture: npt.NDArray[np.bool_], *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return whose pictures each item shows after shuffling, shape (items,).

    Items without pictures keep having none; of two or more items with pictures none keeps its own.
    """
    source = np.arange(len(has_picture))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(has_picture))
    source[order] = np.roll(order, 1)
    return source
