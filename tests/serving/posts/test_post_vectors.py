"""Posts that are gathered go to the encoder together, each distinct one once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from mmrec.errors import RequestError
from mmrec.inference.posts import DecodedPost
from mmrec.search.index import Vectors
from mmrec.serving.limits import Limits
from mmrec.serving.posts.post_vectors import Content, PostVectors
from mmrec.serving.problems import ProblemError


class Encoder:
    """Gives each caption its length; what it was sent is kept."""

    def __init__(self) -> None:
        self.sent: list[list[str | None]] = []
        self.full = False

    def __call__(self, posts: Sequence[DecodedPost]) -> list[Future[Vectors]]:
        if self.full:
            raise ProblemError(429, "room", got="none")
        self.sent.append([post.caption for post in posts])
        futures: list[Future[Vectors]] = [Future() for _ in posts]
        for post, future in zip(posts, futures, strict=True):
            future.set_result(np.full(1, len(post.caption or ""), np.float32))
        return futures


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def posts(encoder: Encoder) -> PostVectors:
    return PostVectors(encoder, lambda post: ("text",), side=8, max_images=1, limits=Limits(caption_length=9))


def words(caption: str) -> Content:
    return Content(caption, ())


def test_gathered_posts_are_sent_together_each_once(encoder: Encoder, posts: PostVectors) -> None:
    with posts.together() as start:
        coming = [start(words(caption)) for caption in ("a", "bb", "a", "too long a one", "ccc")]
        assert encoder.sent == []
    assert encoder.sent == [["a", "bb", "ccc"]]
    assert [float(coming[place].result(0).vector[0]) for place in (0, 1, 2, 4)] == [1, 2, 1, 3]
    with pytest.raises(RequestError, match="at most 9"):
        coming[3].result(0)
    assert float(posts.start(words("bb")).result(0).vector[0]) == 2
    assert len(encoder.sent) == 1
    assert (posts.hits, posts.misses) == (2, 4)


def test_who_waits_for_posts_that_are_not_sent_is_told(encoder: Encoder, posts: PostVectors) -> None:
    waiting: list[Future[object]] = []

    def gather(stop: Exception | None) -> None:
        with posts.together() as start:
            first = start(words("a"))
            waiting[:] = [first, posts.start(words("a"))]  # type: ignore[list-item]
            if stop:
                raise stop

    with pytest.raises(KeyError):
        gather(KeyError("stop"))
    assert all(isinstance(future.exception(0), KeyError) for future in waiting)
    encoder.full = True
    with pytest.raises(ProblemError):
        gather(None)
    assert all(isinstance(future.exception(0), ProblemError) for future in waiting)
    encoder.full = False
    gather(None)
    assert encoder.sent == [["a"]]
