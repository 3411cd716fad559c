"""Late unimodal scores: shares of what a modality alone gives, in the one vector of an item."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrec.model.late import LateShares
from tests.model.samples import POSTS, Post, item_batch
from tests.model.test_recommender import history_batch, model_of


def test_only_what_is_chosen_counts_and_is_kept_with_the_weights() -> None:
    late = LateShares(("text", "image"))
    assert late.chosen() == {}
    late.set("image", 0.5)
    other = LateShares(("text", "image"))
    other.load_state_dict(late.state_dict())
    assert other.chosen() == {"image": 0.5}
    late.set("image", 0.0)
    assert late.chosen() == {}


def encoded(posts: list[Post], **shares: float) -> Tensor:
    torch.manual_seed(0)
    model = model_of().double().eval()
    for name, share in shares.items():
        model.late.set(name, share)
    return model.encode_items(item_batch(posts))


class TestVectors:
    def test_equal_the_mean_with_the_post_that_shows_one_modality_only(self) -> None:
        """The naive twin: each post is encoded again as one that has nothing else, its id included."""
        both = [post for post in POSTS if post.caption and post.pictures]
        assert len(both) > 2
        plain = encoded(both)
        text = encoded([replace(post, pictures=(), row=-1) for post in both])
        image = encoded([replace(post, caption=(), row=-1) for post in both])
        expected = plain + 0.3 * text + 0.2 * image
        expected[:, :-1] /= expected[:, :-1].norm(dim=1, keepdim=True)
        expected[:, -1] /= 1.5
        found = encoded(both, text=0.3, image=0.2)
        torch.testing.assert_close(found, expected)
        assert (found - plain).norm(dim=1).min() > 1e-3

    def test_what_is_absent_adds_nothing_of_its_own(self) -> None:
        posts = [Post(caption=(1, 2), row=3), Post(row=3), Post()]
        torch.testing.assert_close(encoded(posts, image=0.7), encoded(posts))

    def test_a_new_post_of_one_modality_stays_as_it_is(self) -> None:
        posts = [Post(caption=(1, 2)), Post(pictures=(0, 1))]
        torch.testing.assert_close(encoded(posts, text=0.3, image=0.3), encoded(posts))

    def test_in_company_and_alone_alike(self) -> None:
        together = encoded(list(POSTS), text=0.3, image=0.2)
        alone = torch.cat([encoded([post], text=0.3, image=0.2) for post in POSTS])
        torch.testing.assert_close(together, alone)

    def test_under_a_dot_product_they_are_plain_means(self) -> None:
        model = model_of(similarity="dot").double().eval()
        batch = item_batch(POSTS)
        plain, alone = model.encode_alone(batch, ("text",))
        model.late.set("text", 0.25)
        torch.testing.assert_close(model.with_late(plain, alone), (plain + 0.25 * alone["text"]) / 1.25)


def test_training_compares_vectors_without_them() -> None:
    model, batch = model_of().eval(), history_batch()
    before = model(batch).item_embeddings
    model.late.set("text", 0.5)
    assert torch.equal(model(batch).item_embeddings, before)
    assert torch.equal(model.encode_alone(batch.items)[0], before)
    assert not torch.allclose(model.encode_items(batch.items), before)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_nothing_is_encoded_twice(modality: str) -> None:
    model = model_of().eval()
    model.late.set(modality, 0.5)
    model.encode_items(item_batch(POSTS))
    encoders = model.item_encoder.encoders
    assert (encoders["text"].encoded, encoders["image"].encoded) == (4, 5)
