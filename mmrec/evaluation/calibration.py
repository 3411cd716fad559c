"""Choosing by validation what no training target can teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping

REPEAT_BONUSES = (0.0, -4.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Candidates for the repeat bonus, in units of the score (a logit under the softmax losses)."""


def best_repeat_bonus(measure: Callable[[float], Mapping[str, float]], *, metric: str) -> Mapping[str, float]:
    """Return the validation metrics under the repeat bonus that does best; the first of equals.

    Training cannot teach it well: within one basket nobody chooses twice, and most targets of many feeds are within
    one.  Likelihood is a poor judge too, for it weighs the bonus against the overconfident rest of the scores.

    Args:
        measure: bonus to metrics by name.
        metric: the one that counts, higher is better.
    """
    return max((measure(bonus) for bonus in REPEAT_BONUSES), key=lambda found: found[metric])
