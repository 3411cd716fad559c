"""The contrastive loss against arithmetic and a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmrec.objectives.contrastive import contrastive_loss


def test_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[5.0, 0.0], [3.0, 4.0]])
    ids = torch.arange(2)
    # cosines: rows (1, 0.6) and (0, 0.8); temperature 0.5 doubles them
    rows = [math.log(math.exp(2) + math.exp(1.2)) - 2, math.log(1 + math.exp(1.6)) - 1.6]
    columns = [math.log(math.exp(2) + 1) - 2, math.log(math.exp(1.2) + math.exp(1.6)) - 1.6]
    loss = contrastive_loss(first, second, ids, ids, temperature=0.5)
    assert loss.item() == pytest.approx(sum(rows + columns) / 4, rel=1e-5)


def test_shared_contents_are_not_negatives() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    captions, pictures = torch.tensor([7, 7, 9]), torch.tensor([1, 2, 1])
    # 0 and 1 share a caption, 0 and 2 a picture: only 1 and 2 are negatives of each other
    cosine = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T
    pair = functional.cross_entropy(cosine[1:, 1:], torch.arange(2), reduction="sum")
    pair = pair + functional.cross_entropy(cosine[1:, 1:].T, torch.arange(2), reduction="sum")
    loss = contrastive_loss(first, second, captions, pictures, temperature=1.0)
    assert loss.item() == pytest.approx(pair.item() / 2 / 3, rel=1e-5)


def naive(first: Tensor, second: Tensor, left: list[int], right: list[int], temperature: float) -> Tensor:
    first, second = first / first.norm(dim=1, keepdim=True), second / second.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(first)):
        free = [j for j in range(len(first)) if j == i or (left[i] != left[j] and right[i] != right[j])]
        own = first[i] @ second[i] / temperature
        forward = torch.stack([first[i] @ second[j] / temperature for j in free])
        backward = torch.stack([first[j] @ second[i] / temperature for j in free])
        losses.append((forward.logsumexp(0) + backward.logsumexp(0)) / 2 - own)
    return torch.stack(losses).mean()


def test_equals_a_loop_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    left, right = [0, 1, 0, 2, 3, 4], [5, 6, 7, 6, 8, 9]
    expected = naive(first, second, left, right, 0.3)
    loss = contrastive_loss(first, second, torch.tensor(left), torch.tensor(right), temperature=0.3)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [first, second])
    for got, want in zip(torch.autograd.grad(loss, [first, second]), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_symmetric_and_blind_to_length_and_order() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    left, right = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([0, 1, 2, 3, 3])
    loss = contrastive_loss(first, second, left, right, temperature=0.1)
    swapped = contrastive_loss(second, first * 7, right, left, temperature=0.1)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = contrastive_loss(first[order], second[order], left[order], right[order], temperature=0.1)
    assert swapped.item() == pytest.approx(loss.item(), rel=1e-5)
    assert shuffled.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("pairs", [0, 1])
def test_fewer_than_two_pairs_have_nothing_to_tell_apart(pairs: int) -> None:
    first, second = torch.randn(pairs, 3, requires_grad=True), torch.randn(pairs, 3)
    loss = contrastive_loss(first, second, torch.arange(pairs), torch.arange(pairs), temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_views_are_compared_in_float32() -> None:
    torch.manual_seed(0)
    first, second, ids = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16(), torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(first, second, ids, ids, temperature=0.05)
    exact = contrastive_loss(first.double(), second.double(), ids, ids, temperature=0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
