"""Vectors of whatever a request names: items of the catalogue and posts that are not in it, each encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.batch import ItemBatch
from mmrec.errors import MmrecError, RequestError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.items import ItemReader
from mmrec.inference.encoding import encode_catalogue, evaluating
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.post_contents import PostContents
from mmrec.inference.post_decoder import PostDecoder
from mmrec.inference.posts import DecodedPost, Post, source_key
from mmrec.inference.references import Reference, Resolved, ResolvedVectors, Unusable
from mmrec.model.recommender import RecommenderModel
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor

_AT_ONCE = 256
"""Posts decoded and encoded together; bounds memory."""

_LAST_BYTES = 1 << 26
"""Encoded pictures that are kept to be compared with those of the next call."""

_HINTS = 20
"""Unknown ids of one call that are told their near names, which takes milliseconds."""


class _Entry(NamedTuple):
    """By which key a vector is found, and which modalities it comes from."""

    key: str
    present: tuple[str, ...]


@dataclass
class _Asked:
    """What one call asks for.

    Args:
        entries: by identity of the reference.
        first: identity of the first post of a content, by what tells equal ones: caption and encoded picture, or hash.
        again: identity of a post to that of the first one of its content.
        unread: posts that are still to be decoded, by identity, and the hash of what each is made of.
        rows: key to row, of items of the catalogue.
        posts: keys of new posts, in order.
        errors: key to reason, of what has no vector.
    """

    entries: dict[int, _Entry] = field(default_factory=dict)
    first: dict[object, int] = field(default_factory=dict)
    again: dict[int, int] = field(default_factory=dict)
    unread: dict[int, tuple[Post, str | None]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    posts: dict[str, None] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def refuse(self, reason: str) -> _Entry:
        """Return the entry of a reference that cannot be used."""
        key = f"refused:{len(self.errors)}"
        self.errors[key] = reason
        return _Entry(key, ())

    def fail(self, key: str, reason: str) -> None:
        """Say that a post cannot be encoded."""
        self.errors[key] = reason
        self.posts.pop(key)


class ItemVectors:
    """Gives vectors of catalogue items (from a table where there is one) and of new posts (encoded, then kept).

    Args:
        model: the recommender.
        catalogue: the known items.
        reader: gives their contents.
        words: for the captions of new posts; None where the model reads none.
        pixels: for the pictures of new posts; None where the model sees none.
        vocabulary: for the attributes of new posts; None where the model reads none.
        trunks: run the frozen part of an encoder on new contents, by modality.
        picture_side: longest side that pictures are shrunk to first, as in the prepared feed.
        max_images: pictures of one post that are used.
        device: where to compute.
        table: shape (items, width), vectors of the catalogue, or None to encode items when they are asked for.
        keep: new posts and items whose vectors are kept, the most recently used ones.
    """

    def __init__(
        self,
        model: RecommenderModel,
        catalogue: Catalogue,
        reader: ItemReader,
        *,
        words: TextPreprocessor | None,
        pixels: ImagePreprocessor | None,
        vocabulary: AttributePreprocessor | None = None,
        trunks: Mapping[str, LiveTrunk],
        picture_side: int,
        max_images: int,
        device: torch.device,
        table: npt.NDArray[np.float32] | None = None,
        keep: int = 100_000,
    ) -> None:
        self._model, self._catalogue, self._reader = model, catalogue, reader
        self.contents = PostContents(words, pixels, vocabulary, trunks)
        self._max_images = max_images
        self._decoder = PostDecoder(side=picture_side, max_images=max_images, ahead=device.type != "cpu")
        self._device, self.table, self._keep = device, table, keep
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._met: OrderedDict[str, _Entry] = OrderedDict()
        self._last: dict[object, _Entry] = {}
        self.num_encoded = 0

    def resolve(self, references: Sequence[Reference]) -> ResolvedVectors:
        """Return the vectors of some references; one that cannot be used gets an error and spoils no other."""
        # Many references are the same few objects, which a call sorts out fastest by their identity; the list keeps them
        # alive, so that no two have the same.
        references = list(references)
        asked = _Asked()
        for identity, reference in {id(reference): reference for reference in references}.items():
            if isinstance(reference, Post):
                self._look_up_post(identity, reference, asked)
            else:
                asked.entries[identity] = self._look_up(reference, asked)
        self._read(asked)
        asked.entries |= {identity: asked.entries[first] for identity, first in asked.again.items()}
        if asked.posts:
            self._last = _comparable(asked)
        keys, vectors = self._known(asked.rows, asked.posts)
        rows = {key: row for row, key in enumerate(keys)}

        def resolved(entry: _Entry) -> Resolved:
            key = entry.key
            return Resolved(rows.get(key, -1), key, asked.rows.get(key, -1), entry.present, asked.errors.get(key))

        distinct = {entry.key: resolved(entry) for entry in dict.fromkeys(asked.entries.values())}
        found = {identity: distinct[entry.key] for identity, entry in asked.entries.items()}
        return ResolvedVectors(vectors, tuple([found[id(reference)] for reference in references]), rows)

    def ids(self, item_rows: npt.NDArray[np.int64]) -> list[Reference]:
        """Return the ids of items of the catalogue."""
        return [str(item_id) for item_id in self._catalogue.item_ids[item_rows]]

    def known_rows(self, references: Sequence[Reference]) -> npt.NDArray[np.int64]:
        """Return the rows of those references that are items of the catalogue."""
        ids = [reference for reference in references if not isinstance(reference, Post | Unusable)]
        return np.unique([self._catalogue.row(i) for i in ids if i in self._catalogue]).astype(np.int64)

    def present(self, item_row: int) -> tuple[str, ...]:
        """Return the names of the modalities an item of the catalogue has."""
        return self._present[item_row]

    @cached_property
    def _present(self) -> list[tuple[str, ...]]:
        """The modalities of each item, one tuple for all items of a combination."""
        names, codes = list(self._reader.modalities), np.zeros(len(self._catalogue), dtype=np.int64)
        for i, modality in enumerate(self._reader.modalities.values()):
            codes |= (modality.links.lengths > 0).astype(np.int64) << i
        combinations = [tuple(name for i, name in enumerate(names) if code >> i & 1) for code in range(1 << len(names))]
        return [combinations[code] for code in codes.tolist()]

    def _look_up(self, reference: str | int | Unusable, asked: _Asked) -> _Entry:
        """Say by which key the vector of an item of the catalogue will be found."""
        if isinstance(reference, Unusable):
            return asked.refuse(reference.error_message)
        try:
            if len(asked.errors) >= _HINTS and reference not in self._catalogue:
                return asked.refuse(str(RequestError("the id of a known item", got=repr(reference))))
            row = self._catalogue.row(reference)
        except MmrecError as error:
            return asked.refuse(str(error))
        asked.rows[f"row:{row}"] = row
        return _Entry(f"row:{row}", self.present(row))

    def _look_up_post(self, identity: int, post: Post, asked: _Asked) -> None:
        """Find a post among those of the same call and those that are kept; any other is to be decoded."""
        image = post.image
        if not post.attributes and (image is None or isinstance(image, str | bytes | Path)):
            # To compare two posts takes a fraction of what it takes to hash one, as it is hashed to be kept.
            content = post.caption, image
            if _known_before(asked, content, identity):
                return
            last = self._last.get(content)
            if last is not None and last.key in self._kept:
                asked.posts[last.key] = None
                asked.entries[identity] = last
                return
        try:
            source = source_key(post, max_images=self._max_images)
        except MmrecError as error:
            asked.entries[identity] = asked.refuse(str(error))
            return
        if source is not None and _known_before(asked, source, identity):
            return
        met = None if source is None else self._met.get(source)
        if met is not None and met.key in self._kept:
            asked.posts[met.key] = None
            asked.entries[identity] = met
        else:
            asked.unread[identity] = post, source

    def _read(self, asked: _Asked) -> None:
        """Decode the posts that are new, and encode them."""
        identities = iter(asked.unread.items())
        for decoded in self._decoder.decode([post for post, _ in asked.unread.values()], at_once=_AT_ONCE):
            waiting: dict[str, DecodedPost] = {}
            for post, (identity, (_, source)) in zip(decoded, islice(identities, len(decoded)), strict=True):
                asked.entries[identity] = self._entry(post, source, asked)
                if isinstance(post, DecodedPost) and post.key in asked.posts and post.key not in self._kept:
                    waiting[post.key] = post
            self._encode(waiting, asked)

    def _entry(self, post: DecodedPost | MmrecError, source: str | None, asked: _Asked) -> _Entry:
        """Say by which key a new post's vector will be found."""
        try:
            if isinstance(post, MmrecError):
                return asked.refuse(str(post))
            entry = _Entry(post.key, self.readable(post))
        except MmrecError as error:
            return asked.refuse(str(error))
        asked.posts[entry.key] = None
        if source is not None:
            self._met[source] = entry
        return entry

    def readable(self, post: DecodedPost) -> tuple[str, ...]:
        """Return the modalities of a post that the model reads.

        Raises:
            RequestError: there are none, or an attribute that no column of the feed is, or not of its kind.
        """
        names = self._catalogue.attribute_names if post.attributes else ()
        return self.contents.readable(post, attribute_names=names)

    def _encode(self, waiting: Mapping[str, DecodedPost], asked: _Asked) -> None:
        """Encode posts, by key; where that fails, one by one, so that a bad one is found."""
        parts = [waiting] if waiting else []
        while parts:
            part = parts.pop()
            try:
                self._remember(part, self.encode(list(part.values())))
            except MmrecError as error:
                if len(part) > 1:
                    parts += [{key: post} for key, post in part.items()]
                else:
                    asked.fail(next(iter(part)), str(error))

    def encode(self, posts: Sequence[DecodedPost]) -> Float[Tensor, "posts width"]:
        """Return the score-ready vectors of new posts, float32 on the CPU; keeps none of them."""
        with evaluating(self._model):
            return self._model.encode_items(self.batch(posts).to(self._device)).float().cpu()

    def batch(self, posts: Sequence[DecodedPost]) -> ItemBatch:
        """Return new posts as a batch, each distinct caption and picture once."""
        return self.contents.batch(posts)

    def _known(self, rows: Mapping[str, int], posts: Mapping[str, None]) -> tuple[list[str], Tensor]:
        """Return keys and vectors of items, encoded where there is no table of them, and of posts that are encoded."""
        if self.table is not None:
            picked = torch.from_numpy(np.array(self.table[list(rows.values())], dtype=np.float32))
            return [*rows, *posts], torch.cat([picked, self._recall(list(posts))])
        missing = {key: row for key, row in rows.items() if key not in self._kept}
        if missing:
            wanted = np.fromiter(missing.values(), dtype=np.int64)
            self._remember(missing, encode_catalogue(self._model, self._reader, wanted, device=self._device))
        keys = [*rows, *posts]
        return keys, self._recall(keys)

    def _remember(self, keys: Mapping[str, object], vectors: Tensor) -> None:
        self.num_encoded += len(vectors)
        for key, vector in zip(keys, vectors, strict=True):
            self._kept[key] = vector

    def _recall(self, keys: Sequence[str]) -> Float[Tensor, "keys width"]:
        """Return vectors that are kept, and forget the least recently used beyond the limit."""
        found = []
        for key in keys:
            self._kept.move_to_end(key)
            found.append(self._kept[key])
        while len(self._kept) > max(self._keep, len(keys)):
            self._kept.popitem(last=False)
        while len(self._met) > self._keep:
            self._met.popitem(last=False)
        return torch.stack(found) if found else torch.empty(0, self._model.width)


def _known_before(asked: _Asked, content: object, identity: int) -> bool:
    """Say whether an earlier post of a call has the same content, which is remembered."""
    first = asked.first.setdefault(content, identity)
    if first == identity:
        return False
    # One that was told by its own content to be new may by its hash be none.
    asked.again[identity] = asked.again.get(first, first)
    return True


def _comparable(asked: _Asked) -> dict[object, _Entry]:
    """Return entries by caption and encoded picture, as long as these are small; a file may change from call to call."""
    found: dict[object, _Entry] = {}
    room = _LAST_BYTES
    for content, first in asked.first.items():
        match content:
            case (_, None):
                size = 0
            case (_, bytes(image)):
                size = len(image)
            case _:
                continue
        if size <= room:
            room -= size
            found[content] = asked.entries[first]
    return found
