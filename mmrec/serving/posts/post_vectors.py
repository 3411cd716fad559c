"""Vectors of posts by content: each distinct one decoded and encoded once, whoever asks, and then kept."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mmrec.errors import MmrecError, RequestError
from mmrec.inference.posts import DecodedPost, Post, attribute_texts
from mmrec.preprocessing.pictures import load_picture
from mmrec.serving.limits import Limits
from mmrec.serving.model.batcher import Until
from mmrec.serving.model.threads import Helpers
from mmrec.serving.problems import settled
from mmrec.serving.stores.store import Attribute
from mmrec.serving.trace import Trace
from mmrec.storage import content_hash

_SMALLEST_SIDE = 2
_LOG = logging.getLogger("mmrec.serving")


@dataclass(frozen=True)
class Content:
    """A post as a request carries it.

    Args:
        caption: its text, or None.
        pictures: encoded pictures.
        attributes: by name.
    """

    caption: str | None
    pictures: tuple[bytes, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash by which the same content is recognised."""
        texts = json.dumps(attribute_texts(self.attributes), sort_keys=True) if self.attributes else ""
        return content_hash(self.caption or "", *([texts] if texts else []), *self.pictures)


@dataclass(frozen=True)
class Encoded:
    """What became of a post.

    Args:
        vector: shape (width,), score-ready.
        present: the modalities that the model read.
        key: of the content.
    """

    vector: npt.NDArray[np.float32]
    present: tuple[str, ...]
    key: str


@dataclass
class _Claim:
    """A post that this caller is the first to ask for, and until when anybody waits for it."""

    content: Content
    key: str
    promise: Future[Encoded]
    until: float

    def end(self) -> float:
        """Return until when as it is now: others may come to wait for it, too."""
        return self.until


class _Readable(NamedTuple):
    """A decoded post, and the modalities that the model reads."""

    decoded: DecodedPost
    present: tuple[str, ...]


@runtime_checkable
class Submit(Protocol):
    """Takes decoded posts to the encoder."""

    def __call__(
        self, posts: Sequence[DecodedPost], *, until: Sequence[Until] | None = None
    ) -> Sequence[Future[npt.NDArray[np.float32]]]:
        """Return what will hold the vector of each."""


