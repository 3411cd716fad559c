"""Captions to token states: one encoder over whatever stack of blocks an adapter provides."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.contents import Content, TextContent, TokenStates
from mmrec.encoders.buckets import run_ragged
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.packing import RunPacked, run_packed
from mmrec.encoders.pieces import free_threads
from mmrec.encoders.tuning import Layers, is_compiled

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


@runtime_checkable
class PackingStack(TextStack, Protocol):
    """A text network that may be able to run captions that lie end to end."""

    def packs(self) -> bool:
        """Whether it is."""
        ...

    def packed(
        self, token_ids: Int[Tensor, " total"], lengths: npt.NDArray[np.int64], *, stop: int
    ) -> Float[Tensor, "total dim"]:
        """Run captions that lie end to end as ``below`` runs padded ones; called only where it packs."""
        ...

    def packed_above(
        self, states: Float[Tensor, "total dim"], lengths: npt.NDArray[np.int64], *, start: int
    ) -> Float[Tensor, "total dim"]:
        """Run captions that lie end to end as ``above`` runs padded ones; called only where it packs."""
        ...


class TextEncoder(CutEncoder):
    """Token states of captions; padding never leaves it, and a caption's states do not depend on its neighbours.

    Args:
        stack: the network.
        trunk_blocks: blocks below the cut, see :class:`~mmrec.encoders.base.ContentEncoder`.
        window: longer captions are windows of so many tokens end to end, the last one shorter, and each is read by itself;
            None for as many as the network has positions for.
        max_padded_tokens: most tokens that go through the network at once, padding included; None for what suits the
            device.

    Raises:
        ConfigError: the network cannot be cut there.
    """

    def __init__(
        self, stack: TextStack, *, trunk_blocks: int, window: int | None = None, max_padded_tokens: int | None = None
    ) -> None:
        super().__init__(stack.layers, dim=stack.dim, trunk_blocks=trunk_blocks)
        self.max_tokens, self._window = stack.max_tokens, window or stack.max_tokens
        self._stack = stack
        self._max_padded_tokens = max_padded_tokens
        self._freeze_trunk()
        # With dropout no two runs are alike.
        self.train(False)
        self._packing = stack if isinstance(stack, PackingStack) and stack.packs() else None
        self.train()

    def _below(self, content: Content, *, stop: int) -> TokenStates:
        assert isinstance(content, TextContent), type(content)
        token_ids, lengths = content.token_ids.long(), window_lengths(content.lengths, self._window)
        stack = self._packing_of(token_ids, live=not self.has_trunk)
        if stack is not None:
            states = self._run_packed(
                token_ids, lengths, lambda some, sizes: stack.packed(some, sizes, stop=stop), live=not self.has_trunk
            )
            return TokenStates(states, content.lengths)
        states = run_ragged(
            token_ids,
            lengths,
            run=lambda padded, valid: self._stack.below(padded, valid, stop=stop),
            dim=self.dim,
            work=self.work,
            max_tokens=self._max_padded_tokens,
            longest=self.max_tokens if self.has_trunk else None,
        )
        return TokenStates(states, content.lengths)

    def _above(self, content: TokenStates, *, start: int) -> TokenStates:
        below, lengths = content.states.to(self._dtype), window_lengths(content.lengths, self._window)
        stack = self._packing_of(below, live=True)
        if stack is not None:
            states = self._run_packed(
                below, lengths, lambda some, sizes: stack.packed_above(some, sizes, start=start), live=True
            )
            return TokenStates(states, content.lengths)
        states = run_ragged(
            below,
            lengths,
            run=lambda padded, valid: self._stack.above(padded, valid, start=start),
            dim=self.dim,
            work=self.work,
            max_tokens=self._max_padded_tokens,
        )
        return TokenStates(states, content.lengths)

    def _packing_of(self, values: Tensor, *, live: bool) -> PackingStack | None:
        """Return what runs captions end to end, None where they are better padded.

        On a CPU only: a device starts operations for each length that there is, which takes longer than a little padding.
        Live blocks, only where they are not trained: what torch.compile made of them takes rectangles.
        """
        if values.device.type != "cpu":
            return None
        if live and (torch.is_grad_enabled() or any(is_compiled(block) for block in self.live_blocks())):
            return None
        return self._packing

    def _run_packed(self, values: Tensor, lengths: Tensor, run: RunPacked, *, live: bool) -> Tensor:
        return run_packed(
            values,
            lengths,
            run=run,
            dim=self.dim,
            work=self.work,
            max_tokens=self._max_padded_tokens,
            threads=free_threads(values.device, self.live_blocks() if live else ()),
        )

    def _probe(self, *, cut: int) -> Tensor:
        token_ids = self._stack.probe(PROBE_TOKENS)
        if cut == 0:
            return self._stack.below(token_ids, None, stop=self.num_blocks)
        return self._stack.above(self._stack.below(token_ids, None, stop=cut), None, start=cut)

    def _raw_blank(self) -> TextContent:
        token_ids = self._stack.probe(1)[0]
        return TextContent(token_ids=token_ids, lengths=torch.ones(1, dtype=torch.long))

    def _trunk_settings(self) -> str:
        return "text"


def window_lengths(lengths: Int[Tensor, " contents"], window: int) -> Int[Tensor, " windows"]:
    """Return the lengths of the windows that captions consist of, end to end: all but the last of each are full.

    Args:
        lengths: shape (contents,), tokens of each caption.
        window: tokens of a full window.
    """
    counts = (lengths + window - 1) // window
    windows = torch.full((int(counts.sum()),), window, dtype=lengths.dtype)
    windows[counts.cumsum(0) - 1] = lengths - (counts - 1) * window
    return windows
