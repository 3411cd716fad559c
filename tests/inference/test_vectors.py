"""Vectors of whatever is named: each distinct post encoded once, kept a while, and never spoilt by a neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrec import Post
from mmrec.commands.train import train_run
from mmrec.config import validate
from mmrec.contents import Content, ImageContent, TextContent
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.errors import ArtifactError
from mmrec.inference import vectors as module
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.posts import decode_post, source_key
from mmrec.inference.recommender import Recommender
from mmrec.inference.references import Unusable
from mmrec.inference.vectors import ItemVectors
from tests.tiny_run import PICTURE_ONLY, SIDE, TWO_PICTURES, TinyEncoders, TinyFeed, changed, draw, tiny_config


@pytest.fixture
def resolver(recommender: Recommender) -> ItemVectors:
    """Nothing kept, no table of the catalogue."""
    assembly = recommender.assembly
    return ItemVectors(
        assembly.model,
        assembly.catalogue,
        assembly.reader,
        words=assembly.words,
        pixels=assembly.pixels,
        trunks=assembly.trunks,
        picture_side=SIDE,
        max_images=4,
        device=assembly.device,
        keep=4,
    )


def contents(recommender: Recommender) -> tuple[int, int]:
    """How many captions and pictures have gone through the encoders."""
    text, image = (recommender.assembly.encoders[name].module for name in ("text", "image"))
    assert isinstance(text, TextEncoder)
    assert isinstance(image, ImageEncoder)
    return text.work.encoded, image.work.encoded


class Made(Sequence[str]):
    """Ids that are made whenever one is asked for, as those of an array are."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return f"p{self.numbers[index]:02d}"


