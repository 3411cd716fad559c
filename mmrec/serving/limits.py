"""What one request, and all of them together, may ask of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from mmrec.preprocessing.pictures import MAX_PIXELS

Count = Annotated[int, Field(gt=0, strict=True)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        rate: requests a second of one key, where its entry in the file of keys says nothing else; 0: any number.  Every
            process counts for itself.
        burst: requests of a key that may come at once before ``rate`` holds.
        loopback_rate: requests a second of all callers without a key together, where none is needed; 0: any number.
        posts_waiting: posts that wait to be encoded; a request that brings more than there is room for is refused.
        batch_posts: posts that are encoded together.
        batch_tokens: tokens of text (one a character, of a caption at most as many as the model reads), patches of
            pictures and entries of histories that are encoded together; a job that has more is encoded alone.
        batch_seconds: how long a post waits for others to be encoded with.
        cached_vectors: vectors of posts kept by content, the most recently used ones.
        request_seconds: how long a request may take, its body included.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    body_bytes: Count = 16 << 20
    pixels: Count = MAX_PIXELS
    pictures: Count = 8
    caption_length: Count = 10_000
    candidates: Count = 1000
    history: Count = 1000
    excluded: Count = 1000
    events: Count = 1000
    users: Count = 100
    posts: Count = 256
    k: Count = 500
    pool: Count = 1000
    requests: Count = 64
    threads: Count = 32
    rate: Rate = 0.0
    burst: Count = 20
    loopback_rate: Rate = 0.0
    posts_waiting: Count = 4096
    batch_posts: Count = 64
    batch_tokens: Count = 32_768
    batch_seconds: Rate = 0.002
    cached_vectors: Count = 100_000
    request_seconds: Annotated[float, Field(gt=0)] = 30.0
