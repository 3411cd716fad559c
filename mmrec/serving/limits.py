"""What one request, and all of them together, may ask of the service."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec.preprocessing.pictures import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before the work that they bound is done.

    Args:
        body_bytes: longest body of a request; a longer one is refused before it is read whole.
        pixels: largest picture, read off its header before it is decoded; that of ``mmrec-data prepare``.
        pictures: pictures of one post.
        caption_length: characters of a caption, or of a text that is searched for.
        candidates: candidates of a request.
        history: entries of a history that a request brings along.
        excluded: items that a request wants left out.
        events: events of one call of feedback.
        users: users of one call that recommends to several.
        posts: posts of one call that takes several in, or embeds them.
        k: items of an answer.
        pool: candidates that freshness, diversity and weights of modalities put in order.
        requests: requests in work or waiting for it; one more gets 429.
        threads: requests in work.
        posts_waiting: posts that wait to be encoded.
        batch_posts: posts that are encoded together.
        batch_seconds: how long a post waits for others to be encoded with.
        cached_vectors: vectors of posts kept by content, the most recently used ones.
        request_seconds: how long a request may take, its body included.
    """

    body_bytes: int = 16 << 20
    pixels: int = MAX_PIXELS
    pictures: int = 8
    caption_length: int = 10_000
    candidates: int = 1000
    history: int = 1000
    excluded: int = 1000
    events: int = 1000
    users: int = 100
    posts: int = 256
    k: int = 500
    pool: int = 1000
    requests: int = 64
    threads: int = 16
    posts_waiting: int = 4096
    batch_posts: int = 64
    batch_seconds: float = 0.002
    cached_vectors: int = 100_000
    request_seconds: float = 30.0