class PostVectors:
    """A cache of vectors in front of decoder and encoder.

    The pictures of a request are decoded beside each other, and encoded with those of other requests.

    Args:
        submit: encodes decoded posts, sooner or later; all or none of them, but for those whose time is over.
        readable: tells which modalities of a post the model reads.
        side: longest side in pixels that pictures are shrunk to, that of the prepared feed.
        max_images: pictures of a post that the model uses.
        limits: of the service.

    Attributes:
        hits: contents that were there, or already on their way.
        misses: contents that were not.
    """

    def __init__(
        self,
        submit: Submit,
        readable: Callable[[DecodedPost], tuple[str, ...]],
        *,
        side: int,
        max_images: int,
        limits: Limits,
    ) -> None:
        self._submit, self._readable, self._side, self._max_images = submit, readable, side, max_images
        self._limits, self._helpers = limits, Helpers()
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._coming: dict[str, _Claim] = {}
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def start(
        self, contents: Sequence[Content], *, check: Callable[[], object] = lambda: None, until: float = math.inf
    ) -> list[Future[Encoded]]:
        """Return what will hold the vector of each post, or the error that says why there is none.

        New ones are decoded by several threads, then sent to the encoder together: decoding one takes longer than the
        encoder waits for the next, which would each be encoded alone.

        Args:
            contents: posts; those that are equal are encoded once.
            check: called before each post is decoded; what it raises stops all.
            until: when the caller gives up, on the clock of ``time.monotonic``; what nobody waits for is not encoded.

        Raises:
            ProblemError: too much waits already.
        """
        claims: list[_Claim] = []
        # Before anything is claimed, which an error would leave without an end.
        keys = [content.key for content in contents]
        promises = [self._promise(content, key, claims, until) for content, key in zip(contents, keys, strict=True)]
        if not claims:
            return promises
        try:
            decoded = self._helpers.map(partial(self._decoded, check), claims)
            good = [(claim, post) for claim, post in zip(claims, decoded, strict=True) if isinstance(post, _Readable)]
            ends = [claim.end for claim, _ in good]
            encodings = self._submit([post.decoded for _, post in good], until=ends) if good else []
        except BaseException as error:
            # Others may wait for these promises, so they are kept whatever happened here.
            for claim in claims:
                self._settle(claim, error)
            raise
        for claim, outcome in zip(claims, decoded, strict=True):
            if not isinstance(outcome, _Readable):
                self._settle(claim, outcome)
        for (claim, post), encoding in zip(good, encodings, strict=True):
            encoding.add_done_callback(partial(self._finish, claim, post.present))
        return promises

    def encode(self, contents: Sequence[Content | MmrecError], trace: Trace) -> list[Encoded | MmrecError]:
        """Return what became of each post of a request.

        Args:
            contents: posts; one that could not be read keeps its error.
            trace: of the request.

        Raises:
            ProblemError: too much waits already, or there is no time left.
        """
        with trace.stage("decode"):
            good = [content for content in contents if isinstance(content, Content)]
            coming = iter(self.start(good, check=trace.left, until=trace.until))
        with trace.stage("encode"):
            encoded = [
                one if isinstance(one, MmrecError) else settled(partial(trace.wait, next(coming))) for one in contents
            ]
        trace.posts += [one.present for one in encoded if isinstance(one, Encoded)]
        return encoded

    def close(self) -> None:
        """Finish what is being decoded, then stop."""
        self._helpers.close()

    def _promise(self, content: Content, key: str, claims: list[_Claim], until: float) -> Future[Encoded]:
        """Return what will hold a post's vector; where nobody else has claimed it, claim it."""
        claim = _Claim(content, key, Future(), until)
        with self._lock:
            kept, coming = self._kept.get(key), self._coming.get(key)
            if kept is not None:
                self.hits += 1
                self._kept.move_to_end(key)
                claim.promise.set_result(kept)
            elif coming is not None:
                self.hits += 1
                coming.until = max(coming.until, until)
                return coming.promise
            else:
                self.misses += 1
                self._coming[key] = claim
                claims.append(claim)
        return claim.promise

    def _decoded(self, check: Callable[[], object], claim: _Claim) -> _Readable | Exception:
        """Decode a post, or return the error of one that cannot be read."""
        check()
        try:
            post = self.decode(claim.content)
            return _Readable(post, self._readable(post))
        except Exception as error:  # whatever is wrong with a post, it is told to those who asked for it
            return error

    def decode(self, content: Content) -> DecodedPost:
        """Check and decode a post.

        Raises:
            PictureError: a picture cannot be used.
            RequestError: nothing to read, a caption that is too long or no text.
        """
        if content.caption is not None and len(content.caption) > self._limits.caption_length:
            raise RequestError(
                f"a caption of at most {self._limits.caption_length} characters", got=str(len(content.caption))
            )
        # Refuses what is no post.
        Post(caption=content.caption, image=list(content.pictures) or None, attributes=content.attributes)
        used = content.pictures[: self._max_images]
        return DecodedPost(
            content.caption,
            tuple(self._picture(data) for data in used),
            # Of the file, which is a tenth of its pixels: the same picture in two files is encoded twice.
            tuple(content_hash(data) for data in used),
            content.key,
            attribute_texts(content.attributes),
        )

    def _picture(self, data: bytes) -> npt.NDArray[np.uint8]:
        picture = load_picture(data, side=self._side, max_pixels=self._limits.pixels)
        if max(picture.shape[:2]) < _SMALLEST_SIDE:
            raise RequestError("a picture of more than one pixel", got="1 x 1", fix="Leave the picture out.")
        return picture

    def _finish(self, claim: _Claim, present: tuple[str, ...], done: Future[npt.NDArray[np.float32]]) -> None:
        error = done.exception()
        if error is not None and not isinstance(error, MmrecError):
            _LOG.error("a post could not be encoded: %s", type(error).__name__)
            error = RequestError("a post that the model can encode", got=type(error).__name__, fix="Change the post.")
        if error is None and not np.isfinite(done.result()).all():
            error = RequestError("a vector of finite numbers", got="others", fix="Change the post.")
        self._settle(claim, error or Encoded(done.result(), present, claim.key))

    def _settle(self, claim: _Claim, outcome: Encoded | BaseException) -> None:
        with self._lock:
            self._coming.pop(claim.key, None)
            if isinstance(outcome, Encoded):
                self._kept[claim.key] = outcome
                while len(self._kept) > self._limits.cached_vectors:
                    self._kept.popitem(last=False)
        if isinstance(outcome, Encoded):
            claim.promise.set_result(outcome)
        else:
            claim.promise.set_exception(outcome)
