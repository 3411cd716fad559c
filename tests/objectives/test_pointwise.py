"""Pointwise losses against arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmrec.errors import FeedError
from mmrec.objectives.pointwise import bce_loss, mse_loss

NAN = math.nan


def log_sigmoid(value: float) -> float:
    return -math.log(1 + math.exp(-value))


def test_bce_by_hand() -> None:
    scores, values = torch.tensor([2.0, -1.0, 0.5, 9.0]), torch.tensor([1.0, 0.0, 0.25, NAN])
    losses = [-log_sigmoid(2), -log_sigmoid(1), -0.25 * log_sigmoid(0.5) - 0.75 * log_sigmoid(-0.5)]
    expected = (losses[0] + 2 * losses[1] + losses[2]) / 4
    assert bce_loss(scores, values, torch.tensor([1.0, 2.0, 1.0, 5.0])).item() == pytest.approx(expected, rel=1e-6)


def test_bce_takes_sampled_negatives_for_zeros() -> None:
    scores, values = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])
    sampled = torch.tensor([[-1.0, 3.0], [0.0, 7.0]])
    usable = torch.tensor([[True, True], [True, False]])
    first = (-log_sigmoid(2) - log_sigmoid(1) - log_sigmoid(-3)) / 3
    second = (-log_sigmoid(1) - log_sigmoid(0)) / 2
    loss = bce_loss(scores, values, torch.ones(2), negative_scores=sampled, usable=usable)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    all_of_them = bce_loss(scores[:1], values[:1], torch.ones(1), negative_scores=sampled[:1])
    assert all_of_them.item() == pytest.approx(first, rel=1e-6)


def test_mse_by_hand() -> None:
    scores, values = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([5.0, -2.0, NAN])
    assert mse_loss(scores, values, torch.tensor([1.0, 3.0, 1.0])).item() == pytest.approx((9 + 3 * 1) / 4)


@pytest.mark.parametrize("loss", [bce_loss, mse_loss])
def test_an_unknown_value_has_no_gradient_and_no_nan(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    scores = torch.tensor([0.5, 1.5], requires_grad=True)
    loss(scores, torch.tensor([1.0, NAN]), torch.ones(2)).backward()
    assert scores.grad is not None
    assert scores.grad[0].item() != 0.0
    assert scores.grad[1].item() == 0.0


def test_gradients_by_hand() -> None:
    scores = torch.tensor([0.5], requires_grad=True)
    bce_loss(scores, torch.tensor([1.0]), torch.ones(1)).backward()
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(1 / (1 + math.exp(-0.5)) - 1, rel=1e-6)
    scores.grad = None
    mse_loss(scores, torch.tensor([2.0]), torch.ones(1)).backward()
    assert scores.grad.item() == pytest.approx(2 * (0.5 - 2.0))


@pytest.mark.parametrize("loss", [bce_loss, mse_loss])
def test_no_value_at_all_is_an_error(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(FeedError, match="value column"):
        loss(torch.zeros(2), torch.full((2,), NAN), torch.ones(2))
    none = torch.zeros(0)
    assert loss(none, none, none).item() == 0.0


def test_bce_refuses_values_that_are_no_probabilities() -> None:
    with pytest.raises(FeedError, match="values from 1 to 5"):
        bce_loss(torch.zeros(3), torch.tensor([1.0, 5.0, NAN]), torch.ones(3))
