"""Trunks that run on demand, rounded as the cache rounds, so that cached and uncached contents agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mmrec.contents import Content, TokenStates, read_content
from mmrec.encoders.base import ContentEncoder
from mmrec.feed.items import ContentSource
from mmrec.inference.trunk_cache import TrunkDtype, round_states


@dataclass(frozen=True)
class LiveTrunk:
    """Raw contents through a frozen trunk; a :class:`~mmrec.feed.items.ContentSource` in place of the cache.

    Args:
        encoder: an encoder with a trunk, on ``device``.
        source: raw contents by row; None where only ``run`` is used.
        dtype: number format to round to.
        device: where the encoder is.
    """

    encoder: ContentEncoder
    source: ContentSource | None
    dtype: TrunkDtype
    device: torch.device

    def run(self, content: Content) -> TokenStates:
        """Return the rounded states of some contents, on ``device``."""
        return round_states(self.encoder.trunk(content.to(self.device)), self.dtype)

    def gather(self, rows: npt.NDArray[np.int64]) -> TokenStates:
        """Return the rounded states of the given rows, on the CPU."""
        assert self.source is not None
        return self.run(read_content(self.source.gather(rows))).to(torch.device("cpu"))
