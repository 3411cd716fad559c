"""The whole model: distinct items give exactly what encoding every slot separately gives, and company never matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from mmrec.batch import HistoryBatch, Targets, UserBatch
from mmrec.model.fusion import ConcatFusion
from mmrec.model.gru import GruUserEncoder
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.mean import MeanUserEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from tests.model.samples import DIM, POSTS, Post, TinyId, TinyText, count_of, item_batch, item_encoder, randomise


@dataclass(frozen=True)
class Event:
    post: int
    instant: int


HISTORIES = [
    [Event(0, 0), Event(3, 0), Event(0, 1), Event(2, 2)],
    [Event(4, 0), Event(7, 1)],
    [Event(5, 0)],
    [],
]
TARGETS = [(0, 1, 0), (0, 2, 2), (0, 3, 6), (1, 0, 7), (1, 1, 4), (2, 0, 1), (0, -1, 3)]
"""User, slot, post; slot -1 is a target without history."""
NEGATIVES = [1, 6, 6, 5]


def model_of(user: str = "transformer", **options: object) -> RecommenderModel:
    users: nn.Module
    if user == "transformer":
        users = TransformerUserEncoder(dim=DIM, num_layers=2, num_heads=2, max_length=6)
    elif user == "gru":
        users = GruUserEncoder(dim=DIM)
    else:
        users = MeanUserEncoder()
    model = RecommenderModel(
        item_encoder=item_encoder(),
        user_encoder=users,
        scorer=Scorer(dim=DIM, **options),  # type: ignore[arg-type]
        contrastive_items=3,
    )
    randomise(model)
    return model


def user_batch(histories: Sequence[Sequence[Event]], *, time: int | None = None) -> UserBatch:
    shape = (len(histories), max(map(len, histories)) if time is None else time)
    positions, instants = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    valid = torch.zeros(shape, dtype=torch.bool)
    for user, history in enumerate(histories):
        for slot, event in enumerate(history):
            positions[user, slot], instants[user, slot], valid[user, slot] = event.post, event.instant, True
    return UserBatch(item_positions=positions, valid=valid, instants=instants)


def history_batch(posts: Sequence[Post] = POSTS) -> HistoryBatch:
    user, slot, post = torch.tensor(TARGETS).unbind(1)
    return HistoryBatch(
        items=item_batch(posts),
        users=user_batch(HISTORIES),
        targets=Targets(
            user_index=user,
            time_index=slot,
            item_positions=post,
            action=torch.zeros_like(user),
            value=torch.full((len(user),), torch.nan),
            weight=torch.ones(len(user)),
            impression=torch.full_like(user, -1),
            together=torch.zeros_like(user, dtype=torch.bool),
        ),
        negatives=torch.tensor(NEGATIVES),
        user_rows=torch.arange(len(HISTORIES)),
    )


def loss_of(target_vectors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Softmax of each target against the negatives."""
    positive = (target_vectors * positives).sum(1, keepdim=True)
    scores = torch.cat([positive, target_vectors @ negatives.T], dim=1)
    return -scores.log_softmax(1)[:, 0].sum()


def fast_loss(model: RecommenderModel) -> Tensor:
    batch = history_batch()
    output = model(batch)
    positives = output.item_embeddings[batch.targets.item_positions]
    return loss_of(output.target_vectors, positives, output.item_embeddings[batch.negatives])


def naive_loss(model: RecommenderModel) -> Tensor:
    """Encode every slot of every history, target and negative by itself; every user without padding."""

    def encode(post: int) -> Tensor:
        return model.encode_items(item_batch([POSTS[post]]))[0]

    vectors = []
    for user, slot, _ in TARGETS:
        if slot < 0:
            vectors.append(model.scorer.stranger_vector())
            continue
        seen = [event for event in HISTORIES[user] if event.instant <= HISTORIES[user][slot].instant]
        embeddings = torch.stack([encode(event.post) for event in seen])
        alone = user_batch([[Event(place, event.instant) for place, event in enumerate(seen)]])
        vectors.append(model.encode_users(alone, embeddings).vectors[0, 0])
    positives = torch.stack([encode(post) for _, _, post in TARGETS])
    return loss_of(torch.stack(vectors), positives, torch.stack([encode(post) for post in NEGATIVES]))


