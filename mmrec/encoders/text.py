"""Captions to token states: one encoder over whatever stack of blocks an adapter provides."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmrec.batch import Content, TextContent, TokenStates
from mmrec.encoders.buckets import EncodingWork, run_ragged
from mmrec.encoders.tuning import TOLERANCE, Layers, freeze_below, frozen_hash, group_by_depth, set_modes
from mmrec.errors import ConfigError

PROBE_TOKENS = 5


@runtime_checkable
class TextStack(Protocol):
    """A text network that can be run in two parts.

    Attributes:
        layers: its modules in running order.
        dim: width of its token states.
        max_tokens: longest caption it has positions for.
    """

    layers: Layers
    dim: int
    max_tokens: int

    def below(
        self, token_ids: Int[Tensor, "batch time"], valid: Bool[Tensor, "batch time"] | None, *, stop: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the stem and the first ``stop`` blocks, and the head when these are all."""
        ...

    def above(
        self, states: Float[Tensor, "batch time dim"], valid: Bool[Tensor, "batch time"] | None, *, start: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the blocks from ``start`` on and the head, on what ``below`` gave."""
        ...

    def probe(self, tokens: int) -> Int[Tensor, "batch time"]:
        """Return a few valid token ids, shape (1, tokens)."""
        ...


class TextEncoder(nn.Module):
    """Token states of captions; padding never leaves it, and a caption's states do not depend on its neighbours.

    Args:
        stack: the network.
        trunk_blocks: blocks below the cut, see :class:`~mmrec.encoders.base.ContentEncoder`.
        max_padded_tokens: most tokens that go through the network at once, padding included.

    Raises:
        ConfigError: the network cannot be cut there.
    """

    def __init__(self, stack: TextStack, *, trunk_blocks: int, max_padded_tokens: int = 16384) -> None:
        super().__init__()
        layers = stack.layers
        assert 0 <= trunk_blocks <= len(layers.blocks)
        self.model = layers.root
        self.dim = stack.dim
        self.num_blocks = len(layers.blocks)
        self.trunk_blocks = trunk_blocks
        self.max_tokens = stack.max_tokens
        self.work = EncodingWork()
        self._stack = stack
        self._max_padded_tokens = max_padded_tokens
        self.train(False)
        if 0 < trunk_blocks < self.num_blocks:
            _check_cut(stack, trunk_blocks)
        freeze_below(layers, trunk_blocks, run_live=self._run_probe)
        self.train()

    @property
    def has_trunk(self) -> bool:
        """Whether raw captions pass frozen weights first."""
        return self.trunk_blocks > 0

    def trunk(self, content: Content) -> TokenStates:
        """Run the frozen blocks without gradient and without autocast, float32 out."""
        if isinstance(content, TokenStates):
            return content
        assert isinstance(content, TextContent), type(content)
        assert self.has_trunk
        device = content.token_ids.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            states = self._run(content, stop=self.trunk_blocks, longest=self.max_tokens)
        return TokenStates(states.float(), content.lengths)

    def forward(self, content: Content) -> TokenStates:
        """Encode captions, or go on from the trunk's states; float32 out."""
        if isinstance(content, TextContent):
            if not self.has_trunk:
                return TokenStates(self._run(content, stop=self.num_blocks).float(), content.lengths)
            content = self.trunk(content)
        assert isinstance(content, TokenStates), type(content)
        if self.trunk_blocks == self.num_blocks:
            return content
        states = run_ragged(
            content.states.to(self._dtype),
            content.lengths,
            run=lambda padded, valid: self._stack.above(padded, valid, start=self.trunk_blocks),
            dim=self.dim,
            work=self.work,
            max_tokens=self._max_padded_tokens,
        )
        return TokenStates(states.float(), content.lengths)

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode of the live part; the trunk stays in evaluation mode."""
        super().train(mode)
        set_modes(self._stack.layers, self.trunk_blocks, training=mode)
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trainable parameters, the top-most block first."""
        return group_by_depth(self._stack.layers, self.trunk_blocks)

    def trunk_fingerprint(self) -> str:
        """Hash of the frozen weights, the architecture and the cut; empty where nothing is frozen."""
        return frozen_hash(self._stack.layers, self.trunk_blocks, extra="text") if self.has_trunk else ""

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _run(self, content: TextContent, *, stop: int, longest: int | None = None) -> Float[Tensor, "total dim"]:
        return run_ragged(
            content.token_ids.long(),
            content.lengths,
            run=lambda padded, valid: self._stack.below(padded, valid, stop=stop),
            dim=self.dim,
            work=self.work,
            max_tokens=self._max_padded_tokens,
            longest=longest,
        )

    def _run_probe(self) -> Tensor:
        ids = self._stack.probe(PROBE_TOKENS)
        if self.trunk_blocks == 0:
            return self._stack.below(ids, None, stop=self.num_blocks)
        return self._stack.above(self._stack.below(ids, None, stop=self.trunk_blocks), None, start=self.trunk_blocks)


def _check_cut(stack: TextStack, trunk_blocks: int) -> None:
    """Run a few tokens whole and in two parts: an unknown architecture may do more than run its blocks in a row."""
    ids = stack.probe(PROBE_TOKENS)
    with torch.no_grad():
        whole = stack.below(ids, None, stop=len(stack.layers.blocks))
        parts = stack.above(stack.below(ids, None, stop=trunk_blocks), None, start=trunk_blocks)
    if not torch.allclose(whole, parts, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())):
        raise ConfigError(
            "a text encoder that can be cut between blocks",
            got=type(stack.layers.root).__name__,
            where="tuning",
            fix="Use mode frozen or full with this model.",
        )
