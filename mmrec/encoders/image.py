"""Pictures to patch states: one encoder over whatever stack of blocks an adapter provides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import Content, ImageContent, TokenStates
from mmrec.encoders.buckets import EncodingWork
from mmrec.encoders.tuning import TOLERANCE, Layers, freeze_below, frozen_hash, group_by_depth, set_modes
from mmrec.errors import ConfigError

PICTURES_AT_ONCE = 64
"""Pictures that go through the network at once where no gradient is wanted: nothing of them has to be kept."""


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
    """

    layers: Layers
    dim: int
    class_token: bool
    side: int

    def below(self, pixels: Float[Tensor, "batch 3 height width"], *, stop: int) -> Float[Tensor, "batch tokens inner"]:
        """Run the stem and the first ``stop`` blocks, and the head when these are all."""
        ...

    def above(self, tokens: Float[Tensor, "batch tokens inner"], *, start: int) -> Float[Tensor, "batch patches dim"]:
        """Run the blocks from ``start`` on and the head."""
        ...


class ImageEncoder(nn.Module):
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
        self,
        stack: ImageStack,
        *,
        trunk_blocks: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        token_grid: int = 0,
    ) -> None:
        super().__init__()
        assert 0 <= trunk_blocks <= len(stack.layers.blocks)
        self.model = stack.layers.root
        self.dim = stack.dim
        self.num_blocks = len(stack.layers.blocks)
        self.trunk_blocks = trunk_blocks
        self.token_grid = token_grid
        self.work = EncodingWork()
        self._stack = stack
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.train(False)
        if 0 < trunk_blocks < self.num_blocks:
            self._check_cut()
        freeze_below(stack.layers, trunk_blocks, run_live=self._run_probe)
        self.train()

    @property
    def has_trunk(self) -> bool:
        """Whether raw pictures pass frozen weights first."""
        return self.trunk_blocks > 0

    def trunk(self, content: Content) -> TokenStates:
        """Run the frozen blocks without gradient and without autocast, float32 out; pooled when these are all."""
        if isinstance(content, TokenStates):
            return content
        assert isinstance(content, ImageContent), type(content)
        assert self.has_trunk
        if len(content) == 0:
            return self._nothing(content.pixels.device)
        with torch.no_grad(), torch.autocast(content.pixels.device.type, enabled=False):
            tokens = self._below_in_pieces(content.pixels)
            self._count(tokens)
            if self.trunk_blocks == self.num_blocks:
                tokens = self._pool(tokens)
        return _as_states(tokens.float())

    def forward(self, content: Content) -> TokenStates:
        """Encode pictures, or go on from the trunk's states; float32 out."""
        if isinstance(content, ImageContent):
            if len(content) == 0:
                return self._nothing(content.pixels.device)
            if not self.has_trunk:
                run = self._below if torch.is_grad_enabled() else self._below_in_pieces
                tokens = run(content.pixels)
                self._count(tokens)
                return _as_states(self._pool(tokens).float())
            content = self.trunk(content)
        assert isinstance(content, TokenStates), type(content)
        if self.trunk_blocks == self.num_blocks or len(content) == 0:
            return content
        below = _as_tokens(content).to(self._dtype)
        tokens = _never_alone(below, lambda batch: self._stack.above(batch, start=self.trunk_blocks))
        return _as_states(self._pool(tokens).float())

    def _below_in_pieces(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        return torch.cat([self._below(piece) for piece in torch.split(pixels, PICTURES_AT_ONCE)])

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode of the live part; the trunk and all batch norms stay in evaluation mode."""
        super().train(mode)
        set_modes(self._stack.layers, self.trunk_blocks, training=mode)
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trainable parameters, the top-most block first."""
        return group_by_depth(self._stack.layers, self.trunk_blocks)

    def trunk_fingerprint(self) -> str:
        """Hash of the frozen weights, the architecture and the cut; empty where nothing is frozen."""
        if not self.has_trunk:
            return ""
        grid = self.token_grid if self.trunk_blocks == self.num_blocks else 0
        extra = f"image grid {grid} mean {self.mean.flatten().tolist()} std {self.std.flatten().tolist()}"
        return frozen_hash(self._stack.layers, self.trunk_blocks, extra=extra)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _nothing(self, device: torch.device) -> TokenStates:
        return TokenStates(torch.zeros(0, self.dim, device=device), torch.zeros(0, dtype=torch.long, device=device))

    def _below(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens inner"]:
        """Run up to the cut, or everything where nothing is frozen."""
        stop = self.trunk_blocks or self.num_blocks
        return _never_alone(self._normalise(pixels), lambda batch: self._stack.below(batch, stop=stop))

    def _normalise(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return ((pixels.float() / 255 - self.mean) / self.std).to(self._dtype)

    def _pool(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch pooled dim"]:
        """Average patches to ``token_grid`` a side; never to more than there are."""
        first = 1 if self._stack.class_token else 0
        side = _square(tokens.shape[1] - first)
        if not 0 < self.token_grid < side:
            return tokens
        patches = tokens_to_map(tokens[:, first:])
        pooled = functional.adaptive_avg_pool2d(patches, self.token_grid).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :first], pooled], dim=1)

    def _count(self, tokens: Float[Tensor, "batch tokens inner"]) -> None:
        count = tokens.shape[0] * tokens.shape[1]
        self.work.add(contents=len(tokens), real_tokens=count, padded_tokens=count)

    def _probe(self) -> Float[Tensor, "1 3 side side"]:
        ramp = torch.linspace(-1, 1, 3 * self._stack.side**2, dtype=self._dtype, device=self.mean.device)
        return ramp.view(1, 3, self._stack.side, self._stack.side)

    def _run_probe(self) -> Tensor:
        if self.trunk_blocks == 0:
            return self._stack.below(self._probe(), stop=self.num_blocks)
        return self._stack.above(self._stack.below(self._probe(), stop=self.trunk_blocks), start=self.trunk_blocks)

    def _check_cut(self) -> None:
        """Run a picture whole and in two parts: an unknown architecture may do more than run its blocks in a row."""
        with torch.no_grad():
            whole, parts = self._stack.below(self._probe(), stop=self.num_blocks), self._run_probe()
        if whole.shape != parts.shape or not torch.allclose(
            whole, parts, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())
        ):
            raise ConfigError(
                "an image encoder that can be cut between blocks",
                got=type(self.model).__name__,
                where="tuning",
                fix="Use mode frozen or full with this model.",
            )


