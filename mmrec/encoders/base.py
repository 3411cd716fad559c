"""What every content encoder is: blocks in a row, cut in two.

Blocks below the cut (the *trunk*) are frozen: they run in evaluation mode, without gradient, and their output may be
cached.  Blocks above it are live.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrec.contents import Content, TokenStates
from mmrec.host import on_device


@runtime_checkable
class ContentEncoder(Protocol):
    """Content of one modality to token vectors.

    Attributes:
        dim: width of the token vectors that ``forward`` gives.
        num_blocks: blocks in a row, embeddings not counted.
        trunk_blocks: blocks below the cut; ``num_blocks`` when all is frozen, 0 when everything (the embeddings too) is
            live.  ``has_trunk`` says whether anything at all is frozen and cacheable.
    """

    dim: int
    num_blocks: int
    trunk_blocks: int

    @property
    def has_trunk(self) -> bool:
        """Whether raw content passes frozen weights first, so that ``trunk`` is worth caching."""
        ...

    def trunk(self, content: Content) -> TokenStates:
        """Run the frozen blocks without gradient, in evaluation mode, float32 out."""
        ...

    def forward(self, content: Content) -> TokenStates:
        """Encode raw content, or continue from the trunk's ``TokenStates``."""
        ...

    def __call__(self, content: Content) -> TokenStates:
        """As ``forward``."""
        ...

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Trainable parameters by depth, the top-most live block first, for layer-wise learning rates."""
        ...

    def trunk_fingerprint(self) -> str:
        """Hash of the frozen weights, the architecture and the cut; empty where ``has_trunk`` is False."""
        ...


@runtime_checkable
class BlockEncoder(ContentEncoder, Protocol):
    """An encoder whose blocks can be shared out among processes."""

    def live_blocks(self) -> list[nn.Module]:
        """Return the blocks above the cut, in the order in which they run."""
        ...

    def blank(self) -> Content:
        """Return some small content that ``forward`` takes."""
        ...


def mean_tokens(tokens: TokenStates) -> Float[Tensor, "contents dim"]:
    """Average each content's token vectors."""
    owner, lengths = on_device(tokens.states.device, torch.repeat_interleave(tokens.lengths), tokens.lengths)
    total = tokens.states.new_zeros(len(tokens), tokens.states.shape[1]).index_add(0, owner, tokens.states)
    return total / lengths.to(total.dtype).unsqueeze(1)
