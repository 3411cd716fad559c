"""Padding and normalisation joined with convolutions: the same values, gradients, parameters and fingerprints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from mmrec.encoders.convolutions import SameConvolution, join_passes
from mmrec.encoders.tuning import Layers, frozen_hash


def uneven(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that show whether they were applied; everything in float64."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.normal_(norm.bias)
    return model.double()


def outcome(model: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return what a model makes of pixels, and the gradients of these and of its parameters."""
    given = pixels.clone().requires_grad_()
    states = model(given)
    model.zero_grad()
    states.sin().sum().backward()
    assert given.grad is not None
    return [states, given.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def joined(model: nn.Module, pixels: Tensor) -> list[str]:
    """Join what can be joined; return the names of the convolutions that normalise then."""
    join_passes(model, lambda: model(pixels))
    return [name for name, module in model.named_modules() if hasattr(module, "normalised_by")]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(12, 12), (13, 13), (12, 9)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_equals_timms(kernel: int, stride: int, dilation: int, size: tuple[int, int], groups: int) -> None:
    plain = nn.Sequential(Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=groups)).double()
    model = copy.deepcopy(plain)
    pixels = torch.randn(2, 4, *size, dtype=torch.float64)
    join_passes(model, lambda: model(pixels))
    assert isinstance(model[0], SameConvolution)
    for mine, theirs in zip(outcome(model, pixels), outcome(plain, pixels), strict=True):
        torch.testing.assert_close(mine, theirs)


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Conv2dSame(8, 8, 3, stride=2, groups=8, bias=False),
        BatchNormAct2d(8),
        nn.Conv2d(8, 5, 1, bias=False),
        nn.BatchNorm2d(5, affine=False),
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_norm_behind_a_convolution_is_joined_with_it(training: bool) -> None:
    plain = uneven(small_network())
    model = copy.deepcopy(plain)
    pixels = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert joined(model, pixels) == ["0", "3", "5"]
    assert all(module.training for module in model.modules())
    for mine, theirs in zip(
        outcome(model.train(training), pixels), outcome(plain.train(training), pixels), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_parameters_and_fingerprint_stay() -> None:
    model = uneven(small_network())
    before, print_ = dict(model.named_parameters()), frozen_hash(Layers(model, (model,)), 1, extra="")
    assert joined(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert all(model.get_parameter(name) is parameter for name, parameter in before.items())
    assert list(dict(model.named_parameters())) == list(before)
    assert frozen_hash(Layers(model, (model,)), 1, extra="") == print_


class Between(nn.Module):
    """A convolution and a norm with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), between

    def forward(self, pixels: Tensor) -> Tensor:
        """Run them."""
        states: Tensor = self.norm(self.between(self.conv(pixels)))
        return states


class ReadTwice(nn.Module):
    """A norm that is not the only one to read a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run both."""
        states = self.conv(pixels)
        both: Tensor = self.norm(states) + states
        return both


class RunTwice(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run all."""
        both: Tensor = self.norm(self.one(pixels)) + self.norm(self.two(pixels))
        return both


@pytest.mark.parametrize(
    "model",
    [
        Between(functional.relu),
        Between(lambda states: functional.relu(states, inplace=True)),
        ReadTwice(),
        RunTwice(),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_others_are_left_alone(model: nn.Module) -> None:
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = copy.deepcopy(model.double())
    assert joined(model, pixels) == []
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "resnetv2_50", "regnety_002"])
def test_networks_of_timm(name: str) -> None:
    plain = uneven(timm.create_model(name, num_classes=0)).eval()
    model = copy.deepcopy(plain)
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    features, expected = (cast("Callable[[Tensor], Tensor]", each.forward_features) for each in (model, plain))
    join_passes(model, lambda: features(pixels))
    assert any(hasattr(module, "normalised_by") for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(features(pixels), expected(pixels))
