"""Scores: one inner product of score-ready vectors, so that training, scoring, export and search agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import UserStates

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1.0
DEFAULT_ACTION = "next"
"""Name of the action ``NEXT``."""


class Scorer(nn.Module):
    """Make vectors score-ready and compare them.

    An item that the user's history holds gains ``repeat_bonus``, which validation chooses.  Similarity cannot say that
    people come back for the very same thing: whatever raises an item raises everything like it as well.  Validation
    chooses ``trend_weight`` too: what rose in the last days before the question cannot be learnt from all the days before.
    And it may choose a ``known_bonus`` of the items that training saw, over those it could only read.

    Args:
        dim: width of fused item vectors and user states.
        similarity: ``cosine``: unit vectors over a learned temperature; ``dot``: as they are.
        temperature: initial temperature of the cosine; stays between 0.01 and 1.
        item_bias: add one coordinate, a bias read off the item's vector (a new post has one too); a user's is 1.
    """

    repeat_bonus: Tensor
    trend_weight: Tensor
    known_bonus: Tensor

    def __init__(
        self,
        *,
        dim: int,
        similarity: Literal["cosine", "dot"] = "cosine",
        temperature: float = 0.05,
        item_bias: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.width = dim + int(item_bias)
        self.similarity = similarity
        self.temperature_logit = nn.Parameter(torch.tensor(_logit(temperature))) if similarity == "cosine" else None
        self.bias = nn.Linear(dim, 1) if item_bias else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)
            nn.init.zeros_(self.bias.bias)
        self.stranger = nn.Parameter(torch.zeros(dim))
        self.register_buffer("repeat_bonus", torch.zeros(()))
        self.register_buffer("trend_weight", torch.zeros(()))
        self.register_buffer("known_bonus", torch.zeros(()))

    def temperature(self) -> Float[Tensor, ""]:
        """Return the temperature; 1 for the inner product.  Its logarithm moves between the limits, never sticks."""
        if self.temperature_logit is None:
            return torch.ones_like(self.stranger[0])
        low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
        return torch.exp(low + (high - low) * torch.sigmoid(self.temperature_logit))

    def item_vectors(self, fused: Float[Tensor, "items dim"]) -> Float[Tensor, "items width"]:
        """Return score-ready item vectors: the content coordinates, then the bias."""
        content = self._unit(fused)
        if self.bias is None:
            return content
        # Coordinates of about one let the bias learn as fast as everything else.
        return torch.cat([content, self.bias(content * self.dim**0.5).to(content.dtype)], dim=1)

    def mean(
        self, item_embeddings: Sequence[Float[Tensor, "items width"]], weights: Sequence[float]
    ) -> Float[Tensor, "items width"]:
        """Return the weighted mean of several score-ready vectors of the same items, its content of unit length again.

        Args:
            item_embeddings: of all items, once for each weight.
            weights: positive.
        """
        total = torch.stack([weight * vectors for weight, vectors in zip(weights, item_embeddings, strict=True)]).sum(0)
        mean = total / sum(weights)
        return torch.cat([self._unit(self.content(mean)), mean[:, self.dim :]], dim=1)

    def calibrated(
        self, item_embeddings: Float[Tensor, "items width"], signals: Float[Tensor, "items 2"]
    ) -> Float[Tensor, "items width"]:
        """Add to the items' biases what validation gives for their signals; without a bias nothing.

        Args:
            item_embeddings: score-ready vectors.
            signals: how far an item's popularity rose of late, and 1 where training saw the item.
        """
        if self.bias is None:
            return item_embeddings
        weights = torch.stack([self.trend_weight, self.known_bonus]).to(item_embeddings)
        gain = signals.to(item_embeddings) @ weights
        return torch.cat([item_embeddings[:, :-1], item_embeddings[:, -1:] + gain.unsqueeze(1)], dim=1)

    def content(self, item_embeddings: Float[Tensor, "items width"]) -> Float[Tensor, "items dim"]:
        """Return score-ready item vectors without the bias: what histories and searches by content compare."""
        return item_embeddings[:, : self.dim]

    def user_vectors(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows width"]:
        """Return score-ready user vectors: over the temperature, then 1 for the bias."""
        return self._with_one(self._unit(states) / self.temperature().to(states.dtype))

    def stranger_vector(self) -> Float[Tensor, " width"]:
        """Return the score-ready vector of a user with no history; before training it scores by the bias alone."""
        return self._with_one(self.stranger * self.dim**0.5)

    def forward(
        self, users: UserStates, item_embeddings: Float[Tensor, "candidates width"]
    ) -> dict[str, Float[Tensor, "users candidates"]]:
        """Return scores by action, of items that are in nobody's history."""
        return {DEFAULT_ACTION: self.compare(users.vectors, item_embeddings)}

    def compare(
        self,
        vectors: Float[Tensor, "users interests width"],
        item_embeddings: Float[Tensor, "candidates width"],
        *,
        had: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]] | None = None,
    ) -> Float[Tensor, "users candidates"]:
        """Return the score of every candidate for every user; of several interests the best counts.

        Args:
            vectors: score-ready vectors of users.
            item_embeddings: score-ready vectors of candidates.
            had: rows of users, and positions of candidates that the history of each holds; repetitions are harmless.
        """
        if vectors.shape[1] == 1:
            scores = vectors[:, 0] @ item_embeddings.T
        else:
            scores = (vectors @ item_embeddings.T).amax(dim=1)
        if had is not None:
            scores = scores.index_put(had, scores[had] + self.repeat_bonus.to(scores))
        return scores

    def _unit(self, vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        return functional.normalize(vectors, dim=-1, eps=1e-6) if self.similarity == "cosine" else vectors

    def _with_one(self, vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows width"]:
        return vectors if self.bias is None else functional.pad(vectors, (0, 1), value=1.0)


def shorten(
    vectors: Float[Tensor, "*rows width"], dim: int, *, has_bias: bool, keeps_length: bool
) -> Float[Tensor, "*rows short"]:
    """Return the first coordinates of score-ready vectors, then the bias where they end in one.

    Where similarity is a cosine, what is left of the content is made as long as the whole was, which is what the scorer
    would make of the first coordinates of a state: unit length, for a user over the temperature.

    Args:
        vectors: shape (..., width), of items or of users.
        dim: content coordinates to keep; vectors that have no more than that stay as they are.
        has_bias: whether the last coordinate is a bias (1 for a user), which is never cut.
        keeps_length: whether the content keeps its length (cosine).
    """
    content = vectors[..., :-1] if has_bias else vectors
    if dim >= content.shape[-1]:
        return vectors
    kept = content[..., :dim]
    if keeps_length:
        length = torch.linalg.vector_norm(content, dim=-1, keepdim=True)
        kept = functional.normalize(kept, dim=-1, eps=1e-6) * length
    return torch.cat([kept, vectors[..., -1:]], dim=-1) if has_bias else kept


def _logit(temperature: float) -> float:
    """Where between the limits, on a logarithmic scale, as a logit."""
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    share = min(max((math.log(temperature) - low) / (high - low), 0.001), 0.999)
    return math.log(share / (1 - share))
