"""What every user encoder promises: no leak, no order within an instant, no trace of padding or company."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmrec.batch import UserBatch
from mmrec.model.gru import GruUserEncoder
from mmrec.model.instants import gap_buckets, instant_ranks, mean_over, simultaneous, visible
from mmrec.model.mean import MeanUserEncoder
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.model.user_encoder import UserEncoder
from mmrec.model.user_layers import TransformerLayer
from tests.model.samples import randomise

DIM = 8
DAY = 86_400_000
HISTORIES: list[list[int]] = [[0, 0, 1, 2, 2, 2], [0, 1, 2], [0], [], [0, 0]]
"""Instants of five users."""
KINDS = ["transformer", "gru", "mean"]


def encoder_of(kind: str, *, features: bool = True) -> nn.Module:
    torch.manual_seed(0)
    extra = {"num_events": 3, "time_gaps": True} if features else {}
    module: nn.Module
    if kind == "gru":
        module = GruUserEncoder(dim=DIM, num_layers=2, dropout=0.5, **extra)
    elif kind == "mean":
        module = MeanUserEncoder()
    else:
        module = TransformerUserEncoder(dim=DIM, num_layers=2, num_heads=2, max_length=4, dropout=0.5, **extra)
    randomise(module)
    return module.double().eval()


def users_of(histories: Sequence[Sequence[int]], *, time: int | None = None) -> tuple[UserBatch, Tensor]:
    """Histories with events, timestamps and item vectors that depend on user, instant and place."""
    time = max(map(len, histories)) if time is None else time
    instants = torch.zeros(len(histories), time, dtype=torch.int64)
    valid = torch.zeros(len(histories), time, dtype=torch.bool)
    for user, history in enumerate(histories):
        instants[user, : len(history)] = torch.tensor(history, dtype=torch.int64)
        valid[user, : len(history)] = True
    codes = torch.arange(time) + torch.arange(len(histories)).unsqueeze(1)
    vectors = torch.sin(codes.unsqueeze(2) * torch.linspace(1, 5, DIM) + 1).double()
    users = UserBatch(
        item_positions=torch.zeros_like(instants),
        valid=valid,
        instants=instants,
        timestamps=instants * instants * DAY,
        events=codes % 4,
    )
    return users, vectors


def permuted(users: UserBatch, vectors: Tensor, order: Tensor) -> tuple[UserBatch, Tensor]:
    assert users.timestamps is not None
    assert users.events is not None
    moved = replace(
        users,
        valid=users.valid.gather(1, order),
        instants=users.instants.gather(1, order),
        timestamps=users.timestamps.gather(1, order),
        events=users.events.gather(1, order),
    )
    return moved, vectors.gather(1, order.unsqueeze(2).expand_as(vectors))


@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    def test_satisfies_the_protocol(self, kind: str) -> None:
        assert isinstance(encoder_of(kind), UserEncoder)

    def test_shape_and_scale_of_finite_states(self, kind: str) -> None:
        users, vectors = users_of(HISTORIES)
        states = encoder_of(kind)(users, vectors)
        assert states.shape == vectors.shape
        assert states.isfinite().all()

    def test_each_user_alone_without_padding(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of(HISTORIES)
        states = encoder(users, vectors)
        for user, history in enumerate(HISTORIES):
            if not history:
                continue
            alone, _ = users_of([history])
            assert users.events is not None
            alone = replace(alone, events=users.events[user : user + 1, : len(history)])
            expected = encoder(alone, vectors[user : user + 1, : len(history)])[0]
            torch.testing.assert_close(states[user, : len(history)], expected, rtol=1e-10, atol=1e-10)

    def test_what_lies_in_padding_does_not_matter(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of(HISTORIES, time=9)
        states = encoder(users, vectors)
        junk = torch.where(users.valid.unsqueeze(2), vectors, 1e3)
        other = replace(users, instants=users.instants.where(users.valid, 1), events=users.events.where(users.valid, 2))
        torch.testing.assert_close(encoder(other, junk)[users.valid], states[users.valid], rtol=1e-10, atol=1e-10)

    def test_later_instants_do_not_matter(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of(HISTORIES)
        states = encoder(users, vectors)
        late = users.instants >= 2
        changed = torch.where(late.unsqueeze(2), -3 * vectors, vectors)
        later = replace(users, events=users.events.where(~late, 0), timestamps=users.timestamps.where(~late, 99 * DAY))
        early = users.valid & ~late
        torch.testing.assert_close(encoder(later, changed)[early], states[early], rtol=1e-10, atol=1e-10)
        assert (encoder(later, changed)[late] - states[late]).norm() > 1e-3

    def test_no_gradient_flows_back_from_an_earlier_state(self, kind: str) -> None:
        users, vectors = users_of([[0, 1, 1, 2]])
        vectors.requires_grad_()
        encoder_of(kind)(users, vectors)[0, 1].square().sum().backward()
        assert vectors.grad is not None
        assert vectors.grad[0].norm(dim=1).gt(0).tolist() == [True, True, True, False]

    def test_order_within_an_instant_does_not_matter(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of(HISTORIES[:1])
        states = encoder(users, vectors)
        moved = encoder(*permuted(users, vectors, torch.tensor([[1, 0, 2, 5, 3, 4]])))
        torch.testing.assert_close(moved, states, rtol=1e-10, atol=1e-10)

    def test_all_slots_of_an_instant_share_one_state_that_knows_them_all(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of([[0, 0, 1, 1]])
        states = encoder(users, vectors)[0]
        torch.testing.assert_close(states[0], states[1])
        torch.testing.assert_close(states[2], states[3])
        for slot in range(4):
            changed = vectors.clone()
            changed[0, slot] *= -2
            assert (encoder(users, changed)[0, 3] - states[3]).norm() > 1e-3

    def test_a_window_cut_from_a_longer_history_may_start_at_any_rank(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of([[0, 0, 1, 2]])
        later = replace(users, instants=users.instants * 3 + 11)
        torch.testing.assert_close(encoder(later, vectors), encoder(users, vectors))

    def test_gradients_are_finite_with_padding_and_empty_histories(self, kind: str) -> None:
        encoder = encoder_of(kind)
        users, vectors = users_of(HISTORIES)
        vectors.requires_grad_()
        encoder(users, vectors).square().sum().backward()
        assert vectors.grad is not None
        assert vectors.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())

    def test_a_feed_without_events_and_times(self, kind: str) -> None:
        users, vectors = users_of(HISTORIES)
        bare = replace(users, events=None, timestamps=None)
        assert encoder_of(kind)(bare, vectors).isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mean"])
def test_events_and_gaps_matter_where_they_are_on(kind: str) -> None:
    users, vectors = users_of(HISTORIES)
    other_event = replace(users, events=(users.events + 1) % 3)
    other_time = replace(users, timestamps=users.timestamps * 100)
    for changed in (other_event, other_time):
        difference = encoder_of(kind)(changed, vectors) - encoder_of(kind)(users, vectors)
        assert difference[users.valid].norm() > 1e-3
        off = encoder_of(kind, features=False)
        assert torch.equal(off(changed, vectors), off(users, vectors))


def test_event_codes_out_of_range_share_one_vector() -> None:
    encoder = encoder_of("transformer")
    users, vectors = users_of([[0, 1]])
    states = [encoder(replace(users, events=torch.full((1, 2), code)), vectors) for code in (-1, 3, 1000)]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def naive_attention(layer: TransformerLayer, values: list[Tensor], instants: Sequence[int]) -> list[Tensor]:
    """One pre-norm layer, slot by slot, head by head."""
    normed = [layer.attention_norm(value) for value in values]
    projected = [layer.query_key_value(value).chunk(3) for value in normed]
    width = DIM // layer.num_heads
    result = []
    for i, value in enumerate(values):
        heads = []
        for head in range(layer.num_heads):
            part = slice(head * width, (head + 1) * width)
            seen = [j for j in range(len(values)) if instants[j] <= instants[i]]
            scores = [
                projected[i][0][part] @ projected[j][1][part] / math.sqrt(width)
                + layer.slopes[head] * math.log(1 + instants[i] - instants[j])
                for j in seen
            ]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * projected[j][2][part] for weight, j in zip(weights, seen, strict=True)))
        value = value + layer.output(torch.cat(heads))
        hidden = layer.hidden_norm(value)
        said = layer.outer(nn.functional.gelu(layer.inner(hidden)))
        result.append(value + said)
    return result


def naive_transformer(encoder: TransformerUserEncoder, items: Tensor, instants: Sequence[int]) -> Tensor:
    items = items * math.sqrt(DIM)
    values = [items[i] + encoder.positions.weight[min(instant, 3)] for i, instant in enumerate(instants)]
    for layer in encoder.layers:
        values = naive_attention(layer, values, instants)
    states = []
    for instant in instants:
        same = torch.stack([values[j] for j, other in enumerate(instants) if other == instant]).mean(0)
        past = torch.stack([items[j] for j, other in enumerate(instants) if other <= instant]).mean(0)
        states.append(encoder.output(encoder.norm(same)) + encoder.habit * past)
    return torch.stack(states)


def naive_gru(encoder: GruUserEncoder, items: Tensor, instants: Sequence[int]) -> Tensor:
    items = items * math.sqrt(DIM)
    hidden, states = None, []
    for instant in sorted(set(instants)):
        same = torch.stack([items[j] for j, other in enumerate(instants) if other == instant]).mean(0)
        past = torch.stack([items[j] for j, other in enumerate(instants) if other <= instant]).mean(0)
        after, hidden = encoder.gru(same.view(1, 1, DIM), hidden)
        state = encoder.output(after[0, 0]) + encoder.recent * same + encoder.habit * past
        states += [state] * list(instants).count(instant)
    return torch.stack(states)


def naive_mean(encoder: MeanUserEncoder, items: Tensor, instants: Sequence[int]) -> Tensor:
    past = [[items[j] for j, other in enumerate(instants) if other <= instant] for instant in instants]
    return torch.stack([torch.stack(rows).mean(0) for rows in past]) * math.sqrt(DIM)


@pytest.mark.parametrize(("kind", "naive"), zip(KINDS, [naive_transformer, naive_gru, naive_mean], strict=True))
def test_equals_a_loop_over_users_in_value_and_gradient(kind: str, naive) -> None:
    encoder = encoder_of(kind, features=False)
    histories = [[0, 0, 1, 2, 2, 3, 4], [0, 1, 2], [0]]
    users, vectors = users_of(histories)
    vectors.requires_grad_()
    fast = encoder(users, vectors)[users.valid]
    slow = torch.cat([naive(encoder, vectors[u, : len(h)], h) for u, h in enumerate(histories)])
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    inputs = [vectors, *encoder.parameters()]
    for mine, expected in zip(
        torch.autograd.grad(fast.sin().sum(), inputs, allow_unused=True),
        torch.autograd.grad(slow.sin().sum(), inputs, allow_unused=True),
        strict=True,
    ):
        if expected is not None:
            assert mine is not None
            torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-8)


def test_a_fresh_transformer_recommends_what_was_chosen_the_last_first() -> None:
    torch.manual_seed(0)
    items = torch.eye(64)
    users, _ = users_of([[0, 1, 2, 3, 4]])
    state = TransformerUserEncoder(dim=64, num_layers=2).eval()(users, items[None, :5])[0, 4]
    scores = items @ state
    assert scores.argmax() == 4
    assert scores[:5].mean() > scores[5:].mean() + 0.5


class TestInstants:
    def test_masks_by_hand(self) -> None:
        users, _ = users_of([[4, 4, 7]], time=4)
        ranks = instant_ranks(users)
        assert ranks[0, :3].tolist() == [0, 0, 1]
        assert visible(ranks, users.valid)[0, :3].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
        assert simultaneous(ranks, users.valid)[0, :3].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]

    def test_mean_over_by_hand(self) -> None:
        seen = torch.tensor([[[True, False], [True, True]]])
        assert mean_over(seen, torch.tensor([[[2.0], [4.0]]])).tolist() == [[[2.0], [3.0]]]
        assert mean_over(~seen, torch.tensor([[[2.0], [4.0]]])).tolist() == [[[4.0], [0.0]]]

    def test_gap_buckets_by_hand(self) -> None:
        # Instants begin at 0, 3, 4 and 4 + 86400 seconds; the second event of the second instant is later.
        seconds = torch.tensor([[0, 3, 50, 4, 86_404, 0]])
        ranks = torch.tensor([[0, 1, 1, 2, 3, 4]])
        valid = torch.tensor([[True] * 5 + [False]])
        # Gaps of 3, 1 and 86400 seconds: 4, 2 and 86401 hold 2, 1 and 16 doublings.
        assert gap_buckets(seconds * 1000, ranks, valid).tolist() == [[0, 3, 3, 2, 17, 0]]

    def test_a_gap_of_centuries_stays_in_the_last_bucket(self) -> None:
        times = torch.tensor([[0, 10**15]])
        assert gap_buckets(times, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0, 32]]
