"""Choosing by validation what no training target can teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.evaluate import validation_values
from mmrec.evaluation.ranking import CaseScorer, Setting
from mmrec.evaluation.settings import settings_of
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Split

REPEAT_BONUSES = (0.0, -20.0, -4.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Candidates for the repeat bonus, in units of the score (a logit under the softmax losses)."""
TREND_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""Candidates for the weight of what rose of late."""
STANDARD_ERRORS = 2.0
"""Either stays at 0 unless it is better by this many: a few hundred questions always favour some candidate."""
REPEAT_BONUS, TREND_WEIGHT = "repeat_bonus", "trend_weight"


def calibrated_metrics(
    scorer: CaseScorer,
    cases: Cases,
    histories: Histories,
    split: Split,
    *,
    set_bonus: Callable[[float], object],
    set_trend: Callable[[float], object] | None,
    metric: str,
    names: Sequence[str],
    first_seen: npt.NDArray[np.int64],
) -> dict[str, float]:
    """Set the repeat bonus and the trend's weight that rank best; return the headline metrics with them.

    Training cannot teach the bonus well: within one basket nobody chooses twice, and most targets of many feeds are within
    one.  Likelihood is a poor judge too, for it weighs the bonus against the overconfident rest of the scores.  It is
    judged where nothing is filtered, the trend then by the headline.  Questions about cold items say nothing of either:
    there both are 0.

    Args:
        scorer: the model, whose scores follow the bonus.
        cases: the questions.
        histories: the feed's interactions.
        split: whose part the cases are.
        set_bonus: takes the bonus.
        set_trend: takes the trend's weight; None where there is no trend.
        metric: the one that counts, higher is better; the first of equals is taken.
        names: metrics to return, ``metric`` among them.
        first_seen: shape (items,), of the catalogue.
    """
    settings = settings_of(split, cases, histories)
    unfiltered = next(setting for setting in settings if setting.pool == "all" and not setting.filter_seen)

    state: dict[str, float] = {}
    measured: dict[tuple[object, ...], dict[str, npt.NDArray[np.float64]]] = {}

    def measure(setting: Setting) -> dict[str, npt.NDArray[np.float64]]:
        # What has been chosen so far is asked about again, as the next choice's first candidate and at the end.
        key = (setting, *state.values())
        if key not in measured:
            measured[key] = validation_values(scorer, cases, histories, setting, first_seen=first_seen, names=names)
        return measured[key]

    def choose(name: str, candidates: Sequence[float], give: Callable[[float], object], setting: Setting) -> None:
        found = []
        for candidate in candidates if split.kind != "cold_items" else candidates[:1]:
            give(candidate)
            state[name] = candidate
            found.append(measure(setting)[metric])
        best = int(np.argmax([values.mean() for values in found]))
        gains = found[best] - found[0]
        if gains.mean() < STANDARD_ERRORS * gains.std() / max(len(gains), 1) ** 0.5:
            best = 0
        give(candidates[best])
        state[name] = candidates[best]

    state[REPEAT_BONUS] = REPEAT_BONUSES[0]
    if set_trend is not None:
        set_trend(TREND_WEIGHTS[0])
        state[TREND_WEIGHT] = TREND_WEIGHTS[0]
    choose(REPEAT_BONUS, REPEAT_BONUSES, set_bonus, unfiltered)
    if set_trend is not None:
        choose(TREND_WEIGHT, TREND_WEIGHTS, set_trend, settings[0])
    return {**{name: float(values.mean()) for name, values in measure(settings[0]).items()}, **state}
