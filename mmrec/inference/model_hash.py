"""What tells one trained model from another: vectors of two models are never mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from mmrec.assembly import Assembly
from mmrec.encoders.compute import ComputeDtype
from mmrec.storage import content_hash


def hash_weights(assembly: Assembly, tensors: Mapping[str, Tensor]) -> str:
    """Hash what was trained and what it was trained on: weights, frozen bases, preprocessing.

    Args:
        assembly: the model on its feed.
        tensors: its trained weights, by name.
    """
    pieces: list[str | bytes] = []
    for name in sorted(tensors):
        pieces += [name, tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()]
    for name, base in sorted(assembly.bases.items()):
        pieces += [name, base]
    for name, built in sorted(assembly.encoders.items()):
        if built.preprocessor is not None:
            pieces += [name, built.preprocessor.fingerprint]
    return content_hash(*pieces)


def in_format(weights_hash: str, dtype: ComputeDtype) -> str:
    """Return the hash of a model that runs in a number format."""
    return weights_hash if dtype == "float32" else content_hash(weights_hash, dtype)


def in_every_format(weights_hash: str) -> list[str]:
    """Return the hashes of a model in all formats that it may run in."""
    return [in_format(weights_hash, dtype) for dtype in get_args(ComputeDtype)]
