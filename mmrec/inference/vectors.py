"""Vectors of whatever a request names: items of the catalogue and posts that are not in it, each encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
from mmrec.inference.posts import DecodedPost, Post, decode_post, source_key
from mmrec.model.recommender import RecommenderModel
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor

_AT_ONCE = 256
"""Posts decoded and encoded together; bounds memory."""

_HINTS = 20
"""Unknown ids of one call that are told their near names, which takes milliseconds."""


@dataclass(frozen=True)
class Unusable:
    """A reference that could not even be read.

    Args:
        name: what it is called in results.
        error_message: why it cannot be used.
    """

    name: str
    error_message: str


Reference = str | int | Post | Unusable
"""An item id of the catalogue, a new post, or what is left of one that could not be read."""


def reference_name(reference: Reference, position: int) -> str:
    """Return what a reference is called in results: its id or name, else its position."""
    if isinstance(reference, Post):
        return reference.name or f"new:{position}"
    return reference.name if isinstance(reference, Unusable) else str(reference)


@dataclass(frozen=True)
class Resolved:
    """What became of one reference.

    Args:
        position: row of its vector, -1 where it has none.
        key: the same for two references to the same item or the same content, whatever call they came in.
        row: in the catalogue, -1 for a new post.
        present: the modalities it has.
        error_message: why it has no vector, or None.
    """

    position: int
    key: str
    row: int
    present: tuple[str, ...]
    error_message: str | None = None


@dataclass(frozen=True)
class ResolvedVectors:
    """Vectors of some references, each distinct one once.

    Args:
        vectors: shape (distinct, width), score-ready, float32 on the CPU.
        references: one entry a reference, in the order given.
    """

    vectors: Float[Tensor, "distinct width"]
    references: tuple[Resolved, ...]


@dataclass(frozen=True)
class _Entry:
    """By which key a vector is found, and which modalities it comes from."""

    key: str
    present: tuple[str, ...]


@dataclass
class _Asked:
    """What one call asks for.

    Args:
        entries: by identity of the reference.
        rows: key to row, of items of the catalogue.
        posts: keys of new posts, in order.
        waiting: those that are still to be encoded.
        errors: key to reason, of what has no vector.
    """

    entries: dict[int, _Entry] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    posts: dict[str, None] = field(default_factory=dict)
    waiting: dict[str, DecodedPost] = field(default_factory=dict)
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
        self._side, self._max_images = picture_side, max_images
        self._device, self.table, self._keep = device, table, keep
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._met: OrderedDict[str, _Entry] = OrderedDict()
        self.num_encoded = 0

    def resolve(self, references: Sequence[Reference]) -> ResolvedVectors:
        """Return the vectors of some references; one that cannot be used gets an error and spoils no other."""
        asked = _Asked()
        for reference in references:
            if id(reference) not in asked.entries:
                asked.entries[id(reference)] = self._look_up(reference, asked)
            if len(asked.waiting) == _AT_ONCE:
                self._encode(asked)
        self._encode(asked)
        vectors = self._known(asked.rows, asked.posts)
        positions = {key: index for index, key in enumerate(vectors)}
        table = torch.stack(list(vectors.values())) if vectors else torch.empty(0, self._model.width)

        def resolved(entry: _Entry) -> Resolved:
            key = entry.key
            return Resolved(positions.get(key, -1), key, asked.rows.get(key, -1), entry.present, asked.errors.get(key))

        # Many references name the same few items.
        distinct = {entry.key: entry for entry in asked.entries.values()}
        found = {key: resolved(entry) for key, entry in distinct.items()}
        return ResolvedVectors(table, tuple(found[asked.entries[id(reference)].key] for reference in references))

    def ids(self, item_rows: npt.NDArray[np.int64]) -> list[Reference]:
        """Return the ids of items of the catalogue."""
        return [str(item_id) for item_id in self._catalogue.item_ids[item_rows]]

    def known_rows(self, references: Sequence[Reference]) -> npt.NDArray[np.int64]:
        """Return the rows of those references that are items of the catalogue."""
        ids = [reference for reference in references if not isinstance(reference, Post | Unusable)]
        return np.unique([self._catalogue.row(i) for i in ids if i in self._catalogue]).astype(np.int64)

    def present(self, item_row: int) -> tuple[str, ...]:
        """Return the names of the modalities an item of the catalogue has."""
        return self._combinations[int(self._combination_of[item_row])]

    @cached_property
    def _combinations(self) -> list[tuple[str, ...]]:
        """Every combination of modalities; bit ``i`` of its place stands for the reader's modality ``i``."""
        names = list(self._reader.modalities)
        return [tuple(name for i, name in enumerate(names) if code >> i & 1) for code in range(1 << len(names))]

    @cached_property
    def _combination_of(self) -> npt.NDArray[np.int64]:
        """Place of each item's combination, shape (items,)."""
        codes = np.zeros(len(self._catalogue), dtype=np.int64)
        for i, modality in enumerate(self._reader.modalities.values()):
            codes |= (modality.links.lengths > 0).astype(np.int64) << i
        return codes

    def _look_up(self, reference: Reference, asked: _Asked) -> _Entry:
        """Say by which key a reference's vector will be found; a post that is not kept waits to be encoded."""
        try:
            if isinstance(reference, Unusable):
                return asked.refuse(reference.error_message)
            if not isinstance(reference, Post):
                if len(asked.errors) >= _HINTS and reference not in self._catalogue:
                    return asked.refuse(str(RequestError("the id of a known item", got=repr(reference))))
                row = self._catalogue.row(reference)
                asked.rows[f"row:{row}"] = row
                return _Entry(f"row:{row}", self.present(row))
            source = source_key(reference, max_images=self._max_images)
            met = None if source is None else self._met.get(source)
            if met is not None and (met.key in self._kept or met.key in asked.waiting):
                asked.posts[met.key] = None
                return met
            post = decode_post(reference, side=self._side, max_images=self._max_images)
            entry = _Entry(post.key, self.readable(post))
        except MmrecError as error:
            return asked.refuse(str(error))
        asked.posts[post.key] = None
        if post.key not in self._kept:
            asked.waiting[post.key] = post
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

    def _encode(self, asked: _Asked) -> None:
        """Encode the posts that wait; where that fails, one by one, so that a bad one is found."""
        waiting = dict(asked.waiting)
        asked.waiting.clear()
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

    def _known(self, rows: Mapping[str, int], posts: Mapping[str, None]) -> dict[str, Tensor]:
        """Return the vectors of items, encoded where there is no table of them, and of posts that are encoded."""
        if self.table is not None:
            picked = torch.from_numpy(np.array(self.table[list(rows.values())], dtype=np.float32))
            return dict(zip(rows, picked, strict=True)) | self._recall(list(posts))
        missing = {key: row for key, row in rows.items() if key not in self._kept}
        if missing:
            wanted = np.fromiter(missing.values(), dtype=np.int64)
            self._remember(missing, encode_catalogue(self._model, self._reader, wanted, device=self._device))
        return self._recall([*rows, *posts])

    def _remember(self, keys: Mapping[str, object], vectors: Tensor) -> None:
        self.num_encoded += len(vectors)
        for key, vector in zip(keys, vectors, strict=True):
            self._kept[key] = vector

    def _recall(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return vectors that are kept, and forget the least recently used beyond the limit."""
        found = {}
        for key in keys:
            self._kept.move_to_end(key)
            found[key] = self._kept[key]
        while len(self._kept) > max(self._keep, len(keys)):
            self._kept.popitem(last=False)
        while len(self._met) > self._keep:
            self._met.popitem(last=False)
        return found
