"""Late unimodal scores: what a modality alone says of an item, beside what all of them say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class LateShares(nn.Module):
    """How much of each modality's own vector an item's vector takes in, beside 1 of the whole; validation chooses.

    A score is an inner product, so that a share of a vector is that share of its score: late fusion in one vector.

    Args:
        modalities: names.
    """

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        for name in modalities:
            self.register_buffer(_buffer(name), torch.zeros(()))

    def set(self, modality: str, share: float) -> None:
        """Take a share."""
        self.get_buffer(_buffer(modality)).fill_(share)

    def chosen(self) -> Mapping[str, float]:
        """Return the shares that are not zero."""
        shares = {name: float(self.get_buffer(_buffer(name))) for name in self.modalities}
        return {name: share for name, share in shares.items() if share}


def _buffer(modality: str) -> str:
    return f"share_{modality}"
