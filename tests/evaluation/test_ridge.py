from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec.evaluation.ridge import PENALTIES, fit_ridge


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def naive_error(inputs: Tensor, outputs: Tensor, penalty: float) -> float:
    """Mean squared error over rows, each predicted by a regression on all the others."""
    centred = inputs - inputs.mean(dim=0)
    strength = penalty * float(centred.square().sum()) / min(inputs.shape)
    errors = []
    for row in range(len(inputs)):
        kept = [other for other in range(len(inputs)) if other != row]
        x = torch.cat([inputs[kept], torch.ones(len(kept), 1)], dim=1)
        shrink = torch.diag(torch.tensor([strength] * inputs.shape[1] + [0.0]))
        weight = torch.linalg.solve(x.T @ x + shrink, x.T @ outputs[kept])
        guess = torch.cat([inputs[row], torch.ones(1)]) @ weight
        errors.append(float((guess - outputs[row]).square().mean()))
    return float(np.mean(errors))


def test_recovers_a_linear_map_with_an_intercept() -> None:
    inputs, weight, intercept = normal(200, 6), normal(6, 4, seed=1), normal(4, seed=2)
    ridge = fit_ridge(inputs, inputs @ weight + intercept)
    assert ridge.penalty == PENALTIES[0]
    new = normal(5, 6, seed=3)
    torch.testing.assert_close(ridge(new), new @ weight + intercept, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("rows", "noise"), [(40, 0.3), (40, 3.0), (12, 1.0)])
def test_keeps_the_penalty_that_is_best_on_rows_left_out(rows: int, noise: float) -> None:
    inputs = normal(rows, 5)
    outputs = inputs @ normal(5, 3, seed=1) + noise * normal(rows, 3, seed=2)
    errors = {penalty: naive_error(inputs, outputs, penalty) for penalty in PENALTIES}
    assert fit_ridge(inputs, outputs).penalty == min(errors, key=lambda penalty: errors[penalty])


def test_what_cannot_be_predicted_is_shrunk() -> None:
    assert fit_ridge(normal(60, 20), normal(60, 3, seed=1)).penalty == PENALTIES[-1]


def test_weight_is_the_textbook_solution() -> None:
    inputs, outputs = normal(30, 4), normal(30, 2, seed=1)
    ridge = fit_ridge(inputs, outputs, penalties=[0.5])
    x, y = inputs - inputs.mean(dim=0), outputs - outputs.mean(dim=0)
    gram = x.T @ x
    shrink = 0.5 * gram.trace() / 4 * torch.eye(4, dtype=gram.dtype)
    torch.testing.assert_close(ridge.weight, torch.linalg.solve(gram + shrink, x.T @ y))


def test_fewer_rows_than_dimensions_and_constant_inputs() -> None:
    assert fit_ridge(normal(5, 30), normal(5, 2, seed=1))(normal(3, 30, seed=2)).isfinite().all()
    ridge = fit_ridge(torch.ones(6, 3), normal(6, 2))
    torch.testing.assert_close(ridge(torch.ones(1, 3))[0], normal(6, 2).mean(dim=0))
