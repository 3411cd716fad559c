"""New posts as an encoder takes them: each distinct caption, picture and combination of attributes of a batch once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mmrec.batch import ItemBatch, Parts
from mmrec.contents import AttributeContent, Content, ImageContent, TextContent
from mmrec.errors import RequestError, near_names
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.posts import DecodedPost
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor

_T = TypeVar("_T")
_Key = TypeVar("_Key", str, tuple[int, ...])


def text_content(words: TextPreprocessor, captions: Sequence[str]) -> TextContent:
    """Return captions as an encoder takes them."""
    ragged = words.encode(captions).token_ids
    return TextContent(torch.from_numpy(ragged.values.astype(np.int32)), torch.from_numpy(ragged.lengths))


def image_content(pixels: ImagePreprocessor, pictures: Sequence[npt.NDArray[np.uint8]]) -> ImageContent:
    """Return pictures as an encoder takes them."""
    return ImageContent(torch.from_numpy(pixels.batch(pictures)))


def attribute_content(codes: Sequence[tuple[int, ...]]) -> AttributeContent:
    """Return attributes, which have codes, as an encoder takes them."""
    flat = torch.tensor([code for row in codes for code in row], dtype=torch.int32)
    return AttributeContent(flat, torch.tensor([len(row) for row in codes]))


@dataclass(frozen=True)
class PostContents:
    """What a model reads of posts that are in no catalogue.

    Args:
        words: for captions; None where the model reads none.
        pixels: for pictures; None where the model sees none.
        vocabulary: for attributes; None where the model reads none.
        trunks: run the frozen part of an encoder on new contents, by modality.
    """

    words: TextPreprocessor | None
    pixels: ImagePreprocessor | None
    vocabulary: AttributePreprocessor | None
    trunks: Mapping[str, LiveTrunk]

    @property
    def reads(self) -> tuple[str, ...]:
        """The modalities that the model reads of new posts."""
        known = {"text": self.words, "image": self.pixels, "attributes": self.vocabulary}
        return tuple(name for name, preprocessor in known.items() if preprocessor is not None)

    def readable(self, post: DecodedPost, *, attribute_names: Collection[str]) -> tuple[str, ...]:
        """Return the modalities of a post that the model reads.

        Args:
            post: the post.
            attribute_names: attributes of the feed, whether or not the model reads them.

        Raises:
            RequestError: there are none, an attribute that the feed does not have, or text in place of a number.
        """
        for name in post.attributes:
            if name not in attribute_names:
                fix = near_names(name[:80], attribute_names)
                raise RequestError("an attribute of the feed", got=repr(name[:80]), where="attributes", fix=fix)
        reads, unread = self.reads, set[str]()
        if self.vocabulary is not None:
            self.vocabulary.check(post.attributes)
            unread |= set() if self.vocabulary.encode(post.attributes) else {"attributes"}
        present = tuple(name for name in post.present if name in reads and name not in unread)
        if not present:
            raise RequestError(
                f"a post with {' or '.join(reads)}"
                if reads
                else "an item that training saw: the model knows ids alone",
                got=f"a new post with {' and '.join(post.present)}",
            )
        return present

    def read_attributes(self, attributes: Mapping[str, _T]) -> dict[str, _T]:
        """Return those of a post's attributes that the model reads."""
        known = {} if self.vocabulary is None else self.vocabulary.columns
        return {name: value for name, value in attributes.items() if name in known}

    def batch(self, posts: Sequence[DecodedPost]) -> ItemBatch:
        """Return new posts as a batch."""
        words, pixels, vocabulary = self.words, self.pixels, self.vocabulary
        parts: dict[str, Parts | None] = {}
        if words is not None:
            captions = [(index, post.caption) for index, post in enumerate(posts) if post.caption]
            parts["text"] = _parts(captions, lambda keys: self._through_trunk("text", text_content(words, keys)))
        if pixels is not None:
            pictures = [(index, key) for index, post in enumerate(posts) for key in post.picture_keys]
            shown = {key: p for post in posts for key, p in zip(post.picture_keys, post.pictures, strict=True)}
            parts["image"] = _parts(
                pictures, lambda keys: self._through_trunk("image", image_content(pixels, [shown[key] for key in keys]))
            )
        if vocabulary is not None:
            coded = [(index, vocabulary.encode(post.attributes)) for index, post in enumerate(posts)]
            parts["attributes"] = _parts([(index, codes) for index, codes in coded if codes], attribute_content)
        return ItemBatch(
            torch.full((len(posts),), -1), {name: part for name, part in parts.items() if part is not None}
        )

    def _through_trunk(self, modality: str, content: Content) -> Content:
        trunk = self.trunks.get(modality)
        return content if trunk is None else trunk.run(content).to(torch.device("cpu"))


def _parts(shown: Sequence[tuple[int, _Key]], make: Callable[[list[_Key]], Content]) -> Parts | None:
    """Return which post shows what, each distinct content once; None where no post shows anything.

    Args:
        shown: number of the post, and the key of a content, in the order of the posts.
        make: turns distinct keys into contents.
    """
    if not shown:
        return None
    place = {key: index for index, key in enumerate(dict.fromkeys(key for _, key in shown))}
    items, contents = zip(*((index, place[key]) for index, key in shown), strict=True)
    return Parts(make(list(place)), torch.tensor(items), torch.tensor(contents))
