"""Captions to vectors with the library that most projects take for it, itself: sentence-transformers.

``SentenceTransformer.encode`` as its documentation shows it, with its default batches of 32 sorted by length.  MiniLM
comes from the same package as mmrec's, so that both sides run the same weights and give the same vectors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrec.encoders.weights import resolve_model


def is_installed() -> bool:
    """Whether the library is there; mmrec does not need it."""
    return importlib.util.find_spec("sentence_transformers") is not None


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name: as mmrec names it.
        device: where to compute.
    """

    def __init__(self, name: str, *, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(resolve_model(name, where="field"), device=device)

    def encode(self, captions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape (captions, dim)."""
        vectors = self._model.encode(list(captions), show_progress_bar=False, normalize_embeddings=True)
        return np.asarray(vectors, dtype=np.float32)
