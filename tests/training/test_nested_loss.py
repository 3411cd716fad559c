"""The Matryoshka loss against a naive twin, in value and gradient, and off as if it were not there."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmrec.batch import ModelOutput
from mmrec.errors import ConfigError
from mmrec.model.scorer import Scorer
from mmrec.training.loss import LossKind
from mmrec.training.nested_loss import NestedLoss
from tests.training.test_loss import ROWS, averaged, batch, loss_of

DIM, DIMS = 6, (2, 4)
OWN = torch.tensor([1, 2, 3])
"""Positions of the targets' items in the batch of ``test_loss``."""

Similarity = Literal["cosine", "dot"]


def states(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Scorer]:
    """Fused items of the batch, states of its targets, fused items of the catalogue, and what makes vectors of them."""
    torch.manual_seed(seed)
    fused, users, catalogue = (torch.randn(rows, DIM, dtype=torch.float64) for rows in (5, 3, 8))
    return fused.requires_grad_(), users.requires_grad_(), catalogue, Scorer(dim=DIM)


def scorer(similarity: Similarity, *, item_bias: bool) -> Scorer:
    torch.manual_seed(1)
    made = Scorer(dim=DIM, similarity=similarity, temperature=0.3, item_bias=item_bias).double()
    if made.bias is not None:
        torch.nn.init.normal_(made.bias.weight)
    return made


def nested(kind: LossKind, made: Scorer, **options: object) -> NestedLoss:
    weights = options.pop("weights", ())
    return NestedLoss(
        loss=loss_of(kind, **options),
        dims=DIMS,
        weights=weights,  # type: ignore[arg-type]
        has_bias=made.bias is not None,
        keeps_length=made.similarity == "cosine",
    )


def naive(made: Scorer, fused: Tensor, users: Tensor, catalogue: Tensor, dim: int) -> Tensor:
    """Dense cross entropy of targets over the catalogue, from the first coordinates of items and states."""
    table = catalogue.index_copy(0, ROWS, fused)
    items, wanted = table[:, :dim], users[:, :dim]
    if made.similarity == "cosine":
        items, wanted = functional.normalize(items, dim=1), functional.normalize(wanted, dim=1) / made.temperature()
    scores = wanted @ items.T
    if made.bias is not None:
        content = functional.normalize(table, dim=1) if made.similarity == "cosine" else table
        biases = made.bias(content * DIM**0.5)
        scores = scores + biases.detach().index_copy(0, ROWS, biases[ROWS]).T  # the bank's do not learn
    return averaged(functional.cross_entropy(scores, ROWS[OWN], reduction="none"))


@pytest.mark.parametrize("item_bias", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("weights", [(), (3.0, 0.5)])
def test_value_and_gradient_are_those_of_a_naive_twin(
    similarity: Similarity, item_bias: bool, weights: tuple[float, ...]
) -> None:
    fused, users, catalogue, _ = states()
    made = scorer(similarity, item_bias=item_bias)
    output = ModelOutput(item_embeddings=made.item_vectors(fused), target_vectors=made.user_vectors(users))
    bank = made.item_vectors(catalogue).detach()
    found = nested("full_softmax", made, weights=weights)(output, batch(), bank).total

    each = [naive(made, fused, users, catalogue, dim) for dim in (*DIMS, DIM)]
    first, second = weights or (1.0, 1.0)
    expected = (first * each[0] + second * each[1] + each[2]) / (first + second + 1)
    torch.testing.assert_close(found, expected)
    learns = [fused, users, *(p for p in made.parameters() if p is not made.stranger)]
    for one, other in zip(torch.autograd.grad(found, learns), torch.autograd.grad(expected, learns), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["full_softmax", "in_batch_softmax", "bpr", "bce", "mse"])
def test_every_objective_is_taken_at_every_width(kind: LossKind) -> None:
    made = scorer("dot", item_bias=False)
    fused, users, catalogue, _ = states()
    output, cut = (
        ModelOutput(item_embeddings=fused.float()[:, :d], target_vectors=users.float()[:, :d]) for d in (6, 2)
    )
    bank = catalogue.float()
    terms = nested(kind, made)(output, batch(value=1.0), bank)
    assert list(terms.parts) == [kind, f"{kind}/2", f"{kind}/4"]
    alone = loss_of(kind)
    torch.testing.assert_close(terms.parts[f"{kind}/2"], alone(cut, batch(value=1.0), bank[:, :2]).total.detach())
    torch.testing.assert_close(terms.parts[kind], alone(output, batch(value=1.0), bank).total.detach())
    torch.testing.assert_close(terms.total.detach(), torch.stack(list(terms.parts.values())).mean())
    assert terms.num_targets == 3


def test_the_views_of_a_post_are_cut_too() -> None:
    made = scorer("dot", item_bias=False)
    fused, users, catalogue, _ = states()
    views = {"text": torch.randn(3, DIM), "image": torch.randn(3, DIM)}
    contents = {"text": torch.arange(3), "image": torch.arange(3)}
    output = ModelOutput(
        item_embeddings=fused.float(), target_vectors=users.float(), views=views, view_contents=contents
    )
    parts = nested("full_softmax", made, contrastive_weight=0.5)(output, batch(), catalogue.float()).parts
    text, image = (functional.normalize(view[:, :2], dim=1) for view in (views["text"], views["image"]))
    scores = text @ image.T / 0.07
    both = functional.cross_entropy(scores, torch.arange(3)) + functional.cross_entropy(scores.T, torch.arange(3))
    torch.testing.assert_close(parts["contrastive/2"], both / 2)


def test_a_stranger_that_is_all_zero_gets_a_finite_gradient() -> None:
    made = Scorer(dim=DIM)
    fused, _, _, _ = states()
    target_vectors = made.stranger_vector().expand(3, -1)
    output = ModelOutput(item_embeddings=made.item_vectors(fused.float()), target_vectors=target_vectors)
    nested("full_softmax", made)(output, batch(), torch.randn(8, DIM + 1)).total.backward()
    assert made.stranger.grad is not None
    assert made.stranger.grad.isfinite().all()
    assert made.stranger.grad.abs().max() > 0


def test_weights_fit_the_widths() -> None:
    with pytest.raises(ConfigError, match="2 weights, one for each width, got 1"):
        nested("bpr", Scorer(dim=DIM), weights=(1.0,))