def test_the_habit_counts_for_a_later_instant_alone() -> None:
    """Within a basket the state is the user encoder's own; for a later instant the history's mean joins it."""
    model = model_of("mean", similarity="cosine").eval()
    with torch.no_grad():
        model.revisit.fill_(0.5)
    batch = history_batch()
    together = replace(batch, targets=replace(batch.targets, together=torch.ones_like(batch.targets.together)))
    later, basket = model(batch).target_vectors, model(together).target_vectors
    torch.testing.assert_close(later, basket)  # 1 x mean and 1.5 x mean have one direction
    with torch.no_grad():
        model.revisit[0] = 3.0
    known = batch.targets.time_index >= 0
    moved = (model(batch).target_vectors - later).abs().sum(1) > 1e-3
    assert torch.equal(moved, known)
    torch.testing.assert_close(model(together).target_vectors, basket)


@pytest.mark.parametrize("user", ["transformer", "gru", "mean"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_distinct_items_are_exactly_the_padded_duplicated_computation(user: str, similarity: str) -> None:
    model = model_of(user, similarity=similarity).double().eval()
    fast, slow = fast_loss(model), naive_loss(model)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    mine = torch.autograd.grad(fast, parameters, allow_unused=True)
    expected = torch.autograd.grad(slow, parameters, allow_unused=True)
    used = [name for name, gradient in zip(names, expected, strict=True) if gradient is not None]
    assert {name.split(".")[0] for name in used} >= {"item_encoder", "scorer"}
    assert any("encoders.text" in name for name in used)
    for name, fast_gradient, slow_gradient in zip(names, mine, expected, strict=True):
        if slow_gradient is None:
            assert fast_gradient is None or not fast_gradient.any(), name
        else:
            torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_score_depends_on_user_and_candidate_alone(similarity: str) -> None:
    model = model_of(similarity=similarity).eval()
    with torch.no_grad():
        everything = model.encode_items(item_batch(POSTS))
        together = model.score(model.encode_users(user_batch(HISTORIES, time=9), everything), everything)["next"]
        for user, history in enumerate(HISTORIES):
            posts = sorted({event.post for event in history})
            known = model.encode_items(item_batch([POSTS[post] for post in posts] or POSTS[:1]))
            alone = [Event(posts.index(event.post), event.instant) for event in history]
            users = model.encode_users(user_batch([alone]), known)
            for candidate, post in enumerate(POSTS):
                score = model.score(users, model.encode_items(item_batch([post])))["next"]
                torch.testing.assert_close(score[0, 0], together[user, candidate], rtol=1e-5, atol=1e-5)


def test_target_vectors_are_the_states_at_their_slots() -> None:
    model = model_of().eval()
    batch = history_batch()
    output = model(batch)
    states = model.encode_users(batch.users, model.encode_items(batch.items)).states
    for row, (user, slot, _) in enumerate(TARGETS):
        expected = states[user, slot] if slot >= 0 else model.scorer.stranger_vector()
        torch.testing.assert_close(output.target_vectors[row], expected)


def test_user_vectors_are_the_last_states_and_a_stranger_has_one_too() -> None:
    model = model_of().eval()
    users = model.encode_users(user_batch(HISTORIES), model.encode_items(item_batch(POSTS)))
    assert users.vectors.shape == (4, 1, model.width)
    for user, history in enumerate(HISTORIES):
        expected = users.states[user, len(history) - 1] if history else model.scorer.stranger_vector()
        torch.testing.assert_close(users.vectors[user, 0], expected)


def test_no_slots_at_all() -> None:
    model = model_of().eval()
    items = model.encode_items(item_batch(POSTS))
    scores = model.score(model.encode_users(user_batch([[], []]), items), items)["next"]
    assert scores.shape == (2, len(POSTS))
    assert scores.isfinite().all()


def test_the_order_of_events_within_an_instant_changes_no_score() -> None:
    model = model_of().double().eval()
    items = model.encode_items(item_batch(POSTS))
    orders = [[Event(0, 0), Event(1, 1), Event(2, 1)], [Event(0, 0), Event(2, 1), Event(1, 1)]]
    first, second = model.score(model.encode_users(user_batch(orders), items), items)["next"]
    torch.testing.assert_close(first, second)


def test_what_rose_of_late_or_is_known_weighs_more_outside_training_only() -> None:
    model, batch = model_of().eval(), history_batch()
    plain, trained = model.encode_items(batch.items), model(batch).item_embeddings
    model.scorer.trend_weight.fill_(2.0)
    model.scorer.known_bonus.fill_(0.25)
    moved = model.encode_items(batch.items) - plain
    expected = torch.zeros_like(moved)
    # The samples' trends are the logarithms of their counts; posts without an id of their own have none.
    expected[:, -1] = torch.tensor(
        [2 * math.log(count_of(post.row)) + 0.25 if post.row >= 0 else 0.0 for post in POSTS]
    )
    assert expected.any()
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)
    assert torch.equal(model.encode_alone(batch.items)[0], plain)
    assert torch.equal(model(batch).item_embeddings, trained)


class TestViews:
    def test_unit_vectors_of_items_with_both_in_training_only(self) -> None:
        model = model_of()
        output = model.train()(history_batch())
        assert set(output.views) == {"text", "image"}
        for vectors in output.views.values():
            # Four posts have both; three is the limit.
            assert vectors.shape == (3, DIM)
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        assert {len(contents) for contents in output.view_contents.values()} == {3}
        assert model.eval()(history_batch()).views == {}

    def test_off_where_the_model_lacks_a_modality(self) -> None:
        encoder = ItemEncoder(
            encoders={"text": TinyText(), "item_id": TinyId()},
            fusion=ConcatFusion(dim=DIM, num_modalities=1),
            dim=DIM,
        )
        model = RecommenderModel(
            item_encoder=encoder, user_encoder=MeanUserEncoder(), scorer=Scorer(dim=DIM), contrastive_items=5
        )
        assert model.train()(history_batch()).views == {}


def test_every_parameter_gets_a_gradient_in_training_even_where_content_is_missing() -> None:
    model = model_of().train()
    batch = history_batch([Post(caption=(1 + i,)) for i in range(len(POSTS))])
    output = model(batch)
    (output.target_vectors.sum() + output.item_embeddings.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("user", ["transformer", "gru", "mean"])
def test_runs_in_mixed_precision(user: str) -> None:
    model = model_of(user, temperature=0.5).train()
    exact = model(history_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(history_batch())
    # bfloat16 keeps eight bits: coordinates of about one are wrong by some hundredths after a few layers.
    torch.testing.assert_close(output.item_embeddings.float(), exact.item_embeddings, atol=0.15, rtol=0.1)
    (output.target_vectors.float().sum() + sum(view.float().sum() for view in output.views.values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_learns_to_tell_who_likes_what() -> None:
    """Two users, two tastes: after a few steps each scores their own next post first."""
    torch.manual_seed(0)
    model = RecommenderModel(
        item_encoder=item_encoder(),
        user_encoder=TransformerUserEncoder(dim=DIM, num_layers=1, num_heads=2),
        scorer=Scorer(dim=DIM),
    )
    batch = history_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        output = model(batch)
        scores = output.target_vectors @ output.item_embeddings.T
        loss = nn.functional.cross_entropy(scores, batch.targets.item_positions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(scores.argmax(1), batch.targets.item_positions)
