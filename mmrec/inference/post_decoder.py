"""New posts decoded by several threads, on a GPU while others are encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from mmrec.ahead import ahead
from mmrec.errors import MmrecError
from mmrec.inference.posts import DecodedPost, Post, decode_post
from mmrec.process import usable_cores


class PostDecoder:
    """Decodes posts; one that cannot be read gives its error, and spoils no other.

    Args:
        side: longest side in pixels that pictures are shrunk to.
        max_images: pictures of one post that are used.
        ahead: decode the next posts while the caller is busy with some.  That pays where another device computes; threads
            that compute on the same cores wait for the slowest of them.
    """

    def __init__(self, *, side: int, max_images: int, ahead: bool) -> None:
        self._side, self._max_images, self._ahead = side, max_images, ahead

    def decode(self, posts: Sequence[Post], *, at_once: int) -> Iterator[list[DecodedPost | MmrecError]]:
        """Yield posts in the order given, so many at once; no more than three times that are held."""
        if len(posts) == 1:
            return iter([[self._decode(posts[0])]])
        groups = (
            list(self._threads.map(self._decode, posts[start : start + at_once]))
            for start in range(0, len(posts), at_once)
        )
        return ahead(groups, 1, name="mmrec-decode-ahead") if self._ahead else groups

    def _decode(self, post: Post) -> DecodedPost | MmrecError:
        try:
            return decode_post(post, side=self._side, max_images=self._max_images)
        except MmrecError as error:
            return error

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(usable_cores(), thread_name_prefix="mmrec-decode")
