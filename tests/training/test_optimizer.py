from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmrec.training.optimizer import (
    EncoderRate,
    ParameterGroup,
    build_adamw,
    parameter_groups,
    set_rates,
    warmup_cosine,
)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.blocks[0].requires_grad_(False)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.blocks[2].parameters()), list(self.blocks[1].parameters())]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.ids = nn.Embedding(4, 2)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)
        self.temperature = nn.Parameter(torch.tensor(0.05))


def groups_of(model: Model) -> list[ParameterGroup]:
    rate = EncoderRate(layers=model.encoder.layer_groups(), learning_rate=1e-4, layer_decay=0.5)
    return parameter_groups(model, learning_rate=1e-2, weight_decay=0.1, encoder_rates={"text": rate})


def test_rate_and_decay_of_every_parameter() -> None:
    found = {name: (group["peak"], group["weight_decay"]) for group in groups_of(Model()) for name in group["names"]}
    assert found == {
        "temperature": (1e-2, 0.0),
        "encoder.blocks.1.weight": (0.5 * 1e-4, 0.1),
        "encoder.blocks.1.bias": (0.5 * 1e-4, 0.0),
        "encoder.blocks.2.weight": (1e-4, 0.1),
        "encoder.blocks.2.bias": (1e-4, 0.0),
        "ids.weight": (1e-2, 0.0),
        "norm.weight": (1e-2, 0.0),
        "norm.bias": (1e-2, 0.0),
        "head.weight": (1e-2, 0.1),
        "head.bias": (1e-2, 0.0),
    }


def test_every_trainable_parameter_once() -> None:
    model = Model()
    groups = groups_of(model)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trained
    names = dict(model.named_parameters())
    for group in groups:
        assert all(names[name] is parameter for name, parameter in zip(group["names"], group["params"], strict=True))


def test_set_rates_scales_each_peak() -> None:
    optimizer = build_adamw(groups_of(Model()))
    set_rates(optimizer, factor=0.25)
    assert all(group["lr"] == group["peak"] * 0.25 for group in optimizer.param_groups)
    set_rates(optimizer, factor=1.0)
    assert all(group["lr"] == group["peak"] for group in optimizer.param_groups)


def test_first_step_of_adamw_by_hand() -> None:
    """The first step of Adam is lr in the gradient's direction; AdamW shrinks the weight by lr * decay before it."""
    weight = nn.Parameter(torch.tensor([[2.0]]))
    group = ParameterGroup(params=[weight], names=["weight"], lr=0.1, peak=0.1, weight_decay=0.5)
    optimizer = build_adamw([group])
    (3.0 * weight).sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_fused_equals_plain() -> None:
    models = [Model(), Model()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        build_adamw(groups_of(models[0])),
        torch.optim.AdamW(groups_of(models[1]), fused=False, foreach=False),
    ]
    assert optimizers[0].param_groups[0]["fused"] is True
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            rows = model.norm(model.ids(torch.tensor([step, 3])))
            model.head(model.encoder.blocks[2](model.encoder.blocks[1](rows))).square().sum().backward()
            optimizer.step()
    for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_warmup_cosine_by_hand() -> None:
    # Ten steps, two of them warm-up: thirds up to the peak, then half a cosine over the other eight.
    factors = [warmup_cosine(step, total=10, warmup_share=0.2) for step in range(11)]
    expected = [1 / 3, 2 / 3, 1.0, *(0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 8)), 0.0]
    assert factors == pytest.approx(expected)
    assert factors[6] == pytest.approx(0.5)


@given(total=st.integers(1, 200), share=st.floats(0.0, 0.99))
def test_warmup_cosine_rises_then_falls(total: int, share: float) -> None:
    factors = [warmup_cosine(step, total=total, warmup_share=share) for step in range(total + 2)]
    top = factors.index(max(factors))
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(factor > 0.0 for factor in factors[:total])
    assert factors[total:] == [0.0, 0.0]
