"""Softmax losses against arithmetic, dense twins and the mean over all batches."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmrec.objectives.negatives import Pairs, inclusion_probability, window_pairs
from mmrec.objectives.softmax import full_softmax_loss, in_batch_softmax_loss


def leaves(*shapes: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    return (losses * weight).sum() / weight.sum()


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_fresh_is_dense_cross_entropy(chunk: int, dtype: torch.dtype) -> None:
    vectors, items = leaves((5, 3), (7, 3), dtype=dtype)
    rows, positions = torch.tensor([4, 0, 6, 2, 1, 3, 5]), torch.tensor([6, 0, 3, 3, 1])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=dtype)
    expected = weighted(functional.cross_entropy(vectors @ items.T, positions, reduction="none"), weight)
    wanted = torch.autograd.grad(expected, [vectors, items])
    stale = torch.full((7, 3), 9.0, dtype=dtype)
    for bank in (None, stale):  # every row of the bank is fresh, so that it may hold anything
        loss = full_softmax_loss(vectors, items, rows, positions, bank, weight, chunk=chunk)
        torch.testing.assert_close(loss, expected)
        for got, want in zip(torch.autograd.grad(loss, [vectors, items]), wanted, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_fresh_rows_replace_those_of_the_bank(chunk: int, learned: bool) -> None:
    vectors, items, bank = leaves((6, 3), (3, 3), (10, 3))
    rows, positions = torch.tensor([8, 2, 5]), torch.tensor([0, 1, 2, 2, 0, 1])
    weight = torch.ones(6, dtype=torch.float64)
    parameters = [vectors, items, bank] if learned else [vectors, items]
    table = bank if learned else bank.detach()
    mixed = table.index_copy(0, rows, items)
    expected = functional.cross_entropy(vectors @ mixed.T, rows[positions])
    loss = full_softmax_loss(vectors, items, rows, positions, table, weight, chunk=chunk)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, parameters)
    for got, want in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_gradcheck_with_bank_and_uneven_chunk() -> None:
    vectors, items, bank = leaves((4, 2), (3, 2), (8, 2))
    assert torch.autograd.gradcheck(
        lambda v, i, b: full_softmax_loss(
            v,
            i,
            torch.tensor([7, 0, 3]),
            torch.tensor([0, 1, 2, 0]),
            b,
            torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64),
            chunk=3,
        ),
        (vectors, items, bank),
    )


def test_excluded_and_ineligible_rows_are_not_negatives() -> None:
    vectors, items = torch.zeros(2, 1), torch.zeros(2, 1)
    bank, rows, weight = torch.zeros(6, 1), torch.tensor([4, 1]), torch.ones(2)
    positions = torch.tensor([0, 1])

    def loss(**options: Pairs | Tensor) -> float:
        return full_softmax_loss(vectors, items, rows, positions, bank, weight, chunk=4, **options).item()  # type: ignore[arg-type]

    assert loss() == pytest.approx(math.log(6), rel=1e-6)
    one_of_the_first = Pairs(torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert loss(excluded=one_of_the_first) == pytest.approx((math.log(5) + math.log(6)) / 2, rel=1e-6)
    own = Pairs(torch.tensor([0, 1]), positions).without_own(positions)
    assert loss(excluded=own) == pytest.approx(math.log(6), rel=1e-6)
    eligible = torch.tensor([True, False, False, True, False, True])  # 1 and 4 are fresh and count nevertheless
    assert loss(eligible=eligible) == pytest.approx(math.log(5), rel=1e-6)


def test_nothing_to_predict_is_zero_with_zero_gradient() -> None:
    vectors, items = torch.zeros(0, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = full_softmax_loss(vectors, items, torch.arange(4), none, torch.randn(9, 3), torch.zeros(0), chunk=4)
    loss.backward()
    assert loss.item() == 0.0
    assert items.grad is not None
    assert items.grad.abs().sum().item() == 0.0


@pytest.mark.parametrize("chunk", [2, 5, 50])
def test_in_batch_loss_equals_its_formula(chunk: int) -> None:
    vectors, items = leaves((4, 3), (5, 3))
    positions, weight = torch.tensor([0, 1, 4, 4]), torch.tensor([1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    probability = torch.tensor([0.5, 0.25, 0.125, 1.0, 0.2], dtype=torch.float64)
    certain = Pairs(torch.tensor([0, 1, 2, 3, 0, 2]), torch.tensor([0, 1, 4, 4, 1, 2]))  # each own item, and two more
    excluded = Pairs(torch.tensor([1, 2, 3]), torch.tensor([3, 2, 4]))
    excluded = excluded.without_own(positions)  # (3, 4) is target 3's own item: it stays
    factor = (1 / probability).expand(4, 5).clone()
    factor[torch.arange(4), positions] = 1.0
    factor[[0, 2], [1, 4]] = 1.0
    factor[[1, 2], [3, 2]] = 0.0
    denominator = ((vectors @ items.T).exp() * factor).sum(1)
    own = (vectors * items[positions]).sum(1)
    expected = weighted(denominator.log() - own, weight)
    loss = in_batch_softmax_loss(
        vectors, items, positions, probability.log(), weight, chunk=chunk, certain=certain, excluded=excluded
    )
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [vectors, items])
    for got, want in zip(torch.autograd.grad(loss, [vectors, items]), wanted, strict=True):
        torch.testing.assert_close(got, want)


WINDOWS = [[0, 1], [1, 2, 3], [0, 4], [3, 5], [1, 5, 6]]
"""Items that each of five users brings along; items 7 and 8 come only as sampled negatives."""


def denominator(
    users: tuple[int, ...], sampled: tuple[int, ...], scores: Tensor, positive: int, num_items: int
) -> float:
    """Denominator of user 0's only target in one batch of a feed of ``WINDOWS``."""
    batch = torch.tensor(sorted({item for user in users for item in WINDOWS[user]} | set(sampled)))
    place = {int(item): position for position, item in enumerate(batch)}
    length = max(len(window) for window in WINDOWS)
    slots = torch.zeros(len(users), length, dtype=torch.int64)
    valid = torch.zeros(len(users), length, dtype=torch.bool)
    for row, user in enumerate(users):
        slots[row, : len(WINDOWS[user])] = torch.tensor([place[item] for item in WINDOWS[user]])
        valid[row, : len(WINDOWS[user])] = True
    counts = torch.tensor([sum(item in window for window in WINDOWS) for item in range(num_items)])
    probability = inclusion_probability(
        counts[batch],
        num_users=len(WINDOWS),
        batch_users=len(users),
        negatives=len(sampled),
        num_items=num_items,
    )
    own = torch.tensor([place[positive]])
    loss = in_batch_softmax_loss(
        torch.ones(1, 1, dtype=torch.float64),
        scores[batch].unsqueeze(1),
        own,
        probability.log(),
        torch.ones(1),
        chunk=4,
        certain=window_pairs(slots, valid, torch.tensor([users.index(0)]), own),
    )
    return math.exp(loss.item() + scores[positive].item())


