"""Convolutions that cut a picture into patches, as the matrix products that they are."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmrec.encoders.convolutions import replace_modules, twin

LEAST_STEP = 8
"""Smaller patches, such as a ConvNeXt's, are quicker as a convolution on a CPU."""


class PatchConvolution(nn.Conv2d):
    """A convolution whose patches neither overlap nor leave gaps: one matrix product over rearranged pixels.

    cuDNN takes a slow way with three channels, and plans it anew for every number of pictures that it has not seen.
    """

    stands_for = nn.Conv2d.__name__

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return what the convolution would; what is left of the picture beside whole patches is not read."""
        batch, channels, height, width = input.shape
        high, wide = self.stride
        rows, columns = height // high, width // wide
        whole = input[:, :, : rows * high, : columns * wide]
        patches = whole.reshape(batch, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
        states = functional.linear(
            patches.reshape(batch, rows, columns, channels * high * wide), self.weight.flatten(1), self.bias
        )
        return states.permute(0, 3, 1, 2)


def multiply_patches(model: nn.Module) -> None:
    """Replace every convolution of a model that is such a cut; its weights stay the same parameters."""
    layers = [module for module in model.modules() if type(module) is nn.Conv2d and _cuts_patches(module)]
    replace_modules(model, {layer: twin(layer, PatchConvolution) for layer in layers})


def _cuts_patches(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == layer.stride
        and min(layer.stride) >= LEAST_STEP
        and layer.groups == 1
        and layer.padding in {"valid", (0, 0)}
        and layer.dilation == (1, 1)
    )