def _never_alone(batch: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a batch; a single entry is run twice over.

    One picture may take another code path on a CPU, which differs in the last bits; rounded to half precision, live
    and cached states would differ by 1e-3.
    """
    return run(torch.cat([batch, batch]))[:1] if len(batch) == 1 else run(batch)


def _as_states(tokens: Float[Tensor, "batch tokens inner"]) -> TokenStates:
    lengths = torch.full((len(tokens),), tokens.shape[1], dtype=torch.long, device=tokens.device)
    return TokenStates(tokens.flatten(0, 1), lengths)


def _as_tokens(content: TokenStates) -> Float[Tensor, "batch tokens inner"]:
    """Undo :func:`_as_states`: all pictures of one encoder have equally many tokens."""
    count = content.states.shape[0] // len(content)
    return content.states.reshape(len(content), count, content.states.shape[1])


def map_to_tokens(states: Tensor) -> Float[Tensor, "batch tokens inner"]:
    """Turn a feature map (batch, inner, rows, columns) into tokens; tokens stay what they are."""
    return states if states.ndim == 3 else states.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch inner rows columns"]:
    """Undo :func:`map_to_tokens`; pictures are square."""
    side = _square(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)


def _square(count: int) -> int:
    side = math.isqrt(count)
    assert side * side == count, f"{count} patches are no square"
    return side
