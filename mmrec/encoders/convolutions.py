"""Convolutions of a loaded network computed with fewer passes over memory; parameters, their names and results stay.

Feature maps are large and the arithmetic on them is small: a pass that pads or normalises a map takes as long as many a
convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional

TOLERANCE = 1e-4
"""Largest difference between the output as it was and as it is computed now, as a share of its size."""
SHIFT = 0.1
"""Of means while outputs are compared, in standard deviations."""
_Pair = tuple[int, int]
_Module = TypeVar("_Module", bound=nn.Module)


def join_passes(model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Join the padding and the normalisation of convolutions with the convolutions themselves, wherever that is the same.

    Args:
        model: a network; some of its modules are replaced by ones that hold the same parameters.
        run: runs it on a small input.
    """
    training = model.training
    model.eval()
    replace_modules(model, {layer: twin(layer, SameConvolution) for layer in _exactly(model, Conv2dSame)})
    _join_norms(model, run)
    model.train(training)


def _join_norms(model: nn.Module, run: Callable[[], Tensor]) -> None:
    pairs = _followed(model, run)
    if not pairs:
        return
    joined: dict[nn.Module, nn.Module] = {}
    for layer, norm in pairs:
        left = twin(norm, _LeftActivation if isinstance(norm, BatchNormAct2d) else _LeftNothing)
        right = twin(layer, _SameNormalised if isinstance(layer, SameConvolution) else _Normalised)
        right.normalised_by(cast("nn.BatchNorm2d", left))
        joined |= {layer: right, norm: left}
    with _shifted([norm for _, norm in pairs]):
        before = _run(run)
        replace_modules(model, joined)
        after = _run(run)
    if not torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * float(before.abs().max())):
        # Something else reads what lies between the two.
        replace_modules(model, {new: old for old, new in joined.items()})


@contextmanager
def _shifted(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Move the means that norms know: what an untrained one does could otherwise not be told from nothing."""
    means = [(cast("Tensor", norm.running_mean), cast("Tensor", norm.running_mean).clone()) for norm in norms]
    for norm, (mean, _) in zip(norms, means, strict=True):
        mean.add_(cast("Tensor", norm.running_var).sqrt(), alpha=SHIFT)
    try:
        yield
    finally:
        for mean, kept in means:
            mean.copy_(kept)


def twin(layer: nn.Module, kind: type[_Module]) -> _Module:
    """Return a module of another kind with the same attributes and the same parameters, not copies of them.

    Its class tells by ``stands_for`` what it is an equal of: the weights of a network that was loaded before still fit.
    """
    other = copy.copy(layer)
    other.__dict__ |= {name: dict(layer.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")}
    other.__class__ = kind
    return cast("_Module", other)


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put new modules in the places of old ones, wherever a model holds these."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in new:
                setattr(parent, name, new[child])


class SameConvolution(Conv2dSame):  # type: ignore[misc]
    """A convolution with as much padding as TensorFlow's "same", which may be one more at the end than at the start.

    On a CPU one more at the start, met by a zero in front of the kernel, spares a copy of the whole map.
    """

    stands_for = Conv2dSame.__name__

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return what the convolution would."""
        return self._convolve(x, self.weight, self.bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel, stride, dilation = (cast("_Pair", each) for each in (self.kernel_size, self.stride, self.dilation))
        totals = [get_same_padding(x.shape[axis - 2], kernel[axis], stride[axis], dilation[axis]) for axis in (0, 1)]
        high, wide = ((total + 1) // 2 for total in totals)
        more_high, more_wide = (total % 2 for total in totals)
        if more_high or more_wide:
            if x.device.type != "cpu" or dilation != (1, 1):
                x = functional.pad(x, (wide - more_wide, wide, high - more_high, high))
                return functional.conv2d(x, weight, bias, stride, 0, dilation, self.groups)
            weight = functional.pad(weight, (more_wide, 0, more_high, 0))
        return functional.conv2d(x, weight, bias, stride, (high, wide), dilation, self.groups)


class _Normalises(nn.Conv2d):
    """A convolution that does the work of the batch norm behind it, by larger or smaller weights.

    A batch norm that uses the statistics of its batch does its own work.
    """

    _norm: tuple[nn.BatchNorm2d]

    def normalised_by(self, norm: nn.BatchNorm2d) -> None:
        """Take over from a norm, which stays whose it was."""
        self._norm = (norm,)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return what convolution and norm would."""
        (norm,) = self._norm
        if norm.training:
            return self._convolve(x, self.weight, self.bias)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        return self._convolve(x, self.weight * scale.view(-1, 1, 1, 1), shift)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor = self._conv_forward(x, weight, bias)
        return convolved


class _Normalised(_Normalises):
    stands_for = nn.Conv2d.__name__


class _SameNormalised(_Normalises, SameConvolution):
    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return SameConvolution._convolve(self, x, weight, bias)


class _LeftNothing(nn.BatchNorm2d):
    stands_for = nn.BatchNorm2d.__name__

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class _LeftActivation(BatchNormAct2d):  # type: ignore[misc]
    stands_for = BatchNormAct2d.__name__

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = super().forward(x) if self.training else self.act(self.drop(x))
        return active


def _exactly(model: nn.Module, *kinds: type[_Module]) -> list[_Module]:
    return [cast("_Module", module) for module in model.modules() if type(module) in kinds]


def _run(run: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return run()


def _followed(model: nn.Module, run: Callable[[], Tensor]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each convolution whose output is what a batch norm takes, and that norm; found by running the network.

    The order in which modules were registered says nothing of what a network does with them.
    """
    layers = _exactly(model, nn.Conv2d, SameConvolution)
    norms = [norm for norm in _exactly(model, nn.BatchNorm2d, BatchNormAct2d) if norm.running_mean is not None]
    given: list[tuple[nn.Module, Tensor, int]] = []
    taken: list[tuple[nn.Module, Tensor, int]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: given.append((layer, output, output._version)))
        for layer in layers
    ]
    hooks += [
        norm.register_forward_pre_hook(lambda norm, inputs: taken.append((norm, inputs[0], inputs[0]._version)))
        for norm in norms
    ]
    try:
        _run(run)
    finally:
        for hook in hooks:
            hook.remove()
    # An equal version says that nothing was done in place in between.
    makers = {(id(output), version): layer for layer, output, version in given}
    pairs = [(makers.get((id(value), version)), norm) for norm, value, version in taken]
    once = {id(module) for module in (*layers, *norms)}
    for calls in (given, taken):
        names = [id(module) for module, _, _ in calls]
        once -= {name for name in names if names.count(name) > 1}
    return [
        (cast("nn.Conv2d", layer), cast("nn.BatchNorm2d", norm))
        for layer, norm in pairs
        if layer is not None and {id(layer), id(norm)} <= once
    ]
