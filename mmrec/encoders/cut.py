"""What the encoders of captions and of pictures share: blocks in a row, cut into a frozen trunk and a live rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mmrec.contents import Content, TokenStates
from mmrec.encoders.compute import is_alike, to_bfloat16
from mmrec.encoders.tuning import TOLERANCE, Layers, freeze_below, frozen_hash, group_by_depth, set_modes
from mmrec.encoders.work import EncodingWork
from mmrec.errors import ConfigError


class CutEncoder(nn.Module, ABC):
    """A network cut in two; a :class:`~mmrec.encoders.base.ContentEncoder`.

    What is run when, in which mode, with which gradient and number format is decided here; how contents of one kind
    pass through the network, below.

    Args:
        layers: the network's modules.
        dim: width of its final token states.
        trunk_blocks: blocks below the cut.
    """

    def __init__(self, layers: Layers, *, dim: int, trunk_blocks: int) -> None:
        super().__init__()
        assert 0 <= trunk_blocks <= len(layers.blocks)
        self.model = layers.root
        self.dim = dim
        self.num_blocks = len(layers.blocks)
        self.trunk_blocks = trunk_blocks
        self.work = EncodingWork()
        self._layers = layers

    @abstractmethod
    def _below(self, content: Content, *, stop: int) -> TokenStates:
        """Run raw contents through the stem and the first ``stop`` blocks, and the head when these are all."""

    @abstractmethod
    def _above(self, content: TokenStates, *, start: int) -> TokenStates:
        """Run what ``_below`` gave through the blocks from ``start`` on and the head."""

    @abstractmethod
    def _probe(self, *, cut: int) -> Tensor:
        """Run a small input through the network, in two parts where ``cut`` is not 0."""

    @abstractmethod
    def _raw_blank(self) -> Content:
        """Return one small raw content."""

    @abstractmethod
    def _trunk_settings(self) -> str:
        """Name whatever decides the trunk's output beside weights, architecture and cut."""

    @property
    def has_trunk(self) -> bool:
        """Whether raw content passes frozen weights first."""
        return self.trunk_blocks > 0

    def trunk(self, content: Content) -> TokenStates:
        """Run the frozen blocks without gradient and without autocast, float32 out."""
        if isinstance(content, TokenStates):
            return content
        assert self.has_trunk
        self.work.add(encoded=len(content))
        with torch.no_grad(), torch.autocast(next(self.model.parameters()).device.type, enabled=False):
            return _in_float32(self._below(content, stop=self.trunk_blocks))

    def forward(self, content: Content) -> TokenStates:
        """Encode raw content, or go on from the trunk's states; float32 out."""
        if not isinstance(content, TokenStates):
            if not self.has_trunk:
                self.work.add(encoded=len(content))
                return _in_float32(self._below(content, stop=self.num_blocks))
            content = self.trunk(content)
        if self.trunk_blocks == self.num_blocks:
            return content
        return _in_float32(self._above(content, start=self.trunk_blocks))

    def train(self, mode: bool = True) -> CutEncoder:
        """Set the mode of the live part; the trunk and all batch norms stay in evaluation mode."""
        super().train(mode)
        set_modes(self._layers, self.trunk_blocks, training=mode)
        return self

    def to_bfloat16(self) -> None:
        """Hold the network in bfloat16 and run it so from now on, contents and states as before; not to be trained then.

        Raises:
            ConfigError: the network does not run so, or gives something else.
        """
        training = self.training
        self.train(False)
        with torch.no_grad():
            before = self._probe(cut=0)
            try:
                to_bfloat16(self.model)
                alike, got = is_alike(before, self._probe(cut=0)), "another output"
            except RuntimeError as error:
                alike, got = False, str(error)
        if not alike:
            raise ConfigError(
                "an encoder that runs in bfloat16",
                got=f"{got} of {type(self.model).__name__}",
                where="--compute-dtype",
                fix="Use float32.",
            )
        self.train(training)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trainable parameters, the top-most block first."""
        return group_by_depth(self._layers, self.trunk_blocks)

    def live_blocks(self) -> list[nn.Module]:
        """Return the blocks above the cut."""
        return list(self._layers.blocks[self.trunk_blocks :])

    def blank(self) -> Content:
        """Return one small content, past the trunk where there is one."""
        return self.trunk(self._raw_blank()) if self.has_trunk else self._raw_blank()

    def trunk_fingerprint(self) -> str:
        """Hash of the frozen weights, the architecture and the cut; empty where nothing is frozen."""
        return frozen_hash(self._layers, self.trunk_blocks, extra=self._trunk_settings()) if self.has_trunk else ""

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _freeze_trunk(self) -> None:
        """Freeze what lies below the cut; the last step of making an encoder, for it runs the network.

        Raises:
            ConfigError: the network cannot be cut there.
        """
        self.train(False)
        if 0 < self.trunk_blocks < self.num_blocks:
            self._check_cut()
        freeze_below(self._layers, self.trunk_blocks, run_live=lambda: self._probe(cut=self.trunk_blocks))
        self.train()

    def _check_cut(self) -> None:
        """Run a small input whole and in two parts: an unknown architecture may do more than run its blocks in a row."""
        with torch.no_grad():
            whole, parts = self._probe(cut=0), self._probe(cut=self.trunk_blocks)
        if whole.shape != parts.shape or not torch.allclose(
            whole, parts, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())
        ):
            raise ConfigError(
                "an encoder that can be cut between blocks",
                got=type(self.model).__name__,
                where="tuning",
                fix="Use mode frozen or full with this model.",
            )


def _in_float32(tokens: TokenStates) -> TokenStates:
    return TokenStates(tokens.states.float(), tokens.lengths)
