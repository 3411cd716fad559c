"""The composed loss against arithmetic and its own parts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmrec.batch import HistoryBatch, ItemBatch, ModelOutput, Targets, UserBatch
from mmrec.errors import ConfigError, FeedError
from mmrec.training.loss import LossKind, TrainingLoss

ROWS = torch.tensor([5, 0, 3, 7, 2])
"""Catalogue rows of the batch's items, out of a catalogue of eight."""


def batch(*, negatives: tuple[int, ...] = (3, 4), value: float = math.nan) -> HistoryBatch:
    """User 0 chose items 0, 1 and then 2; user 1 chose item 1 and then 3.  Every later event is a target."""
    users = UserBatch(
        item_positions=torch.tensor([[0, 1], [1, 0]]),
        valid=torch.tensor([[True, True], [True, False]]),
        instants=torch.tensor([[0, 1], [0, 0]]),
    )
    targets = Targets(
        user_index=torch.tensor([0, 0, 1]),
        time_index=torch.tensor([0, 1, 0]),
        item_positions=torch.tensor([1, 2, 3]),
        action=torch.zeros(3, dtype=torch.int64),
        value=torch.full((3,), value),
        weight=torch.tensor([1.0, 2.0, 1.0]),
        impression=torch.full((3,), -1),
        together=torch.zeros(3, dtype=torch.bool),
    )
    return HistoryBatch(
        items=ItemBatch(item_rows=ROWS, parts={}),
        users=users,
        targets=targets,
        negatives=torch.tensor(negatives, dtype=torch.int64),
        user_rows=torch.tensor([0, 1]),
    )


def output(*, views: bool = False) -> ModelOutput:
    torch.manual_seed(0)
    return ModelOutput(
        item_embeddings=torch.randn(5, 4, requires_grad=True),
        target_vectors=torch.randn(3, 4, requires_grad=True),
        views={"text": torch.randn(3, 4), "image": torch.randn(3, 4)} if views else {},
        view_contents={"text": torch.arange(3), "image": torch.tensor([0, 1, 0])} if views else {},
    )


def loss_of(kind: LossKind, **options: object) -> TrainingLoss:
    if kind == "in_batch_softmax":
        options = {"num_users": 6, "users_with_item": torch.tensor([3, 0, 1, 1, 0, 2, 0, 2]), **options}
    return TrainingLoss(kind=kind, chunk=3, **options)  # type: ignore[arg-type]


def averaged(losses: Tensor) -> Tensor:
    return (losses * torch.tensor([1.0, 2.0, 1.0])).sum() / 4


def test_full_softmax_is_cross_entropy_over_fresh_and_stored_vectors() -> None:
    made, bank = output(), torch.randn(8, 4)
    table = bank.index_copy(0, ROWS, made.item_embeddings)
    scores = made.target_vectors @ table.T
    expected = averaged(functional.cross_entropy(scores, ROWS[torch.tensor([1, 2, 3])], reduction="none"))
    terms = loss_of("full_softmax")(made, batch(), bank)
    torch.testing.assert_close(terms.total, expected)
    assert terms.num_targets == 3
    assert terms.parts.keys() == {"full_softmax"}
    assert not terms.parts["full_softmax"].requires_grad


def test_full_softmax_masks_the_history_and_what_is_held_out() -> None:
    made, bank = output(), torch.randn(8, 4)
    table = bank.index_copy(0, ROWS, made.item_embeddings)
    scores = (made.target_vectors @ table.T).detach()
    scores[0, 5] = scores[1, 5] = scores[1, 0] = scores[2, 0] = -torch.inf  # rows of the items chosen before
    scores[:, 6] = -torch.inf  # held out
    eligible = torch.arange(8) != 6
    expected = averaged(functional.cross_entropy(scores, ROWS[torch.tensor([1, 2, 3])], reduction="none"))
    terms = loss_of("full_softmax", mask_history=True, eligible=eligible)(made, batch(), bank)
    torch.testing.assert_close(terms.total, expected)


@pytest.mark.parametrize("mask_history", [False, True])
def test_in_batch_softmax_corrects_by_inclusion(mask_history: bool) -> None:
    made = output()
    scores = (made.target_vectors @ made.item_embeddings.T).detach().exp()
    # one other user out of five: p = n / 5; two of eight items are drawn beside it
    alone = torch.tensor([2, 3, 1, 2, 1]) / 5
    factor = (1 / (1 - (1 - alone) * (1 - 2 / 8))).expand(3, 5).clone()
    factor[:2, [0, 1, 2]] = 1.0  # what user 0 brings along
    factor[2, [1, 3]] = 1.0
    if mask_history:
        factor[0, 0] = factor[1, 0] = factor[1, 1] = factor[2, 1] = 0.0
    own = scores[torch.arange(3), torch.tensor([1, 2, 3])]
    expected = averaged(((scores * factor).sum(1) / own).log())
    terms = loss_of("in_batch_softmax", mask_history=mask_history)(made, batch())
    torch.testing.assert_close(terms.total.detach(), expected)


def test_in_batch_softmax_draws_from_what_is_eligible() -> None:
    plain = loss_of("in_batch_softmax")(output(), batch()).total
    fewer = loss_of("in_batch_softmax", eligible=torch.arange(8) != 6)(output(), batch()).total
    assert fewer.item() < plain.item()  # two of seven: each is likelier to be there, and counts for less


