"""Patch convolutions as matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrec.encoders.patches import PatchConvolution, multiply_patches
from mmrec.encoders.tuning import Layers, frozen_hash


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(16, 24), (21, 31)])
def test_equals_the_convolution_in_value_and_gradient(size: tuple[int, int], bias: bool) -> None:
    layer = nn.Conv2d(3, 5, kernel_size=8, stride=8, bias=bias).double()
    model = nn.Sequential(layer)
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    found = []
    for replaced in (False, True):
        if replaced:
            print_ = frozen_hash(Layers(model, (model,)), 1, extra="")
            multiply_patches(model)
            assert isinstance(model[0], PatchConvolution)
            assert frozen_hash(Layers(model, (model,)), 1, extra="") == print_
        given = pixels.clone().requires_grad_()
        states = model(given)
        model.zero_grad()
        states.sin().sum().backward()
        found.append([states, given.grad, *(parameter.grad.clone() for parameter in model.parameters())])
    assert dict(model.named_parameters())["0.weight"] is layer.weight
    for plain, product in zip(*found, strict=True):
        torch.testing.assert_close(product, plain)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, kernel_size=16, stride=8),
        nn.Conv2d(3, 4, kernel_size=8, stride=8, padding=1),
        nn.Conv2d(4, 4, kernel_size=8, stride=8, groups=2),
        nn.Conv2d(3, 4, kernel_size=8, stride=8, dilation=2),
        nn.Conv2d(3, 4, kernel_size=4, stride=4),
    ],
)
def test_other_convolutions_stay(layer: nn.Conv2d) -> None:
    model = nn.Sequential(layer)
    multiply_patches(model)
    assert model[0] is layer
