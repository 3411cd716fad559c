"""Counts of matrix operations against arithmetic, and that counting changes no result."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mmrec.training.operations import REPEATS, matrix_peak, operation_counter
from tests.training.fake_clock import FakeClock


def test_products_are_counted_forward_and_backward() -> None:
    linear, inputs = nn.Linear(5, 7), torch.randn(3, 5)
    linear(inputs).sum().backward()
    expected = {name: parameter.grad for name, parameter in linear.named_parameters()}
    linear.zero_grad()
    with operation_counter() as counter:
        linear(inputs).sum().backward()
    # Forward, and the gradient of the weight; inputs need none.
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 7)
    for name, parameter in linear.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[name])  # type: ignore[arg-type]


def test_attention_on_a_cpu_is_counted() -> None:
    queries = torch.randn(2, 3, 4, 8, requires_grad=True)
    keys = torch.randn(2, 3, 6, 8)
    with operation_counter() as counter:
        functional.scaled_dot_product_attention(queries, keys, keys)
    forward = counter.get_total_flops()
    assert forward == 2 * (2 * (2 * 3) * 4 * 6 * 8)
    with operation_counter() as counter:
        functional.scaled_dot_product_attention(queries, keys, keys).sum().backward()
    # Backward computes the scores again, and gradients of values, weights, queries and keys: five products to two.
    assert counter.get_total_flops() == forward + forward // 2 * 5


def test_peak_is_that_of_the_fastest_product() -> None:
    clock, seconds = FakeClock(), iter([9.0, 4.0, 0.5, 4.0, 4.0, 4.0])
    calls = 0

    def tick() -> float:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            clock.wait(next(seconds))
        return clock()

    state = torch.get_rng_state()
    assert matrix_peak(torch.device("cpu"), dtype=torch.float32, size=8, clock=tick) == 2 * 8**3 / 0.5
    assert calls == 2 * (1 + REPEATS)
    assert torch.equal(torch.get_rng_state(), state)