def test_bpr_averages_over_the_negatives() -> None:
    made = output()
    scores = (made.target_vectors @ made.item_embeddings.T).detach()
    gaps = scores[torch.arange(3), torch.tensor([1, 2, 3])].unsqueeze(1) - scores[:, [3, 4]]
    losses = functional.softplus(-gaps)
    expected = averaged(torch.stack([losses[0].mean(), losses[1].mean(), losses[2, 1]]))  # 3 is target 2's own item
    torch.testing.assert_close(loss_of("bpr")(made, batch()).total.detach(), expected)


def test_mask_history_reaches_bpr() -> None:
    made = output()
    scores = (made.target_vectors @ made.item_embeddings.T).detach()
    gaps = scores[torch.arange(3), torch.tensor([1, 2, 3])].unsqueeze(1) - scores[:, [0, 4]]
    losses = functional.softplus(-gaps)
    # item 0 is in the history of the first user, and not in the second's
    expected = averaged(torch.stack([losses[0, 1], losses[1, 1], losses[2].mean()]))
    terms = loss_of("bpr", mask_history=True)(made, batch(negatives=(0, 4)))
    torch.testing.assert_close(terms.total.detach(), expected)


def test_pointwise_losses_compare_scores_with_values() -> None:
    made, step = output(), batch(value=0.5)
    scores = (made.target_vectors * made.item_embeddings[[1, 2, 3]]).sum(1).detach()
    torch.testing.assert_close(loss_of("mse")(made, step).total.detach(), averaged((scores - 0.5) ** 2))
    expected = averaged((functional.softplus(scores) + functional.softplus(-scores)) / 2)
    torch.testing.assert_close(loss_of("bce")(made, step).total.detach(), expected)
    with pytest.raises(FeedError, match="value"):
        loss_of("bce")(made, batch())


def test_bce_with_sampled_zeros() -> None:
    made, step = output(), batch(value=1.0)
    scores = (made.target_vectors @ made.item_embeddings.T).detach()
    own = functional.softplus(-scores[torch.arange(3), torch.tensor([1, 2, 3])])
    zeros = functional.softplus(scores[:, [3, 4]])
    losses = torch.stack([(own[t] + zeros[t].sum()) / 3 for t in (0, 1)] + [(own[2] + zeros[2, 1]) / 2])
    terms = loss_of("bce", sampled_zeros=True)(made, step)
    torch.testing.assert_close(terms.total.detach(), averaged(losses))


def test_contrastive_part_is_weighted_and_reported() -> None:
    made, step = output(views=True), batch(value=0.5)
    main = loss_of("mse")(made, step)
    both = loss_of("mse", contrastive_weight=0.25)(made, step)
    assert both.parts.keys() == {"mse", "contrastive"}
    torch.testing.assert_close(both.total, main.total + 0.25 * both.parts["contrastive"])
    torch.testing.assert_close(both.parts["mse"], main.total.detach())
    # 0 and 2 show one picture: with only 1 for a negative, a cosine of at most 1 bounds the loss
    assert 0 < both.parts["contrastive"].item() < math.log(1 + math.exp(2 / 0.07))


def test_contrastive_part_is_absent_without_two_views() -> None:
    made = output(views=True)
    one = replace(made, views={"text": made.views["text"]})
    terms = loss_of("mse", contrastive_weight=1.0)(one, batch(value=0.5))
    assert terms.parts.keys() == {"mse"}


def test_contrastive_part_averages_all_pairs_of_views() -> None:
    made = output(views=True)
    three = replace(
        made,
        views={**made.views, "video": made.views["text"].clone()},
        view_contents={**made.view_contents, "video": torch.arange(3)},
    )

    def part(names: tuple[str, ...]) -> Tensor:
        chosen = replace(three, views={name: three.views[name] for name in names})
        return loss_of("mse", contrastive_weight=1.0)(chosen, batch(value=0.5)).parts["contrastive"]

    twos = [part(names) for names in (("text", "image"), ("text", "video"), ("image", "video"))]
    torch.testing.assert_close(part(("text", "image", "video")), torch.stack(twos).mean())


@pytest.mark.parametrize("kind", ["full_softmax", "in_batch_softmax", "bpr", "bce", "mse"])
def test_descending_the_gradient_lowers_the_loss(kind: LossKind) -> None:
    made, step, bank = output(), batch(value=1.0), torch.randn(8, 4)
    loss = loss_of(kind)
    optimizer = torch.optim.SGD([made.item_embeddings, made.target_vectors], lr=0.05)
    before = loss(made, step, bank).total
    before.backward()
    optimizer.step()
    assert loss(made, step, bank).total.item() < before.item()


def test_moves_what_it_knows_of_the_feed() -> None:
    moved = loss_of("in_batch_softmax", eligible=torch.ones(8, dtype=torch.bool)).to(torch.device("meta"))
    assert moved.users_with_item is not None
    assert moved.eligible is not None
    assert moved.users_with_item.device.type == moved.eligible.device.type == "meta"
    assert moved.chunk == 3


def test_in_batch_softmax_needs_its_counts() -> None:
    with pytest.raises(ConfigError, match="users_with_item"):
        TrainingLoss(kind="in_batch_softmax")
