"""Pictures to patch states: one encoder over whatever stack of blocks an adapter provides."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from mmrec.contents import Content, ImageContent, TokenStates
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.pieces import free_threads, run_pieces
from mmrec.encoders.tuning import Layers
from mmrec.threads import count_pieces

Channels = tuple[float, float, float]
"""One number each for red, green and blue."""
PICTURES_AT_ONCE = 64
PICTURES_AT_ONCE_ON_CPU = 16
"""Pictures that go through the network at once where no gradient is wanted: nothing of them has to be kept, and on a CPU
the feature maps of fewer stay nearer to the caches."""
PICTURES_FOR_A_THREAD = 8
"""Pictures that are worth a thread of their own."""


@runtime_checkable
class ImageStack(Protocol):
    """An image network that can be run in two parts.

    Between the parts travel tokens of shape (batch, tokens, inner); the inner width below the last block may differ from
    ``dim``.

    Attributes:
        layers: its modules in running order.
        dim: width of its final token states.
        class_token: whether the first of its final tokens stands for the whole picture.
        side: side in pixels of a picture that it certainly accepts.
        maps: whether feature maps travel between its blocks, which are convolutions then.
    """

    layers: Layers
    dim: int
    class_token: bool
    side: int
    maps: bool

    def below(self, pixels: Float[Tensor, "batch 3 height width"], *, stop: int) -> Float[Tensor, "batch tokens inner"]:
        """Run the stem and the first ``stop`` blocks, and the head when these are all."""
        ...

    def above(self, tokens: Float[Tensor, "batch tokens inner"], *, start: int) -> Float[Tensor, "batch patches dim"]:
        """Run the blocks from ``start`` on and the head."""
        ...


class ImageEncoder(CutEncoder):
    """Patch states of pictures, the class token (where the network has one) before them.

    Args:
        stack: the network.
        trunk_blocks: blocks below the cut, see :class:`~mmrec.encoders.base.ContentEncoder`.
        mean: channel means in [0, 1].
        std: channel standard deviations.
        token_grid: patches are averaged to this many a side before they leave; 0 keeps them all.

    Raises:
        ConfigError: the network cannot be cut there.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, stack: ImageStack, *, trunk_blocks: int, mean: Channels, std: Channels, token_grid: int = 0
    ) -> None:
        super().__init__(stack.layers, dim=stack.dim, trunk_blocks=trunk_blocks)
        self.token_grid = token_grid
        self._stack = stack
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._freeze_trunk()

    def to_bfloat16(self) -> None:
        """Run in bfloat16 from now on, unless the network consists of convolutions.

        These gain a quarter and lose more: the patches of an EfficientNet keep cosines of .97 to .99.
        """
        if not self._stack.maps:
            super().to_bfloat16()

    def _below(self, content: Content, *, stop: int) -> TokenStates:
        assert isinstance(content, ImageContent), type(content)
        if len(content) == 0:
            return self._nothing()
        if torch.is_grad_enabled():
            tokens = self._run_pixels(content.pixels, stop=stop)
        else:
            pixels = content.pixels
            threads = free_threads(pixels.device, () if self.has_trunk else self.live_blocks())
            most = PICTURES_AT_ONCE_ON_CPU if pixels.device.type == "cpu" else PICTURES_AT_ONCE
            count = count_pieces(len(pixels), most=most, least=PICTURES_FOR_A_THREAD, threads=threads)
            run = partial(self._run_pixels, stop=stop)
            tokens = torch.cat(run_pieces(run, torch.tensor_split(pixels, count), threads=threads))
        return self._finish(tokens, pooled=stop == self.num_blocks)

    def _above(self, content: TokenStates, *, start: int) -> TokenStates:
        if len(content) == 0:
            return self._nothing()
        below = _as_tokens(content).to(self._dtype)
        tokens = self._run(below, partial(self._stack.above, start=start))
        return self._finish(tokens, pooled=True)

    def _probe(self, *, cut: int) -> Tensor:
        pixels = ramp(self._stack.side, like=next(self.model.parameters()))
        if cut == 0:
            return self._stack.below(pixels, stop=self.num_blocks)
        return self._stack.above(self._stack.below(pixels, stop=cut), start=cut)

    def _raw_blank(self) -> ImageContent:
        side = self._stack.side
        return ImageContent(pixels=torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.mean.device))

    def _trunk_settings(self) -> str:
        grid = self.token_grid if self.trunk_blocks == self.num_blocks else 0
        return f"image grid {grid} mean {self.mean.flatten().tolist()} std {self.std.flatten().tolist()}"

    def _run_pixels(
        self, pixels: UInt8[Tensor, "batch 3 height width"], *, stop: int
    ) -> Float[Tensor, "batch tokens inner"]:
        normal = ((pixels.float() / 255 - self.mean) / self.std).to(self._dtype)
        if self._stack.maps:
            # Convolutions are fastest where the channels of a place lie side by side, on a CPU by a quarter to a half.
            normal = normal.contiguous(memory_format=torch.channels_last)
        return self._run(normal, partial(self._stack.below, stop=stop))

    def _run(self, batch: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a batch; some sizes of it are filled up.

        A single picture may take another code path on a CPU, which differs in the last bits; rounded to half precision,
        live and cached states would differ by 1e-3.  On a GPU cuDNN plans a convolution anew for every number of
        pictures that it has not seen, forwards and backwards, and hardly two batches hold equally many distinct ones.
        """
        rounded = batch.is_cuda and self._stack.maps
        return run_filled(batch, network, size=max(round_number(len(batch)) if rounded else len(batch), 2))

    def _finish(self, tokens: Float[Tensor, "batch tokens inner"], *, pooled: bool) -> TokenStates:
        """Count the tokens, none of which is padding, and pool them where the network's last block has run."""
        count = tokens.shape[0] * tokens.shape[1]
        self.work.add(real_tokens=count, padded_tokens=count)
        return _as_states(self._pool(tokens) if pooled else tokens)

    def _nothing(self) -> TokenStates:
        return TokenStates(torch.zeros(0, self.dim, device=self.mean.device), torch.zeros(0, dtype=torch.long))

    def _pool(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch pooled dim"]:
        """Average patches to ``token_grid`` a side; never to more than there are."""
        first = 1 if self._stack.class_token else 0
        side = _square(tokens.shape[1] - first)
        if not 0 < self.token_grid < side:
            return tokens
        patches = tokens_to_map(tokens[:, first:])
        pooled = functional.adaptive_avg_pool2d(patches, self.token_grid).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :first], pooled], dim=1)


