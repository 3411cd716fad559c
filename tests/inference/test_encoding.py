"""Running the model over a catalogue and over histories: order, batches, modes, and shared contents only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.feed.ids import Ids
from mmrec.feed.items import ItemReader, Modality
from mmrec.feed.splits import Split
from mmrec.inference.encoding import ModelScorer, catalogue_batches, encode_catalogue, encode_plain, evaluating
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.preprocessing.views import pixel_view, token_view
from tests.tiny_run import CAPTION_ONLY, NUM_ITEMS, PICTURE_ONLY, TWO_PICTURES, TinyFeed

CPU = torch.device("cpu")


class TestEvaluating:
    def test_no_dropout_no_gradient_and_the_mode_comes_back(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.9))
        with evaluating(model):
            assert not model.training
            assert not model(torch.ones(2, 3)).requires_grad
            torch.testing.assert_close(model(torch.ones(2, 3)), model(torch.ones(2, 3)))
        assert model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def test_after_an_error_too(self) -> None:
        model = torch.nn.Linear(3, 3).eval()
        with pytest.raises(KeyError), evaluating(model):
            raise KeyError
        assert not model.training
        assert not torch.is_inference_mode_enabled()


class TestCatalogue:
    def test_rows_come_back_in_the_order_asked(self, recommender: Recommender) -> None:
        assembly = recommender.assembly
        every = encode_catalogue(assembly.model, assembly.reader, assembly.all_rows, device=CPU)
        rows = np.array([29, 3, 3, 0, 17])
        done: list[int] = []
        some = encode_catalogue(assembly.model, assembly.reader, rows, device=CPU, batch_items=2, progress=done.append)
        torch.testing.assert_close(some, every[rows], atol=1e-5, rtol=0)
        assert done == [2, 2, 1]
        none = encode_catalogue(assembly.model, assembly.reader, rows[:0], device=CPU)
        assert none.shape == (0, every.shape[1])

    def test_items_that_share_a_caption_are_neighbours(self, recommender: Recommender) -> None:
        assembly = recommender.assembly
        batches = list(catalogue_batches(assembly.reader, assembly.all_rows, batch_items=4))
        assert sorted(np.concatenate([index for index, _ in batches]).tolist()) == list(range(NUM_ITEMS))
        captions = sum(len(batch.parts["text"].content) for _, batch in batches if "text" in batch.parts)
        assert captions == len(assembly.catalogue.captions) < NUM_ITEMS - 1

    def test_live_encoders_see_each_content_once(self, recommender: Recommender) -> None:
        assembly = recommender.assembly
        encoders = {name: assembly.encoders[name].module for name in ("text", "image")}
        text, image = encoders["text"], encoders["image"]
        assert isinstance(text, TextEncoder)
        assert isinstance(image, ImageEncoder)
        words, pixels = assembly.words, assembly.pixels
        assert words is not None
        assert pixels is not None
        catalogue = assembly.catalogue
        sources = {"text": token_view(catalogue, words), "image": pixel_view(catalogue, pixels)}
        modalities = dict(assembly.reader.modalities)
        for name, encoder in (("text", text), ("image", image)):
            live = LiveTrunk(encoder, sources[name], assembly.config.train.trunk_dtype, CPU)
            modalities[name] = Modality(modalities[name].links, live)
        before = text.work.encoded, image.work.encoded
        found = encode_catalogue(assembly.model, ItemReader(modalities), assembly.all_rows, device=CPU)
        after = text.work.encoded, image.work.encoded
        assert (after[0] - before[0], after[1] - before[1]) == (len(catalogue.captions), len(catalogue.pictures))
        np.testing.assert_allclose(found.numpy(), recommender.item_embeddings(), atol=1e-5)


class TestCases:
    def test_scores_of_cases_are_those_of_their_histories(self, recommender: Recommender, tiny_feed: TinyFeed) -> None:
        assembly = recommender.assembly
        split = Split.load(tiny_feed.prepared)
        scorer = ModelScorer(
            assembly.model,
            recommender.catalogue_tensor,
            assembly.histories,
            split.test,
            history_length=assembly.config.train.history_length,
            device=CPU,
        )
        chosen = np.array([5, 2])
        scores = scorer.scores(chosen)
        events = split.test.take(chosen).histories(assembly.histories)
        items = [f"p{row:02}" for row in range(NUM_ITEMS)]
        for row, case in enumerate(range(len(chosen))):
            history = recommender.vectors.ids(assembly.histories.item_rows[events[case]])
            (expected,) = recommender.scoring.score([Request("x", items, history=history)])
            np.testing.assert_allclose(scores[row], expected.scores, atol=1e-4)

    def test_a_trend_added_to_scores_is_the_one_in_the_vectors(
        self, recommender: Recommender, tiny_feed: TinyFeed
    ) -> None:
        assembly, split = recommender.assembly, Split.load(tiny_feed.prepared)
        trends = torch.linspace(-1, 1, NUM_ITEMS)

        def scores(vectors: Tensor, trends: Tensor | None) -> Tensor:
            length = assembly.config.train.history_length
            scorer = ModelScorer(
                assembly.model,
                vectors,
                assembly.histories,
                split.test,
                history_length=length,
                device=CPU,
                signals=None if trends is None else torch.stack([trends, trends * 0], dim=1),
            )
            return scorer.scores(np.array([5, 2]))

        plain, weight = recommender.catalogue_tensor, assembly.model.scorer.trend_weight
        weight.fill_(0.5)
        try:
            risen = assembly.model.scorer.calibrated(plain, torch.stack([trends, trends * 0], dim=1))
            torch.testing.assert_close(scores(plain, trends), scores(risen, None))
            torch.testing.assert_close(scores(risen, None) - scores(plain, None), (0.5 * trends).expand(2, -1))
        finally:
            weight.zero_()

    def test_shares_are_followed_and_histories_read_again(self, recommender: Recommender, tiny_feed: TinyFeed) -> None:
        assembly, split, asked = recommender.assembly, Split.load(tiny_feed.prepared), np.array([5, 2])

        def scorer(vectors: Tensor, alone: dict[str, Tensor] | None) -> ModelScorer:
            length = assembly.config.train.history_length
            return ModelScorer(
                assembly.model, vectors, assembly.histories, split.test, history_length=length, device=CPU, alone=alone
            )

        def encoded() -> Tensor:
            return encode_catalogue(assembly.model, assembly.reader, assembly.all_rows, device=CPU)

        plain, alone = encode_plain(
            assembly.model, assembly.reader, assembly.all_rows, device=CPU, modalities=("text", "image")
        )
        following, before = scorer(plain, alone), encoded()
        first = following.scores(asked)
        torch.testing.assert_close(first, scorer(before, None).scores(asked))
        try:
            assembly.model.late.set("text", 0.5)
            assert not torch.allclose(encoded(), before)
            torch.testing.assert_close(following.scores(asked), scorer(encoded(), None).scores(asked))
        finally:
            assembly.model.late.set("text", 0.0)
        torch.testing.assert_close(following.scores(asked), first)


def test_items_have_the_modalities_they_show(recommender: Recommender) -> None:
    present = recommender.vectors.present
    assert present(int(CAPTION_ONLY[1:])) == ("text", "item_id")
    assert present(int(PICTURE_ONLY[1:])) == ("image", "item_id")
    assert present(int(TWO_PICTURES[1:])) == ("text", "image", "item_id")


def test_ids_that_training_never_saw_have_no_vector(recommender: Recommender) -> None:
    ids = Ids(np.array(["p02", "gone", "p00"], dtype=object), np.array([5, 9, 0]), np.zeros(3, np.float32))
    rows = ids.rows(recommender.assembly.catalogue)
    assert rows[2] == 0
    assert (rows[[0, 1, *range(3, NUM_ITEMS)]] == -1).all()
