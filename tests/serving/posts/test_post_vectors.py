"""Posts that are gathered go to the encoder together, each distinct one once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import pytest

from mmrec.errors import RequestError
from mmrec.inference.posts import DecodedPost, Post, decode_post
from mmrec.preprocessing.pictures import PictureError
from mmrec.search.index import Vectors
from mmrec.serving.limits import Limits
from mmrec.serving.model.batcher import Until
from mmrec.serving.posts.post_vectors import Content, Encoded, PostVectors
from mmrec.serving.problems import ProblemError
from mmrec.serving.trace import Trace
from tests.serving.served import picture


class Encoder:
    """Gives each caption its length; what it was sent is kept."""

    def __init__(self) -> None:
        self.sent: list[list[str | None]] = []
        self.full = False
        self.held: list[Until] | None = None

    def __call__(self, posts: Sequence[DecodedPost], *, until: Sequence[Until] | None = None) -> list[Future[Vectors]]:
        if self.full:
            raise ProblemError(429, "room", got="none")
        if self.held is not None:
            self.held += until or []
            return [Future() for _ in posts]
        self.sent.append([post.caption for post in posts])
        futures: list[Future[Vectors]] = [Future() for _ in posts]
        for post, future in zip(posts, futures, strict=True):
            future.set_result(np.full(1, len(post.caption or ""), np.float32))
        return futures


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def vectors_of(encoder: Encoder) -> PostVectors:
    return PostVectors(encoder, lambda post: ("text",), side=8, max_images=1, limits=Limits(caption_length=9))


@pytest.fixture
def posts(encoder: Encoder) -> Iterator[PostVectors]:
    with closing(vectors_of(encoder)) as posts:
        yield posts


def words(caption: str) -> Content:
    return Content(caption, ())


def test_posts_are_sent_together_each_once(encoder: Encoder, posts: PostVectors) -> None:
    coming = posts.start([words(caption) for caption in ("a", "bb", "a", "too long a one", "ccc")])
    assert encoder.sent == [["a", "bb", "ccc"]]
    assert [float(coming[place].result(0).vector[0]) for place in (0, 1, 2, 4)] == [1, 2, 1, 3]
    with pytest.raises(RequestError, match="at most 9"):
        coming[3].result(0)
    assert float(posts.start([words("bb")])[0].result(0).vector[0]) == 2
    assert len(encoder.sent) == 1
    assert (posts.hits, posts.misses) == (2, 4)


def test_a_post_that_cannot_be_read_spoils_no_other(encoder: Encoder, posts: PostVectors) -> None:
    none, damaged = RequestError("a post", got="none"), Content(None, (b"no picture",))
    read, other, good = posts.encode([none, damaged, words("ccc")], Trace("score", seconds=5.0))
    assert read is none
    assert isinstance(other, PictureError)
    assert isinstance(good, Encoded)
    assert encoder.sent == [["ccc"]]


def test_a_post_is_wanted_as_long_as_anybody_waits_for_it(encoder: Encoder, posts: PostVectors) -> None:
    encoder.held = []
    (first,) = posts.start([words("a")], until=5.0)
    assert [until() for until in encoder.held] == [5.0]
    assert posts.start([words("a")], until=9.0) == posts.start([words("a")], until=7.0) == [first]
    assert [until() for until in encoder.held] == [9.0]
    posts.start([words("bb")])
    assert [until() for until in encoder.held] == [9.0, math.inf]


def test_pictures_of_a_request_are_decoded_beside_each_other(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrec.serving.model.threads._ALL", 2)
    with closing(vectors_of(encoder)) as posts:
        both, decode = threading.Barrier(2), posts.decode

        def meet(content: Content) -> DecodedPost:
            both.wait(10)
            return decode(content)

        monkeypatch.setattr(posts, "decode", meet)
        coming = posts.start([words("a"), words("bb")])
        assert [float(future.result(10).vector[0]) for future in coming] == [1, 2]


def test_a_post_is_decoded_as_anywhere_else(posts: PostVectors) -> None:
    first, second = picture(1), picture(2)
    found = posts.decode(Content("words", (first, second)))
    expected = decode_post(Post("words", [first, second]), side=8, max_images=1)
    assert (found.caption, found.attributes, found.present) == ("words", {}, ("text", "image"))
    for ours, theirs in zip(found.pictures, expected.pictures, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_pictures_of_a_batch_are_told_apart_by_their_files(posts: PostVectors) -> None:
    same, other = picture(1), picture(2)
    keys = [
        posts.decode(Content(caption, (data,))).picture_keys
        for caption, data in (("a", same), ("b", same), ("a", other))
    ]
    assert keys[0] == keys[1] != keys[2]
    assert all(len(key) == 1 for key in keys)


def test_who_waits_for_posts_that_are_not_sent_is_told(encoder: Encoder, posts: PostVectors) -> None:
    waiting: list[Future[Encoded]] = []

    def gather(stop: Exception | None) -> None:
        def check() -> None:
            waiting[:] = posts.start([words("a")])
            if stop:
                raise stop

        waiting[:] = posts.start([words("a")], check=check)

    with pytest.raises(KeyError):
        gather(KeyError("stop"))
    assert isinstance(waiting[0].exception(0), KeyError)
    encoder.full = True
    with pytest.raises(ProblemError):
        gather(None)
    assert isinstance(waiting[0].exception(0), ProblemError)
    encoder.full = False
    gather(None)
    assert encoder.sent == [["a"]]
