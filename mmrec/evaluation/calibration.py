"""Choosing by validation what no training target can teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.ranking import Setting

REPEAT_BONUSES = (0.0, -20.0, -4.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Candidates for the repeat bonus, in units of the score (a logit under the softmax losses)."""
TREND_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""Candidates for the weight of what rose of late."""
MOST_KNOWN_BONUS, BONUS_STEP = 1024.0, 0.02
"""The bonus of items that training saw is looked for up to here, where any score hides all others, and as closely as that."""
STANDARD_ERRORS = 0.5
"""Part of its standard error that is taken off every gain before gains are compared: of candidates that do about equally
well, the one that does so on more questions is taken.  More would leave what helps by little, but on every feed, to luck."""
COST_METRICS = tuple(f"hr@{cutoff}" for cutoff in range(5, 21))
"""What cold items cost is the mean loss of these: of that of HR@10 alone, a few hundred questions say little."""
REPEAT_BONUS, TREND_WEIGHT, KNOWN_BONUS = "repeat_bonus", "trend_weight", "known_bonus"
LATE_SHARE = "late_share_"
"""What the name of a modality's share begins with."""

Values = Mapping[str, npt.NDArray[np.float64]]
Measure = Callable[[Setting, Sequence[str]], Values]
"""Asks some questions under a setting, with what is chosen at the moment: metrics by name, of shape (questions,)."""


class Calibration:
    """Questions of one part of a split, and what has been chosen by them.

    Args:
        measure: asks them; its values follow what is chosen.
        settings: under which they may be asked, the headline first.
        setters: name (``repeat_bonus``, ``trend_weight``, ``known_bonus``, ``late_share_`` and a modality) to what takes its
            value; where one is missing there is nothing to choose.
        names: metrics to measure.
    """

    def __init__(
        self,
        measure: Measure,
        settings: Sequence[Setting],
        *,
        setters: Mapping[str, Callable[[float], object]],
        names: Sequence[str],
    ) -> None:
        self._measure, self.settings, self._setters = measure, settings, setters
        self._names = tuple(dict.fromkeys([*names, *COST_METRICS]))
        self.chosen: dict[str, float] = {}
        self._measured: dict[tuple[object, ...], Values] = {}
        for name in setters:
            self.set(name, 0.0)

    @property
    def unfiltered(self) -> Setting:
        """The setting of all candidates, the history among them."""
        return next(setting for setting in self.settings if setting.pool == "all" and not setting.filter_seen)

    @property
    def unknown(self) -> Setting:
        """The setting of what is new: cold items among themselves, elsewhere all candidates but the history."""
        return next(setting for setting in self.settings if setting.pool == "cold" or setting.filter_seen)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of what sets the modalities' shares."""
        return tuple(name for name in self._setters if name.startswith(LATE_SHARE))

    def set(self, name: str, value: float) -> None:
        """Take a value, where there is something that takes it."""
        if name in self._setters:
            self._setters[name](value)
            self.chosen[name] = value

    def measure(self, setting: Setting) -> Values:
        """Return the metrics of every case with what is chosen now."""
        # What has been chosen so far is asked about again, as the next choice's first candidate and at the end.
        key = (setting, *self.chosen.items())
        if key not in self._measured:
            self._measured[key] = self._measure(setting, self._names)
        return self._measured[key]

    def choose_best(self, name: str, candidates: Sequence[float], setting: Setting, *, metric: str) -> None:
        """Take the candidate with the greatest gain over the first, less some of its standard error; without one the first."""
        if name not in self._setters:
            return
        found = []
        for candidate in candidates:
            self.set(name, candidate)
            found.append(self.measure(setting)[metric])
        gains = [values - found[0] for values in found]
        sure = [gain.mean() - STANDARD_ERRORS * gain.std() / max(len(gain), 1) ** 0.5 for gain in gains]
        self.set(name, candidates[int(np.argmax(sure))])

    def choose_cost(self, most: float) -> None:
        """Take the least bonus of known items with which the unknown ones cost them no more than a share of their hits."""
        if KNOWN_BONUS not in self._setters:
            return
        among_all = self.settings[0]
        alone = self.measure(replace(among_all, pool="cold"))

        def cost(bonus: float) -> float:
            self.set(KNOWN_BONUS, bonus)
            found = self.measure(among_all)
            hits = [(alone[name].mean(), found[name].mean()) for name in COST_METRICS]
            return float(np.mean([1 - left / whole if whole else 0.0 for whole, left in hits]))

        if cost(0.0) <= most:
            return
        # The more known items gain, the fewer hits they lose.
        low, high = 0.0, 1.0
        while high < MOST_KNOWN_BONUS and cost(high) > most:
            low, high = high, 2 * high
        while high - low > BONUS_STEP:
            middle = (low + high) / 2
            low, high = (low, middle) if cost(middle) <= most else (middle, high)
        self.set(KNOWN_BONUS, high)


def calibrated_metrics(
    asked: Calibration,
    *,
    metric: str,
    names: Sequence[str],
    warm: Calibration | None = None,
    cold_cost: float | None,
    late_shares: Sequence[float] = (),
) -> dict[str, float]:
    """Choose what ranks best; return the headline metrics with it.

    Training cannot teach the repeat bonus well: within one basket nobody chooses twice, and most targets of many feeds are
    within one.  Likelihood is a poor judge too, for it weighs the bonus against the overconfident rest of the scores.  It is
    judged where nothing is filtered, the trend then by the headline.  Questions about cold items say nothing of either:
    there ``warm`` questions among warm items do, and where there are none both are 0.

    Shares of modalities come first, one modality after the other, and are judged by what is new to the user: what is not,
    the repeat bonus decides.

    Args:
        asked: the validation questions.
        metric: the one that counts, higher is better; the first of equals is taken.
        names: metrics to return, ``metric`` among them.
        warm: questions about warm items, of a split about cold ones.
        cold_cost: share of their hits that cold items may cost these; None leaves them what they cost.
        late_shares: candidates for the share of each modality, beside 0.
    """
    for name in asked.modalities:
        asked.choose_best(name, (0.0, *late_shares), asked.unknown, metric=metric)
        if warm is not None:
            warm.set(name, asked.chosen[name])
    if warm is not None:
        warm.choose_best(REPEAT_BONUS, REPEAT_BONUSES, replace(warm.unfiltered, pool="cold"), metric=metric)
        warm.choose_best(TREND_WEIGHT, TREND_WEIGHTS, replace(warm.settings[0], pool="cold"), metric=metric)
        if cold_cost is not None:
            warm.choose_cost(cold_cost)
        for name, value in warm.chosen.items():
            asked.set(name, value)
    elif asked.settings[0].pool == "all":
        asked.choose_best(REPEAT_BONUS, REPEAT_BONUSES, asked.unfiltered, metric=metric)
        asked.choose_best(TREND_WEIGHT, TREND_WEIGHTS, asked.settings[0], metric=metric)
    found = asked.measure(asked.settings[0])
    return {**{name: float(found[name].mean()) for name in names}, **asked.chosen}
