"""BPR against arithmetic and a loop."""

from __future__ import annotations

import math

import pytest
import torch

from mmrec.errors import ConfigError
from mmrec.objectives.negatives import Pairs
from mmrec.objectives.pairwise import bpr_loss


def softplus(value: float) -> float:
    return math.log(1 + math.exp(value))


def test_by_hand() -> None:
    vectors, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    loss = bpr_loss(vectors, items, torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([1.0, 3.0]))
    first = (softplus(0 - 1) + softplus(3 - 1)) / 2
    second = softplus(0 - 6)  # item 2 is the second target's own
    assert loss.item() == pytest.approx((first + 3 * second) / 4, rel=1e-6)


def test_excluded_negatives_and_targets_without_any_do_not_count() -> None:
    vectors, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    excluded = Pairs(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]))
    loss = bpr_loss(
        vectors, items, torch.tensor([1, 2]), torch.tensor([0, 2, 0]), torch.tensor([1.0, 3.0]), excluded=excluded
    )
    assert loss.item() == pytest.approx(softplus(-1), rel=1e-6)


def test_equals_a_loop_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    items = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    positions, negatives = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([8, 0, 5, 5, 3])
    weight = torch.rand(6, dtype=torch.float64)
    excluded = Pairs(torch.tensor([0, 2, 5]), torch.tensor([8, 5, 7]))
    barred = {(0, 8), (2, 5), (5, 7)}
    total = torch.zeros((), dtype=torch.float64)
    for target, position in enumerate(positions.tolist()):
        used = [n for n in negatives.tolist() if n != position and (target, n) not in barred]
        gaps = [vectors[target] @ (items[position] - items[n]) for n in used]
        total = total + weight[target] * torch.stack([-torch.sigmoid(gap).log() for gap in gaps]).mean()
    expected = total / weight.sum()
    loss = bpr_loss(vectors, items, positions, negatives, weight, excluded=excluded)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [vectors, items])
    for got, want in zip(torch.autograd.grad(loss, [vectors, items]), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_no_negatives_is_an_error_that_names_the_key() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"objective\.negatives"):
        bpr_loss(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]), none, torch.ones(1))


def test_autocast_keeps_float32_scores() -> None:
    torch.manual_seed(0)
    vectors, items = torch.randn(3, 8), torch.randn(5, 8)
    arguments = (torch.tensor([0, 1, 2]), torch.tensor([3, 4]), torch.ones(3))
    plain = bpr_loss(vectors, items, *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bpr_loss(vectors, items, *arguments).item() == plain.item()
