"""Posts decoded by several threads: in order, each its own error, never more at once than are held."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mmrec import Post
from mmrec.errors import MmrecError
from mmrec.inference import post_decoder as module
from mmrec.inference.post_decoder import PostDecoder
from mmrec.inference.posts import DecodedPost, decode_post


def picture(shade: int) -> Post:
    return Post(f"number {shade}", np.full((4, 6, 3), shade, np.uint8))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
def test_order_and_groups(count: int, ahead: bool) -> None:
    posts = [picture(shade) for shade in range(count)]
    groups = list(PostDecoder(side=3, max_images=1, ahead=ahead).decode(posts, at_once=3))
    assert [len(group) for group in groups] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)
    found = [post for group in groups for post in group if isinstance(post, DecodedPost)]
    assert [post.key for post in found] == [decode_post(post, side=3, max_images=1).key for post in posts]


@pytest.mark.parametrize("count", [1, 3])
def test_a_bad_one_gives_its_error(count: int) -> None:
    posts = [picture(0), Post("cut", b"\x89PNG"), picture(2)]
    bad = posts[1:2] if count == 1 else posts
    (group,) = PostDecoder(side=3, max_images=1, ahead=False).decode(bad, at_once=8)
    assert [isinstance(post, MmrecError) for post in group] == ([True] if count == 1 else [False, True, False])


@pytest.mark.parametrize(("ahead", "begun"), [(False, 2), (True, 6)])
def test_further_groups_are_begun_only_where_asked(ahead: bool, begun: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started, lock = [], threading.Semaphore(0)

    def count(post: Post, **settings: int) -> DecodedPost:
        started.append(post.caption)
        lock.release()
        return decode_post(post, **settings)

    monkeypatch.setattr(module, "decode_post", count)
    groups = PostDecoder(side=3, max_images=1, ahead=ahead).decode([picture(shade) for shade in range(12)], at_once=2)
    next(groups)
    for _ in range(begun):
        assert lock.acquire(timeout=60)
    assert len(started) == begun
    assert sum(len(group) for group in groups) == 10
    assert len(started) == 12


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(post: Post, **settings: int) -> DecodedPost:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "decode_post", fail)
    with pytest.raises(ZeroDivisionError):
        list(PostDecoder(side=3, max_images=1, ahead=True).decode([picture(0), picture(1)], at_once=1))