@pytest.mark.parametrize("batch_users", [1, 2, 3, 4, 5])
def test_mean_over_all_batches_is_the_dense_sum(batch_users: int) -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2, 1.1, 0.7], dtype=torch.float64)
    others = combinations(range(1, 5), batch_users - 1)
    values = [denominator((0, *chosen), (), scores, 1, 7) for chosen in others]
    reachable = torch.arange(7) if batch_users > 1 else torch.tensor(WINDOWS[0])
    assert sum(values) / len(values) == pytest.approx(scores[reachable].exp().sum().item(), rel=1e-9)


@pytest.mark.parametrize("batch_users", [1, 2])
def test_mean_over_all_batches_and_all_draws_is_the_sum_over_the_catalogue(batch_users: int) -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2, 1.1, 0.7, -3.0, 1.5], dtype=torch.float64)
    values = [
        denominator((0, *chosen), sampled, scores, 1, 9)
        for chosen in combinations(range(1, 5), batch_users - 1)
        for sampled in combinations(range(9), 2)
    ]
    assert sum(values) / len(values) == pytest.approx(scores.exp().sum().item(), rel=1e-9)


def test_what_did_not_exist_yet_is_no_negative() -> None:
    """Three items, the last from time 5 on: a target of time 4 is compared with two, one of time 6 with three."""
    items = torch.eye(3, dtype=torch.float64, requires_grad=True)
    users = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    first_seen, times = torch.tensor([0, 0, 5]), torch.tensor([4, 6])
    rows, positions, weight = torch.arange(3), torch.tensor([0, 0]), torch.ones(2, dtype=torch.float64)
    e, e2 = math.e, math.e**2
    expected = (-math.log(e / (e + 1)) - math.log(e / (e + 1 + e2))) / 2
    fresh = full_softmax_loss(
        users, items, rows, positions, None, weight, chunk=2, first_seen=first_seen, target_times=times
    )
    stored = full_softmax_loss(
        users,
        items[:1],
        rows[:1],
        positions,
        items.detach(),
        weight,
        chunk=2,
        first_seen=first_seen,
        target_times=times,
    )
    assert fresh.item() == pytest.approx(expected)
    assert stored.item() == pytest.approx(expected)
    fresh.backward()
    assert items.grad is not None
    assert items.grad[2, 0].item() == pytest.approx(e2 / (e + 1 + e2) / 2), "only the second target sees the third item"
