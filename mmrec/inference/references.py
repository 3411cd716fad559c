"""What requests name, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from mmrec.inference.posts import Post


@dataclass(frozen=True)
class Unusable:
    """A reference that could not even be read.

    Args:
        name: what it is called in results.
        error_message: why it cannot be used.
    """

    name: str
    error_message: str


Reference = str | int | Post | Unusable
"""An item id of the catalogue, a new post, or what is left of one that could not be read."""


def reference_name(reference: Reference, position: int) -> str:
    """Return what a reference is called in results: its id or name, else its position."""
    if isinstance(reference, Post):
        return reference.name or f"new:{position}"
    return reference.name if isinstance(reference, Unusable) else str(reference)


class Resolved(NamedTuple):
    """What became of one reference.

    Args:
        position: row of its vector, -1 where it has none.
        key: the same for two references to the same item or the same content, whatever call they came in.
        row: in the catalogue, -1 for a new post.
        present: the modalities it has.
        error_message: why it has no vector, or None.
    """

    position: int
    key: str
    row: int
    present: tuple[str, ...]
    error_message: str | None = None


@dataclass(frozen=True)
class ResolvedVectors:
    """Vectors of some references, each distinct one once.

    Args:
        vectors: shape (distinct, width), score-ready, float32 on the CPU.
        references: one entry a reference, in the order given.
        rows: of ``vectors``, by key.
    """

    vectors: Float[Tensor, "distinct width"]
    references: tuple[Resolved, ...]
    rows: Mapping[str, int]

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """Position of each reference, shape (references,)."""
        return np.fromiter((entry.position for entry in self.references), np.int64, len(self.references))