class TestOnce:
    def test_each_distinct_post_once(self, resolver: ItemVectors, tiny_feed: TinyFeed) -> None:
        path = tiny_feed.image("p01")
        posts = [Post("red", path), Post("red", path.read_bytes(), name="twin"), Post("blue"), Post("red")]
        found = resolver.resolve([*posts, posts[0], "p01", "p01"])
        assert resolver.num_encoded == 3 + 1
        assert [entry.position for entry in found.references] == [1, 1, 2, 3, 1, 0, 0]
        assert len(found.vectors) == 4
        resolver.resolve(posts)
        assert resolver.num_encoded == 4, "kept from the call before"

    def test_each_distinct_caption_and_picture_once(
        self, resolver: ItemVectors, recommender: Recommender, tiny_feed: TinyFeed
    ) -> None:
        one, other = tiny_feed.image("p01").read_bytes(), tiny_feed.image("p02").read_bytes()
        before = contents(recommender)
        posts = [Post("red", one), Post("red", other), Post("red", [one, other]), Post("blue", one)]
        resolver.resolve(posts)
        after = contents(recommender)
        assert resolver.num_encoded == 4
        assert (after[0] - before[0], after[1] - before[1]) == (2, 2)

    def test_the_least_recently_used_are_forgotten(self, resolver: ItemVectors) -> None:
        def encoded(*captions: str) -> int:
            before = resolver.num_encoded
            resolver.resolve([Post(caption) for caption in captions])
            return resolver.num_encoded - before

        assert encoded("red", "blue", "green", "wool") == 4
        assert encoded("red") == 0
        assert encoded("silk") == 1
        assert encoded("green", "wool", "red", "silk") == 0, "blue was the one to go"
        assert encoded("blue") == 1

    def test_more_than_is_kept_in_one_call(self, resolver: ItemVectors) -> None:
        words = ["red", "blue", "green", "wool", "silk", "scarf"]
        first = resolver.resolve([*map(Post, words), "p01", "p02", "p03"])
        assert resolver.num_encoded == 9
        assert [entry.error_message for entry in first.references] == [None] * 9
        again = resolver.resolve([*map(Post, words), "p01", "p02", "p03"])
        torch.testing.assert_close(
            again.vectors[[e.position for e in again.references]], first.vectors[[e.position for e in first.references]]
        )

    def test_many_posts_go_through_in_pieces(
        self, resolver: ItemVectors, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        posts = [Post(f"{a} {b}") for a in ("red", "blue", "green") for b in ("wool", "silk", "scarf", "dress")]
        whole = recommender.vectors.resolve(posts).vectors
        sizes = []
        batch = resolver.batch
        monkeypatch.setattr(module, "_AT_ONCE", 5)
        monkeypatch.setattr(resolver, "batch", lambda part: sizes.append(len(part)) or batch(part))
        torch.testing.assert_close(resolver.resolve(posts).vectors, whole, atol=1e-5, rtol=0)
        assert sizes == [5, 5, 2]

    def test_a_picture_that_was_met_is_decoded_once(
        self, resolver: ItemVectors, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded: list[str | None] = []

        def count(post: Post, **settings: int) -> object:
            decoded.append(post.name)
            return decode_post(post, **settings)

        monkeypatch.setattr("mmrec.inference.post_decoder.decode_post", count)
        path = tmp_path / "a.png"
        path.write_bytes(tiny_feed.image("p01").read_bytes())
        data = tiny_feed.image("p05").read_bytes()
        first = resolver.resolve([Post("red", path, name="a"), Post("red", path), Post("red", data, name="b")])
        again = resolver.resolve([Post("red", str(path)), Post("red", bytes(bytearray(data)))])
        assert decoded == ["a", "b"]
        assert [entry.present for entry in again.references] == [("text", "image")] * 2
        torch.testing.assert_close(again.vectors, first.vectors)
        path.write_bytes(tiny_feed.image("p09").read_bytes())
        changed_file = resolver.resolve([Post("red", path, name="c"), Post("blue", data, name="d")])
        assert decoded == ["a", "b", "c", "d"]
        assert resolver.num_encoded == 4
        assert not torch.allclose(changed_file.vectors[0], first.vectors[0])
        resolver.resolve([Post(word, name=word) for word in ("wool", "silk", "scarf", "dress")])
        resolver.resolve([Post("red", data, name="b")])
        assert decoded[-1] == "b", "its vector is forgotten"
        assert resolver.num_encoded == 9

    def test_posts_of_the_call_before_are_known_without_a_hash(
        self, resolver: ItemVectors, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hashed: list[str | None] = []

        def count(post: Post, *, max_images: int) -> str | None:
            hashed.append(post.name)
            return source_key(post, max_images=max_images)

        monkeypatch.setattr(module, "source_key", count)
        path, data = tmp_path / "a.png", tiny_feed.image("p05").read_bytes()
        path.write_bytes(tiny_feed.image("p01").read_bytes())

        def posts(*names: str) -> list[Post]:
            every = {
                "words": Post("red", name="words"),
                "twin": Post("red", name="twin"),
                "bytes": Post("red", bytes(bytearray(data)), name="bytes"),
                "file": Post("red", path, name="file"),
                "bad": Post("red", data[:60], name="bad"),
                "tagged": Post("red", name="tagged", attributes={"colour": ""}),
            }
            return [every[name] for name in names]

        first = resolver.resolve(posts("words", "twin", "bytes", "file", "bad", "tagged"))
        assert hashed == ["words", "bytes", "file", "bad", "tagged"]
        assert [entry.position for entry in first.references] == [0, 0, 1, 2, -1, 0]
        hashed.clear()
        again = resolver.resolve(posts("bytes", "words", "bad", "file", "twin"))
        assert hashed == ["bad", "file"], "a bad one is looked at again, a file may have changed"
        assert resolver.num_encoded == 3
        for old, new in ((0, 1), (2, 0), (3, 3), (5, 4)):
            assert first.references[old].key == again.references[new].key
        torch.testing.assert_close(again.vectors[again.positions[[1, 0, 3]]], first.vectors[[0, 1, 2]], rtol=0, atol=0)
        resolver.resolve([])
        resolver.resolve(["p01"])
        hashed.clear()
        resolver.resolve(posts("words"))
        assert hashed == [], "calls without posts between do not count"
        resolver.resolve([Post(word) for word in ("wool", "silk", "scarf", "dress")])
        resolver.resolve(posts("words"))
        assert hashed[-1:] == ["words"]
        assert resolver.num_encoded == 3 + 1 + 4 + 1, "its vector was forgotten"

    def test_one_file_by_several_names(self, resolver: ItemVectors, tiny_feed: TinyFeed) -> None:
        """Posts that differ as they are written, and only their hashes tell that they are one."""
        path = tiny_feed.image("p01")
        posts = [Post("red", image) for image in (str(path), path, path, [path], [str(path)], path)]
        assert resolver.resolve(posts).positions.tolist() == [0] * 6
        assert resolver.num_encoded == 1

    def test_large_pictures_are_not_kept_to_be_compared(
        self, resolver: ItemVectors, tiny_feed: TinyFeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hashed = []
        monkeypatch.setattr(
            module, "source_key", lambda post, **settings: hashed.append(post.name) or source_key(post, **settings)
        )
        small, large = sorted((tiny_feed.image(name).read_bytes() for name in ("p01", "p05")), key=len)
        monkeypatch.setattr(module, "_LAST_BYTES", len(small))
        posts = [Post("red", large, name="large"), Post("red", small, name="small"), Post("blue", name="words")]
        resolver.resolve(posts)
        hashed.clear()
        assert resolver.resolve(posts).positions.tolist() == [0, 1, 2]
        assert hashed == ["large"]

    def test_any_sequence_of_references(self, resolver: ItemVectors) -> None:
        """Which object stands for what must not depend on how long the objects live."""
        assert resolver.resolve(Made([1, 2, 1, 3, 2])).positions.tolist() == [0, 1, 0, 2, 1]


class TestBadOnes:
    def test_errors_stay_with_their_reference(self, resolver: ItemVectors, tiny_feed: TinyFeed) -> None:
        good = resolver.resolve(["p01", Post("red")]).vectors
        cut = tiny_feed.image("p01").read_bytes()[:60]
        found = resolver.resolve(
            [Post("x", cut), "p01", "pp01", Unusable("u", "no good"), Post("red"), Post("y", Path("no.png"))]
        )
        messages = [entry.error_message for entry in found.references]
        assert [message is None for message in messages] == [False, True, False, False, True, False]
        assert "picture" in str(messages[0])
        assert "did you mean" in str(messages[2])
        assert "'p01'" in str(messages[2])
        assert messages[3] == "no good"
        assert "no.png" in str(messages[5])
        assert [entry.position for entry in found.references] == [-1, 0, -1, -1, 1, -1]
        torch.testing.assert_close(found.vectors, good, atol=1e-6, rtol=0)

    def test_nothing_but_errors(self, resolver: ItemVectors) -> None:
        found = resolver.resolve(["nobody"])
        assert found.vectors.shape == (0, resolver.resolve(["p01"]).vectors.shape[1])
        assert len(resolver.resolve([]).references) == 0

    def test_a_post_that_fails_in_the_encoder_spoils_no_other(
        self, resolver: ItemVectors, tiny_feed: TinyFeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = LiveTrunk.run

        def overflow(self: LiveTrunk, content: Content) -> object:
            if isinstance(content, ImageContent) and bool((content.pixels == 0).all(dim=(1, 2, 3)).any()):
                raise ArtifactError("trunk states that fit float16")
            return run(self, content)

        monkeypatch.setattr(LiveTrunk, "run", overflow)
        black = Post("black", np.zeros((SIDE, SIDE, 3), np.uint8))
        fine = [Post("red", tiny_feed.image("p01")), Post("blue")]
        found = resolver.resolve([fine[0], black, fine[1]])
        assert [entry.error_message is None for entry in found.references] == [True, False, True]
        assert "float16" in str(found.references[1].error_message)
        assert len(found.vectors) == 2


class TestPresent:
    def test_of_items_and_posts(self, resolver: ItemVectors, tiny_feed: TinyFeed) -> None:
        named = ["p01", PICTURE_ONLY, TWO_PICTURES, Post("red"), Post(image=tiny_feed.image("p01")), Post("a", draw(1))]
        assert [entry.present for entry in resolver.resolve(named).references] == [
            ("text", "image", "item_id"),
            ("image", "item_id"),
            ("text", "image", "item_id"),
            ("text",),
            ("image",),
            ("text", "image"),
        ]


class TestModelsThatReadLess:
    @pytest.fixture(scope="class")
    def runs(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Recommender]:
        root = tmp_path_factory.mktemp("less")
        whole = tiny_config(tiny_encoders).model_dump(mode="json")
        made = {}
        for kept in ("text", "image", "item_id"):
            config = validate(whole | {"encoders": {kept: whole["encoders"][kept]}}, where="test")
            train_run(changed(config, train={"epochs": 1}), feed=tiny_feed.prepared, out=root / kept, device="cpu")
            made[kept] = Recommender.load(root / kept, device="cpu")
        return made

    def test_a_post_they_cannot_read_is_refused_not_guessed(self, runs: dict[str, Recommender]) -> None:
        caption, picture = Post("red scarf"), Post(image=draw(4))
        messages = {
            name: [entry.error_message for entry in made.vectors.resolve([caption, picture, "p01"]).references]
            for name, made in runs.items()
        }
        assert messages["text"][0] is None
        assert "a post with text, got a new post with image" in str(messages["text"][1])
        assert "a post with image, got a new post with text" in str(messages["image"][0])
        assert messages["image"][1] is None
        assert all("ids alone" in str(message) for message in messages["item_id"][:2])
        assert [found[2] for found in messages.values()] == [None] * 3

    def test_what_they_do_not_read_does_not_count(self, runs: dict[str, Recommender]) -> None:
        both = Post("red scarf", draw(4))
        for name in ("text", "image"):
            (entry,) = runs[name].vectors.resolve([both]).references
            assert entry.present == (name,)
        bare = runs["text"].embed([both, Post("red scarf")])
        np.testing.assert_allclose(bare[0], bare[1], atol=1e-6)


def test_contents_of_a_batch_keep_their_owners(recommender: Recommender) -> None:
    posts = [Post("red"), Post(image=[draw(1), draw(2)]), Post("red", draw(2))]
    batch = recommender.vectors.batch([decode_post(post, side=SIDE, max_images=4) for post in posts])
    assert (batch.parts["text"].item_index.tolist(), batch.parts["text"].content_index.tolist()) == ([0, 2], [0, 0])
    assert batch.parts["image"].item_index.tolist() == [1, 1, 2]
    assert batch.parts["image"].content_index.tolist() == [0, 1, 1]
    assert len(batch.parts["image"].content) == 2
    assert not isinstance(batch.parts["text"].content, TextContent), "the trunk has run"
