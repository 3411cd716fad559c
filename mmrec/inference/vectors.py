"""Vectors of whatever a request names: items of the catalogue and posts that are not in it, each encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.batch import Content, ImageContent, ItemBatch, Parts, TextContent
from mmrec.errors import MmrecError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.items import ItemReader
from mmrec.inference.encoding import encode_catalogue, evaluating
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.posts import DecodedPost, Post, decode_post
from mmrec.model.recommender import RecommenderModel
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor


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
        present: the modalities it has.
        error_message: why it has no vector, or None.
    """

    position: int
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


def text_content(words: TextPreprocessor, captions: Sequence[str]) -> TextContent:
    """Return captions as an encoder takes them."""
    ragged = words.encode(captions).token_ids
    return TextContent(torch.from_numpy(ragged.values.astype(np.int32)), torch.from_numpy(ragged.lengths))


def image_content(pixels: ImagePreprocessor, pictures: Sequence[npt.NDArray[np.uint8]]) -> ImageContent:
    """Return pictures as an encoder takes them."""
    return ImageContent(torch.from_numpy(np.stack([pixels(picture) for picture in pictures])))


class ItemVectors:
    """Gives vectors of catalogue items (from a table where there is one) and of new posts (encoded, then kept).

    Args:
        model: the recommender.
        catalogue: the known items.
        reader: gives their contents.
        words: for the captions of new posts; None where the model reads none.
        pixels: for the pictures of new posts; None where the model sees none.
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
        trunks: Mapping[str, LiveTrunk],
        picture_side: int,
        max_images: int,
        device: torch.device,
        table: npt.NDArray[np.float32] | None = None,
        keep: int = 100_000,
    ) -> None:
        self._model, self._catalogue, self._reader = model, catalogue, reader
        self._words, self._pixels, self._trunks = words, pixels, trunks
        self._side, self._max_images = picture_side, max_images
        self._device, self.table, self._keep = device, table, keep
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self.num_encoded = 0

    def resolve(self, references: Sequence[Reference]) -> ResolvedVectors:
        """Return the vectors of some references; one that cannot be read gets an error and spoils no other."""
        rows: dict[str, int] = {}
        posts: dict[str, DecodedPost] = {}
        keys: list[tuple[str, tuple[str, ...], str | None]] = []
        decoded: dict[int, DecodedPost] = {}
        for reference in references:
            try:
                if isinstance(reference, Unusable):
                    keys.append(("", (), reference.error_message))
                elif isinstance(reference, Post):
                    post = decoded.get(id(reference)) or self._decode(reference)
                    decoded[id(reference)] = post
                    posts[post.key] = post
                    keys.append((post.key, post.present, None))
                else:
                    row = self._catalogue.row(reference)
                    key = f"row:{row}"
                    rows[key] = row
                    keys.append((key, self.present(row), None))
            except MmrecError as error:
                keys.append(("", (), str(error)))
        vectors = self._known(rows) | self._new(posts)
        positions = {key: index for index, key in enumerate(vectors)}
        table = torch.stack(list(vectors.values())) if vectors else torch.empty(0, self._model.width)
        return ResolvedVectors(table, tuple(Resolved(positions.get(k, -1), p, e) for k, p, e in keys))

    def ids(self, item_rows: npt.NDArray[np.int64]) -> list[Reference]:
        """Return the ids of items of the catalogue."""
        return [str(item_id) for item_id in self._catalogue.item_ids[item_rows]]

    def known_rows(self, references: Sequence[Reference]) -> npt.NDArray[np.int64]:
        """Return the rows of those references that are items of the catalogue."""
        ids = [reference for reference in references if not isinstance(reference, Post | Unusable)]
        return np.unique([self._catalogue.row(i) for i in ids if i in self._catalogue]).astype(np.int64)

    def present(self, item_row: int) -> tuple[str, ...]:
        """Return the names of the modalities an item of the catalogue has."""
        return tuple(
            name
            for name, modality in self._reader.modalities.items()
            if modality.links.offsets[item_row + 1] > modality.links.offsets[item_row]
        )

    def _decode(self, post: Post) -> DecodedPost:
        return decode_post(post, side=self._side, max_images=self._max_images)

    def _known(self, rows: Mapping[str, int]) -> dict[str, Tensor]:
        if self.table is not None:
            picked = torch.from_numpy(np.array(self.table[list(rows.values())], dtype=np.float32))
            return dict(zip(rows, picked, strict=True))
        missing = {key: row for key, row in rows.items() if key not in self._kept}
        if missing:
            wanted = np.fromiter(missing.values(), dtype=np.int64)
            encoded = encode_catalogue(self._model, self._reader, wanted, device=self._device)
            self._remember(missing, encoded)
        return self._recall(rows)

    def _new(self, posts: Mapping[str, DecodedPost]) -> dict[str, Tensor]:
        missing = {key: post for key, post in posts.items() if key not in self._kept}
        entries = list(missing.items())
        for start in range(0, len(entries), 256):
            part = dict(entries[start : start + 256])
            with evaluating(self._model):
                batch = self.batch(list(part.values())).to(self._device)
                self._remember(part, self._model.encode_items(batch).float().cpu())
        return self._recall(posts)

    def batch(self, posts: Sequence[DecodedPost]) -> ItemBatch:
        """Return new posts as a batch, each distinct caption and picture once."""
        captions = [(index, post.caption) for index, post in enumerate(posts) if post.caption]
        pictures = [(index, picture) for index, post in enumerate(posts) for picture in post.pictures]
        parts: dict[str, Parts] = {}
        if captions and self._words is not None:
            distinct = list(dict.fromkeys(caption for _, caption in captions))
            where = {caption: index for index, caption in enumerate(distinct)}
            parts["text"] = Parts(
                self._through_trunk("text", text_content(self._words, distinct)),
                torch.tensor([index for index, _ in captions]),
                torch.tensor([where[caption] for _, caption in captions]),
            )
        if pictures and self._pixels is not None:
            parts["image"] = Parts(
                self._through_trunk("image", image_content(self._pixels, [picture for _, picture in pictures])),
                torch.tensor([index for index, _ in pictures]),
                torch.arange(len(pictures)),
            )
        return ItemBatch(torch.full((len(posts),), -1), parts)

    def _through_trunk(self, modality: str, content: Content) -> Content:
        trunk = self._trunks.get(modality)
        return content if trunk is None else trunk.run(content).to(torch.device("cpu"))

    def _remember(self, keys: Mapping[str, object], vectors: Tensor) -> None:
        self.num_encoded += len(vectors)
        for key, vector in zip(keys, vectors, strict=True):
            self._kept[key] = vector

    def _recall(self, keys: Mapping[str, object]) -> dict[str, Tensor]:
        found = {}
        for key in keys:
            self._kept.move_to_end(key)
            found[key] = self._kept[key]
        while len(self._kept) > max(self._keep, len(keys)):
            self._kept.popitem(last=False)
        return found
