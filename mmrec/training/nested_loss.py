"""Matryoshka training: the first coordinates of every vector are to be a good vector themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from mmrec.batch import HistoryBatch, ModelOutput
from mmrec.errors import ConfigError
from mmrec.model.scorer import shorten
from mmrec.movable import Movable
from mmrec.training.loss import LossTerms, TrainingLoss


@dataclass(frozen=True, kw_only=True)
class NestedLoss(Movable):
    """The mean of a loss over the full vectors and over their first coordinates.

    (Matryoshka representation learning, Kusupati et al. 2022, arXiv:2205.13147.)  A mean, where the paper has a sum:
    gradients keep their size whatever the number of widths, and so do the rate and the clipping that were tuned for it.
    Each width is scored as an export of that width is.

    Args:
        loss: of one width.
        dims: content coordinates of the shorter vectors.
        weights: of each of them, beside 1 for the full vectors; empty for 1 each.
        has_bias: whether vectors end in a bias coordinate, which every width keeps.
        keeps_length: whether content keeps its length when it is cut (cosine).

    Raises:
        ConfigError: weights that do not fit the widths.
    """

    loss: TrainingLoss
    dims: tuple[int, ...]
    weights: tuple[float, ...] = ()
    has_bias: bool
    keeps_length: bool

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.dims):
            raise ConfigError(
                f"{len(self.dims)} weights, one for each width", got=str(len(self.weights)), where="NestedLoss"
            )

    def __call__(self, output: ModelOutput, batch: HistoryBatch, bank: Tensor | None = None) -> LossTerms:
        """Return the loss of one batch; parts of a shorter width are named ``full_softmax/32`` and the like.

        Args:
            output: what the model made of the batch.
            batch: the batch itself.
            bank: shape (catalogue, width), as for the loss; a shortened copy of it lives as long as its width is scored.
        """
        terms = self.loss(output, batch, bank)
        total, parts = terms.total, dict(terms.parts)
        for dim, weight in self._widths():
            short = self.loss(self._short(output, dim), batch, None if bank is None else self._cut(bank, dim))
            total = total + weight * short.total
            parts |= {f"{name}/{dim}": part for name, part in short.parts.items()}
        weights = 1.0 + sum(weight for _, weight in self._widths())
        return LossTerms(total=total / weights, parts=parts, num_targets=terms.num_targets)

    def _widths(self) -> Iterator[tuple[int, float]]:
        return zip(self.dims, self.weights or (1.0,) * len(self.dims), strict=True)

    def _short(self, output: ModelOutput, dim: int) -> ModelOutput:
        """Cut what is scored; views hold no bias, and the contrastive loss brings them to length one itself."""
        return replace(
            output,
            item_embeddings=self._cut(output.item_embeddings, dim),
            target_vectors=self._cut(output.target_vectors, dim),
            views={name: view[:, :dim] for name, view in output.views.items()},
        )

    def _cut(self, vectors: Tensor, dim: int) -> Tensor:
        return shorten(vectors, dim, has_bias=self.has_bias, keeps_length=self.keeps_length)
