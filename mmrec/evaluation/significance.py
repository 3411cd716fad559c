"""Intervals and p-values by resampling users, all columns with the same draws, so that differences are paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COVERED = (2.5, 97.5)
_BLOCK_ELEMENTS = 1 << 22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over cases with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Bootstrap:
    """Draws users with return and takes the mean over their cases (Efron 1979, a user's cases kept together).

    Args:
        resamples: number of draws.
        seed: of the draws; equal users and seed mean equal draws.
    """

    resamples: int = 1000
    seed: int = 0

    def means(self, values: npt.NDArray[np.float64], users: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the mean of every column in every draw, shape (resamples, columns).

        Args:
            values: shape (cases, columns).
            users: shape (cases,), whose case it is; a user may have several.
        """
        owner = np.unique(users, return_inverse=True)[1].reshape(-1)
        number = int(owner.max()) + 1
        order = np.argsort(owner, kind="stable")
        sums = np.add.reduceat(values[order], np.searchsorted(owner[order], np.arange(number)), axis=0)
        counts = np.bincount(owner, minlength=number).astype(np.float64)
        generator = np.random.default_rng(self.seed)
        means = np.empty((self.resamples, values.shape[1]))
        block = max(1, _BLOCK_ELEMENTS // number)
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = generator.integers(number, size=(rows, number)) + np.arange(rows)[:, None] * number
            weights = np.bincount(drawn.reshape(-1), minlength=rows * number).reshape(rows, number).astype(np.float64)
            means[start : start + rows] = (weights @ sums) / (weights @ counts)[:, None]
        return means


BOOTSTRAP = Bootstrap()


def estimate(mean: float, resampled: npt.NDArray[np.float64]) -> Estimate:
    """Percentile interval of one column of :meth:`Bootstrap.means`, shape (resamples,)."""
    low, high = np.percentile(resampled, COVERED)
    return Estimate(float(mean), float(low), float(high))


def difference(mean: float, resampled: npt.NDArray[np.float64]) -> Difference:
    """Percentile interval of resampled differences, shape (resamples,), and the p-value that inverts it."""
    low, high = np.percentile(resampled, COVERED)
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + len(resampled)))
    return Difference(float(mean), float(low), float(high), p_value)


def estimates(
    values: Mapping[str, npt.NDArray[np.float64]],
    users: npt.NDArray[np.int64],
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> dict[str, Estimate]:
    """Mean and interval of each named column, shape (cases,) each."""
    columns = np.stack(list(values.values()), axis=1)
    resampled = bootstrap.means(columns, users)
    return {name: estimate(float(columns[:, i].mean()), resampled[:, i]) for i, name in enumerate(values)}


def differences(
    first: Mapping[str, npt.NDArray[np.float64]],
    second: Mapping[str, npt.NDArray[np.float64]],
    users: npt.NDArray[np.int64],
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> dict[str, Difference]:
    """Paired difference first - second of each named column, shape (cases,) each, of the same cases in the same order."""
    columns = np.stack([first[name] - second[name] for name in first], axis=1)
    resampled = bootstrap.means(columns, users)
    return {name: difference(float(columns[:, i].mean()), resampled[:, i]) for i, name in enumerate(first)}
