"""The chunked sum equals its dense twin in value and gradient, and never holds all scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec.objectives import logsumexp
from mmrec.objectives.logsumexp import weighted_logsumexp
from mmrec.objectives.negatives import Pairs
from mmrec.training.operations import operation_counter
from tests.torch_threads import torch_threads


def pairs(*entries: tuple[int, int]) -> Pairs:
    table = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2)
    return Pairs(table[:, 0], table[:, 1])


def dense(
    targets: Tensor,
    candidates: Tensor,
    log_weights: Tensor | None = None,
    unweighted: Pairs | None = None,
    excluded: Pairs | None = None,
) -> Tensor:
    """The same, one target at a time and with all its scores."""
    plain, barred = (set() if p is None else entries(p) for p in (unweighted, excluded))
    weights = torch.zeros(len(candidates), dtype=targets.dtype) if log_weights is None else log_weights
    totals = []
    for t, scores in enumerate(targets @ candidates.T):
        weighted = [
            score + (0.0 if (t, c) in plain else weights[c])
            for c, score in enumerate(scores)
            if (t, c) not in barred and ((t, c) in plain or weights[c] > -torch.inf)
        ]
        totals.append(torch.stack(weighted).logsumexp(0) if weighted else scores.new_tensor(-torch.inf))
    return torch.stack(totals)


def entries(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.target_index.tolist(), pairs.item_index.tolist(), strict=True))


def test_by_hand() -> None:
    targets, candidates = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    expected = math.log(1 + math.exp(2) + math.exp(-2))
    assert weighted_logsumexp(targets, candidates, chunk=2).item() == pytest.approx(expected, rel=1e-6)


def test_weights_by_hand() -> None:
    targets, candidates = torch.tensor([[0.0], [0.0]]), torch.zeros(4, 1)
    log_weights = torch.tensor([math.log(2.0), math.log(3.0), -torch.inf, 0.0])
    result = weighted_logsumexp(
        targets,
        candidates,
        chunk=3,
        log_weights=log_weights,
        unweighted=pairs((0, 0), (0, 0), (0, 2)),
        excluded=pairs((1, 3), (1, 3)),
    )
    assert result.exp().tolist() == pytest.approx([1 + 3 + 1 + 1, 2 + 3], rel=1e-6)


def test_exclusion_wins_over_unweighted() -> None:
    result = weighted_logsumexp(
        torch.zeros(1, 1),
        torch.zeros(3, 1),
        chunk=3,
        log_weights=torch.zeros(3),
        unweighted=pairs((0, 1)),
        excluded=pairs((0, 1)),
    )
    assert result.exp().item() == pytest.approx(2.0, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    num_targets=st.integers(1, 9),
    num_candidates=st.integers(1, 11),
    chunk=st.integers(1, 12),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
    weighted=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_the_dense_twin_whatever_the_blocks_and_threads(
    num_targets: int, num_candidates: int, chunk: int, rows: int, seed: int, weighted: bool, threads: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def some_pairs() -> Pairs:
        marked = torch.rand(num_targets, num_candidates, generator=generator) < 0.3
        return Pairs(*marked.nonzero(as_tuple=True))

    targets, candidates = drawn(num_targets, 3), drawn(num_candidates, 3)
    log_weights = drawn(num_candidates) if weighted else None
    if log_weights is not None:
        log_weights[torch.rand(num_candidates, generator=generator) < 0.3] = -torch.inf
    unweighted, excluded, upstream = some_pairs(), some_pairs(), drawn(num_targets)
    with pytest.MonkeyPatch.context() as patch, torch_threads(threads):
        patch.setattr(logsumexp, "CPU_BLOCK", (rows, 4))
        patch.setattr(logsumexp, "THREAD_SCORES", 1)
        fast = gradients(
            lambda t, c: weighted_logsumexp(
                t, c, chunk=chunk, log_weights=log_weights, unweighted=unweighted, excluded=excluded
            ),
            targets,
            candidates,
            upstream,
        )
    naive = gradients(lambda t, c: dense(t, c, log_weights, unweighted, excluded), targets, candidates, upstream)
    for one, other in zip(fast, naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def gradients(
    function: Callable[[Tensor, Tensor], Tensor], targets: Tensor, candidates: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    targets, candidates = targets.clone().requires_grad_(), candidates.clone().requires_grad_()
    value = function(targets, candidates)
    some = value.isfinite()
    total = (value[some] * upstream[some]).sum() + 0 * (targets.sum() + candidates.sum())
    return (value.detach(), *torch.autograd.grad(total, (targets, candidates)))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    targets = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t, c: weighted_logsumexp(t, c, chunk=3, excluded=pairs((0, 6), (4, 1))), (targets, candidates)
    )


def test_no_candidate_is_minus_infinity_and_its_gradient_zero() -> None:
    targets = torch.randn(2, 3, requires_grad=True)
    candidates = torch.randn(2, 3, requires_grad=True)
    value = weighted_logsumexp(targets, candidates, chunk=1, excluded=pairs((0, 0), (0, 1)))
    assert value[0].item() == -math.inf
    assert value[1].isfinite()
    torch.logaddexp(value, torch.zeros(2)).sum().backward()
    assert targets.grad is not None
    assert candidates.grad is not None
    assert targets.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert candidates.grad.isfinite().all()
    empty = weighted_logsumexp(targets, torch.empty(0, 3), chunk=4)
    assert empty.tolist() == [-math.inf, -math.inf]


def test_extreme_scores_neither_overflow_nor_vanish() -> None:
    targets = torch.tensor([[1000.0], [-1000.0]])
    candidates = torch.tensor([[1.0], [0.5], [-1.0]])
    value = weighted_logsumexp(targets, candidates, chunk=1)
    assert value.tolist() == pytest.approx([1000.0, 1000.0])
    value = weighted_logsumexp(targets, candidates, chunk=2, excluded=pairs((0, 0), (1, 2)))
    assert value.tolist() == pytest.approx([500.0, -500.0])


def test_not_a_number_is_not_hidden() -> None:
    assert weighted_logsumexp(torch.tensor([[math.nan]]), torch.ones(3, 1), chunk=2).isnan().all()


def test_what_is_counted_is_all_of_it_and_the_same() -> None:
    torch.manual_seed(0)
    targets, candidates = torch.randn(40, 8), torch.randn(90, 8)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        return gradients(lambda t, c: weighted_logsumexp(t, c, chunk=16), targets, candidates, torch.ones(40))

    with pytest.MonkeyPatch.context() as patch, torch_threads(2):
        patch.setattr(logsumexp, "THREAD_SCORES", 1)
        plain = run()
        with operation_counter() as counter:
            counted = run()
    assert counter.get_total_flops() == 4 * 2 * 40 * 90 * 8
    for one, other in zip(plain, counted, strict=True):
        assert torch.equal(one, other)


def test_half_precision_and_autocast_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    targets = (torch.randn(6, 8) * 3).bfloat16().requires_grad_()
    candidates = torch.randn(40, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = weighted_logsumexp(targets, candidates, chunk=7)
        value.sum().backward()
    assert value.dtype == torch.float32
    wide = targets.detach().double().requires_grad_(), candidates.detach().double().requires_grad_()
    expected = (wide[0] @ wide[1].T).logsumexp(1)
    expected.sum().backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    for one, other in zip((targets, candidates), wide, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == torch.bfloat16
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-2, atol=1e-3)


def test_a_frozen_half_precision_bank_is_widened_chunk_by_chunk() -> None:
    torch.manual_seed(0)
    targets, bank = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4).half()
    value = weighted_logsumexp(targets, bank, chunk=2)
    torch.testing.assert_close(value, dense(targets, bank.float()), rtol=1e-6, atol=1e-6)
    value.sum().backward()
    assert targets.grad is not None
    softmax = torch.softmax(targets.detach() @ bank.float().T, 1)
    torch.testing.assert_close(targets.grad, softmax @ bank.float(), rtol=1e-5, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives, views and outputs in place included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def test_no_tensor_grows_with_targets_times_candidates() -> None:
    targets, candidates = torch.randn(1100, 4, requires_grad=True), torch.randn(3000, 4, requires_grad=True)
    with torch_threads(1), LargestTensor() as largest:
        weighted_logsumexp(targets, candidates, chunk=64, log_weights=torch.zeros(3000)).sum().backward()
    assert largest.numel == 2 * 367 * 64  # scores and probabilities of one block: a third of the targets
    with LargestTensor() as largest:
        (targets @ candidates.T).logsumexp(1).sum().backward()
    assert largest.numel == 1100 * 3000  # the probe sees what a dense sum would hold
