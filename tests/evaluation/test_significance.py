from __future__ import annotations

import numpy as np
import pytest

from mmrec.evaluation.significance import Bootstrap, differences, estimates


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).integers(0, 2, size=2000).astype(np.float64)
    found = estimates({"hr@10": values}, np.arange(2000))["hr@10"]
    error = values.std() / np.sqrt(2000)
    assert found.mean == values.mean()
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_a_users_cases_are_drawn_together() -> None:
    users = np.repeat(np.arange(100), 20)
    per_user = np.random.default_rng(1).normal(size=100)[users]
    clustered = estimates({"x": per_user}, users)["x"]
    loose = estimates({"x": per_user}, np.arange(2000))["x"]
    assert (clustered.high - clustered.low) / (loose.high - loose.low) == pytest.approx(np.sqrt(20), rel=0.15)


def test_means_weigh_cases_not_users() -> None:
    means = Bootstrap(resamples=400).means(np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([7, 7, 7, 9]))
    # Two users drawn of two: both the first (0), one each (1 / 4), both the second (1).
    assert set(np.unique(means).tolist()) == {0.0, 0.25, 1.0}
    assert (means == 0.25).mean() == pytest.approx(1 / 2, abs=0.08)


def test_paired_difference_sees_what_two_intervals_hide() -> None:
    generator = np.random.default_rng(2)
    hard = generator.normal(size=400)
    first, second = {"m": hard + 0.05}, {"m": hard + generator.normal(scale=0.1, size=400)}
    users = np.arange(400)
    gap = differences(first, second, users)["m"]
    assert gap.low > 0
    assert gap.p_value < 0.01
    assert estimates(first, users)["m"].low < estimates(second, users)["m"].high


def test_equal_runs_differ_by_nothing() -> None:
    values = {"m": np.array([0.0, 1.0, 0.0, 1.0])}
    gap = differences(values, values, np.arange(4))["m"]
    assert (gap.mean, gap.low, gap.high, gap.p_value) == (0, 0, 0, 1)


def test_p_value_is_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(4)
    samples = {str(i): generator.normal(size=120) for i in range(300)}
    nothing = {name: np.zeros(120) for name in samples}
    found = differences(samples, nothing, np.arange(120), bootstrap=Bootstrap(resamples=400))
    small = np.mean([gap.p_value < 0.1 for gap in found.values()])
    assert small == pytest.approx(0.1, abs=0.06)


def test_seed_decides_the_draws_whatever_the_number_of_columns() -> None:
    values = np.random.default_rng(5).normal(size=(50, 3))
    users = np.arange(50)
    one = Bootstrap(resamples=20, seed=3).means(values[:, :1], users)
    all_columns = Bootstrap(resamples=20, seed=3).means(values, users)
    other = Bootstrap(resamples=20, seed=4).means(values, users)
    np.testing.assert_allclose(one[:, 0], all_columns[:, 0])
    assert not np.allclose(all_columns, other)


def test_one_user() -> None:
    found = estimates({"m": np.array([0.25])}, np.array([3]))["m"]
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
