"""Rows of different lengths through a network that wants rectangles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrec.encoders.buckets import plan_buckets, plan_exact, run_ragged
from mmrec.encoders.work import EncodingWork

some_lengths = st.lists(st.integers(1, 70), min_size=0, max_size=60)


@given(lengths=some_lengths, room=st.integers(1, 500))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("plan", [plan_buckets, plan_exact])
def test_each_row_is_in_one_bucket_of_bounded_size(plan: object, lengths: list[int], room: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    buckets = plan(sizes, max_tokens=room)  # type: ignore[operator]
    assert sorted(row for bucket in buckets for row in bucket) == list(range(len(sizes)))
    for bucket in buckets:
        width = -(-sizes[bucket].max() // 4) * 4 if plan is plan_exact else sizes[bucket].max()
        assert len(bucket) == 1 or len(bucket) * width <= room


def test_exact_plan_pads_a_row_by_its_own_length_alone() -> None:
    buckets = plan_exact(np.array([5, 8, 3, 9, 4, 7]), max_tokens=1000)
    assert [sorted(bucket.tolist()) for bucket in buckets] == [[3], [0, 1, 5], [2, 4]]


def test_similar_plan_bounds_padding() -> None:
    lengths = np.array([60] * 50 + [30] * 50 + [10] * 50)
    buckets = plan_buckets(lengths, max_tokens=100_000)
    padded = sum(len(b) * lengths[b].max() for b in buckets)
    assert padded < 1.12 * lengths.sum()
    assert len(buckets) <= 6


@given(lengths=some_lengths, longest=st.sampled_from([None, 70, 100]))
@settings(max_examples=40, deadline=None)
def test_equals_the_rows_one_by_one_in_value_and_gradient(lengths: list[int], longest: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)

    def run(padded: Tensor, valid: Tensor | None) -> Tensor:
        """Each token plus the mean of its row's tokens: rows matter as wholes, padding must not."""
        mask = torch.ones(padded.shape[:2], dtype=torch.bool) if valid is None else valid
        kept = padded * mask.unsqueeze(2)
        return (padded + kept.sum(1, keepdim=True) / mask.sum(1).view(-1, 1, 1)) @ weight

    fast = torch.randn(sum(lengths), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    slow = fast.detach().clone().requires_grad_()
    work = EncodingWork()
    sizes = torch.tensor(lengths, dtype=torch.long)
    states = run_ragged(fast, sizes, run=run, dim=2, work=work, max_tokens=200, longest=longest)
    if not lengths:
        assert states.shape == (0, 2)
        return
    expected = torch.cat([run(row.unsqueeze(0), None)[0] for row in slow.split(lengths)])
    torch.testing.assert_close(states, expected)
    states.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)
    assert work.real_tokens == sum(lengths)
    assert work.padded_tokens >= work.real_tokens


def test_rows_are_never_padded_beyond_the_longest_the_network_takes() -> None:
    widths = []

    def run(padded: Tensor, valid: Tensor | None) -> Tensor:
        widths.append(padded.shape[1])
        return padded

    run_ragged(torch.zeros(15, 1), torch.tensor([6, 9]), run=run, dim=1, work=EncodingWork(), max_tokens=64, longest=10)
    assert widths == [10, 8]