def ramp(side: int, *, like: Tensor) -> Float[Tensor, "1 3 side side"]:
    """Return pixels that all differ, to try a network on."""
    return torch.linspace(-1, 1, 3 * side**2, dtype=like.dtype, device=like.device).view(1, 3, side, side)


def round_number(count: int) -> int:
    """Return the next of 16 sizes an octave: at most a sixteenth more than ``count``."""
    step = 1 << max(count.bit_length() - 5, 0)
    return -(-count // step) * step


def run_filled(batch: Tensor, run: Callable[[Tensor], Tensor], *, size: int) -> Tensor:
    """Run a batch filled up to ``size`` with its last entry, and leave out what the others gave."""
    count = len(batch)
    if count == size:
        return run(batch)
    return run(torch.cat([batch, batch[-1:].expand(size - count, *batch.shape[1:])]))[:count]


def _as_states(tokens: Float[Tensor, "batch tokens inner"]) -> TokenStates:
    lengths = torch.full((len(tokens),), tokens.shape[1], dtype=torch.long)
    return TokenStates(tokens.flatten(0, 1), lengths)


def _as_tokens(content: TokenStates) -> Float[Tensor, "batch tokens inner"]:
    """Undo :func:`_as_states`: all pictures of one encoder have equally many tokens."""
    count = content.states.shape[0] // len(content)
    return content.states.reshape(len(content), count, content.states.shape[1])


def map_to_tokens(states: Tensor) -> Float[Tensor, "batch tokens inner"]:
    """Turn a feature map (batch, inner, rows, columns) into tokens; tokens stay what they are."""
    return states if states.ndim == 3 else states.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch inner rows columns"]:
    """Undo :func:`map_to_tokens`, with the channels of a place side by side; pictures are square."""
    side = _square(tokens.shape[1])
    return tokens.reshape(len(tokens), side, side, tokens.shape[2]).permute(0, 3, 1, 2)


def _square(count: int) -> int:
    side = math.isqrt(count)
    assert side * side == count, f"{count} patches are no square"
    return side
