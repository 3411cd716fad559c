"""Item vectors: what is encoded, what an id adds, what dropout may hide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmrec.batch import ItemBatch
from mmrec.contents import TokenStates
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import FrequencyGate, ItemEncoder
from tests.model.samples import DIM, POSTS, Post, TinyId, TinyImage, TinyText, item_batch, item_encoder, randomise


def counted(encoder: ItemEncoder) -> tuple[int, int]:
    text, image = encoder.encoders["text"], encoder.encoders["image"]
    assert isinstance(text, TinyText)
    assert isinstance(image, TinyImage)
    return text.encoded, image.encoded


def test_each_distinct_content_is_encoded_once() -> None:
    encoder = item_encoder()
    encoder(item_batch(POSTS))
    captions = {post.caption for post in POSTS if post.caption}
    pictures = {picture for post in POSTS for picture in post.pictures}
    assert counted(encoder) == (len(captions), len(pictures)) == (4, 5)


def test_a_post_without_an_id_gets_exactly_the_fused_content() -> None:
    encoder = item_encoder().double().eval()
    batch = item_batch([POSTS[0], replace(POSTS[0], row=-1), replace(POSTS[0], row=1)])
    without_ids = ItemBatch(item_rows=batch.item_rows, parts={k: v for k, v in batch.parts.items() if k != "item_id"})
    vectors, content = encoder(batch), encoder(without_ids)
    assert torch.equal(vectors[1], content[1])
    assert ((vectors - content)[[0, 2]].norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("gate", ["frequency", "always"])
def test_the_id_joins_through_its_gate(gate: str) -> None:
    encoder = item_encoder(id_gate=gate).double()
    post = POSTS[1]
    added = encoder(item_batch([post]))[0] - encoder(item_batch([replace(post, row=-1)]))[0]
    table = encoder.encoders["item_id"]
    assert isinstance(table, TinyId)
    weight = torch.ones((), dtype=torch.float64)
    if gate == "frequency":
        assert encoder.id_gate is not None
        linear = encoder.id_gate.linear
        # Row 1 was seen 1 + 3 times; caption present, picture absent.
        inputs = torch.tensor([torch.log1p(torch.tensor(4.0).double()), 1, 0]).double()
        weight = torch.sigmoid(linear.weight[0] @ inputs + linear.bias[0])
    torch.testing.assert_close(added, weight * table.table.weight[1])


def test_the_gate_trusts_frequent_ids_more_from_the_start() -> None:
    gate = FrequencyGate(num_modalities=2)
    weights = gate(torch.tensor([1.0, 20.0, 500.0]), torch.ones(3, 2, dtype=torch.bool))
    # sigmoid(0.5 log 2 - 1.5), sigmoid(0.5 log 21 - 1.5), sigmoid(0.5 log 501 - 1.5)
    torch.testing.assert_close(weights, torch.tensor([0.2398, 0.5056, 0.8332]), atol=1e-4, rtol=0)


def test_ids_alone_are_the_item() -> None:
    encoder = ItemEncoder(encoders={"item_id": TinyId()}, fusion=None, dim=DIM, id_dropout=0.9)
    vectors = encoder.train()(item_batch([Post(row=3), Post(row=-1), Post(row=5)]))
    table = encoder.encoders["item_id"]
    assert isinstance(table, TinyId)
    torch.testing.assert_close(vectors[[0, 2]], table.table.weight[[3, 5]])
    assert vectors[1].norm() > 0


def test_ids_of_another_width_are_projected() -> None:
    encoder = ItemEncoder(encoders={"item_id": TinyId(dim=3)}, fusion=None, dim=DIM)
    assert encoder(item_batch([Post(row=3)])).shape == (1, DIM)


def test_content_of_a_modality_the_model_lacks_is_ignored() -> None:
    encoder = ItemEncoder(encoders={"text": TinyText()}, fusion=BottleneckFusion(dim=DIM, num_modalities=1), dim=DIM)
    batch = item_batch(POSTS)
    only_text = ItemBatch(item_rows=batch.item_rows, parts={"text": batch.parts["text"]})
    assert torch.equal(encoder(batch), encoder(only_text))


class TestDropout:
    def test_off_outside_training(self) -> None:
        encoder = item_encoder(modality_dropout=0.9, id_dropout=0.9).eval()
        assert torch.equal(encoder(item_batch(POSTS)), encoder(item_batch(POSTS)))

    def test_a_dropped_modality_is_not_encoded_and_an_item_keeps_one(self) -> None:
        posts = [Post(caption=(1 + i,), pictures=(i,)) for i in range(12)]
        torch.manual_seed(0)
        encoder = item_encoder(modality_dropout=0.999).train()
        encoder(item_batch(posts))
        assert sum(counted(encoder)) == 12
        assert 0 < counted(encoder)[0] < 12

    def test_a_dropped_modality_equals_an_absent_one(self) -> None:
        torch.manual_seed(1)
        encoder = item_encoder(modality_dropout=0.999).train()
        dropped = encoder(item_batch([Post(caption=(1, 2), pictures=(0,))]))
        left = Post(caption=(1, 2)) if counted(encoder) == (1, 0) else Post(pictures=(0,))
        torch.testing.assert_close(dropped, encoder.eval()(item_batch([left])))

    def test_an_item_with_nothing_but_its_id_keeps_it(self) -> None:
        torch.manual_seed(0)
        encoder = item_encoder(id_dropout=0.999).train()
        posts = [Post(row=7), Post(caption=(1,), row=7)]
        trained = encoder(item_batch(posts))
        expected = encoder.eval()(item_batch([posts[0], replace(posts[1], row=-1)]))
        torch.testing.assert_close(trained, expected)

    def test_an_absent_modality_takes_part_with_weight_zero_in_training(self) -> None:
        encoder = item_encoder().train()
        encoder(item_batch([Post(caption=(1, 2))])).sum().backward()
        image = [p.grad for p in encoder.encoders["image"].parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in image)
        torch.testing.assert_close(
            encoder(item_batch([Post(caption=(1, 2))])), encoder.eval()(item_batch([Post(caption=(1, 2))]))
        )


@pytest.mark.parametrize("post", [POSTS[0], POSTS[1], POSTS[2], POSTS[6]])
def test_modalities_in_step_run_in_one_order_whatever_a_batch_lacks(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, order = item_encoder().train(), []
    expected = encoder(item_batch([post]))
    full = item_batch(POSTS[:1])
    for name in ("text", "image"):
        part = encoder.encoders[name]
        monkeypatch.setattr(part, "blank", lambda name=name: full.parts[name].content, raising=False)

        def note(_: nn.Module, __: object, tokens: TokenStates, name: str = name) -> None:
            order.append(name)
            tokens.states.register_hook(lambda _: order.append(f"{name} back"))

        part.register_forward_hook(note)
    encoder.in_step = ("text", "image")
    vectors = encoder(item_batch([post]))
    vectors.sum().backward()
    assert order == ["text", "image", "image back", "text back"]
    torch.testing.assert_close(vectors, expected)


class TestViews:
    def test_equal_the_item_with_one_modality_and_encode_nothing_again(self) -> None:
        encoder = item_encoder().double().eval()
        encoder(item_batch(POSTS))
        before = counted(encoder)
        encoded = encoder.encode(item_batch(POSTS), compare=("text", "image"), most_compared=100)
        views = encoded.views
        assert counted(encoder) == tuple(2 * count for count in before)
        torch.testing.assert_close(encoded.vectors, encoder(item_batch(POSTS)))
        both = [post for post in POSTS if post.caption and post.pictures]
        assert views.vectors["text"].shape == (len(both), DIM) == (4, DIM)
        captions = encoder(item_batch([Post(caption=post.caption) for post in both]))
        pictures = encoder(item_batch([Post(pictures=post.pictures) for post in both]))
        torch.testing.assert_close(views.vectors["text"], captions)
        torch.testing.assert_close(views.vectors["image"], pictures)
        # Posts 0 and 3 share the first caption; 4 and 7 share the picture 4, the last distinct one of 0, 1, 2, 3, 4.
        assert views.contents["text"].tolist() == [0, 0, 2, 3]
        assert views.contents["image"].tolist() == [0, 2, 4, 4]

    def test_limit(self) -> None:
        encoder = item_encoder()
        views = encoder.encode(item_batch(POSTS), compare=("image", "text"), most_compared=3).views
        assert [len(vectors) for vectors in views.vectors.values()] == [3, 3]

    def test_nobody_has_both(self) -> None:
        encoder = item_encoder()
        encoded = encoder.encode(item_batch([POSTS[1], POSTS[2]]), compare=("text", "image"), most_compared=3)
        assert encoded.views.vectors == {}

    def test_without_views_no_random_number_is_drawn(self) -> None:
        encoder, state = item_encoder(), torch.get_rng_state()
        assert encoder.encode(item_batch(POSTS)).views.vectors == {}
        assert torch.equal(torch.get_rng_state(), state)


class TestItemsAtOnce:
    """A batch of any size in the memory of a few items: nothing else changes."""

    @pytest.mark.parametrize("items_at_once", [1, 2, 3, 100])
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_equals_the_whole_batch_in_value_and_gradient(self, items_at_once: int, dropout: float) -> None:
        found = []
        for at_once in (0, items_at_once):
            torch.manual_seed(0)
            encoder = item_encoder(items_at_once=at_once, modality_dropout=dropout, id_dropout=dropout)
            encoder.double().train()
            torch.manual_seed(1)
            encoded = encoder.encode(item_batch(POSTS), compare=("text", "image"), most_compared=3)
            views = encoded.views
            outputs = [encoded.vectors, *views.vectors.values()]
            sum((output.cumsum(0).square().sum() for output in outputs), torch.zeros(())).backward()
            gradients = {name: p.grad for name, p in encoder.named_parameters()}
            found.append((outputs, list(views.contents.values()), gradients))
        (outputs, contents, gradients), (expected, expected_contents, expected_gradients) = found[1], found[0]
        for mine, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(mine, other)
        assert [rows.tolist() for rows in contents] == [rows.tolist() for rows in expected_contents]
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, msg=name)

    def test_dropout_is_the_same_when_a_slice_is_computed_again(self) -> None:
        # Linear in the table of ids: its gradient tells which channels were hidden when it was computed.
        encoder = item_encoder(items_at_once=2, feature_dropout=0.5).double().train()
        vectors = encoder(item_batch(POSTS))
        (first,) = torch.autograd.grad(vectors[0, 0], [encoder.assembler.null], retain_graph=True)  # type: ignore[union-attr]
        (again,) = torch.autograd.grad(vectors[0, 0], [encoder.assembler.null])  # type: ignore[union-attr]
        assert torch.equal(first, again)

    def test_activations_are_not_kept(self) -> None:
        def saved(at_once: int) -> int:
            encoder, sizes = item_encoder(items_at_once=at_once).train(), []

            def note(tensor: torch.Tensor) -> torch.Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                encoder(item_batch(POSTS * 20))
            return sum(sizes)

        assert saved(8) < saved(0) / 10

    def test_nothing_is_computed_twice_without_a_gradient(self) -> None:
        encoder = item_encoder(items_at_once=1).eval()
        with torch.no_grad():
            encoder(item_batch(POSTS))
        assert counted(encoder) == (4, 5)


def test_calibration_measures_every_modality_and_leaves_the_mode_alone() -> None:
    encoder = item_encoder().train()
    encoder.calibrate(item_batch(POSTS))
    assert encoder.training
    assert encoder.assembler is not None
    for name in ("text", "image"):
        assert encoder.assembler.projection(name).shift.any()
    saved = encoder.state_dict()
    other = item_encoder()
    other.load_state_dict(saved)
    torch.testing.assert_close(other.eval()(item_batch(POSTS)), encoder.eval()(item_batch(POSTS)))


def test_own_modules_are_enough_for_any_fusion() -> None:
    class FirstSummary(nn.Module):
        def forward(self, tokens):
            return tokens.summaries[:, 0]

    encoder = ItemEncoder(encoders={"text": TinyText()}, fusion=FirstSummary(), dim=DIM)
    randomise(encoder)
    assert encoder(item_batch([Post(caption=(1, 2)), Post()]))[1].tolist() == [0.0] * DIM
