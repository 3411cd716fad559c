"""Dropout hides the share it says, keeps the mean, and differentiates like any product."""

from __future__ import annotations

import pytest
import torch

from mmrec.model.dropout import Dropout, attend, drop


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_hides_the_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    dropped = drop(torch.ones(1000, 1000), share)
    hidden = (dropped == 0).float()
    # Five standard deviations of a mean over a million values.
    assert hidden.mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 1e6) ** 0.5 + 2**-16)
    assert dropped.mean().item() == pytest.approx(1.0, abs=5 * (share / (1 - share) / 1e6) ** 0.5 + 2**-16)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)], rel=1e-3)


def test_values_are_hidden_independently_of_their_neighbours() -> None:
    torch.manual_seed(0)
    kept = (drop(torch.ones(1_000_000), 0.3) > 0).float() - 0.7
    for distance in (1, 2, 3, 4, 8, 64):
        assert abs((kept[:-distance] * kept[distance:]).mean().item()) < 5 * 0.21 / 1000


def test_gradient_is_that_of_a_product() -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    dropped = drop(values, 0.4)
    dropped.sum().backward()
    scale = torch.where(dropped == 0, 0.0, 1 / (1 - round(0.4 * 65536) / 65536))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, scale.double())
    torch.testing.assert_close(dropped, values * scale)


def test_same_seed_same_lots() -> None:
    first, second = (drop(torch.ones(50), 0.5) for _ in range(2) if torch.manual_seed(4))
    assert torch.equal(first, second)


def test_does_nothing_in_evaluation_or_without_a_share() -> None:
    values = torch.randn(4, 4)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values
    assert not torch.equal(Dropout(0.5)(values), values)


def test_no_values() -> None:
    assert drop(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_attention_with_dropout_has_the_mean_of_attention_without() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 1, 2, 6, 4).unbind()
    mask = torch.zeros(1, 2, 6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)
    plain = attend(queries, keys, values, mask, share=0.0)
    many = torch.stack([attend(queries, keys, values, mask, share=0.3) for _ in range(4000)])
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), plain, atol=0.06, rtol=0)
