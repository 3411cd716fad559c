"""Choosing by validation what no training target can teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.evaluate import validation_metrics
from mmrec.evaluation.ranking import CaseScorer, Setting
from mmrec.evaluation.settings import settings_of
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Split

REPEAT_BONUSES = (0.0, -20.0, -4.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Candidates for the repeat bonus, in units of the score (a logit under the softmax losses)."""
REPEAT_BONUS = "repeat_bonus"


def calibrated_metrics(
    scorer: CaseScorer,
    cases: Cases,
    histories: Histories,
    split: Split,
    *,
    set_bonus: Callable[[float], object],
    metric: str,
    names: Sequence[str],
    first_seen: npt.NDArray[np.int64],
) -> dict[str, float]:
    """Set the repeat bonus that ranks best where nothing is filtered; return the headline metrics with it.

    Training cannot teach it well: within one basket nobody chooses twice, and most targets of many feeds are within
    one.  Likelihood is a poor judge too, for it weighs the bonus against the overconfident rest of the scores.  Questions
    about cold items say nothing of repeats: there the bonus is 0.

    Args:
        scorer: the model, whose scores follow the bonus.
        cases: the questions.
        histories: the feed's interactions.
        split: whose part the cases are.
        set_bonus: takes the bonus.
        metric: the one that counts, higher is better; the first of equals is taken.
        names: metrics to return, ``metric`` among them.
        first_seen: shape (items,), of the catalogue.
    """
    settings = settings_of(split, cases, histories)
    unfiltered = next(setting for setting in settings if setting.pool == "all" and not setting.filter_seen)

    def measure(bonus: float, setting: Setting) -> dict[str, float]:
        set_bonus(bonus)
        return validation_metrics(scorer, cases, histories, setting, first_seen=first_seen, names=names)

    best = 0.0
    if split.kind != "cold_items":
        best = max(REPEAT_BONUSES, key=lambda bonus: measure(bonus, unfiltered)[metric])
    return {**measure(best, settings[0]), REPEAT_BONUS: best}
