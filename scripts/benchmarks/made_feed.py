"""A feed in memory with the shape of a real one: who chose what, captions of mixed length, pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.batch import HistoryBatch
from mmrec.feed.batches import Windows, collate
from mmrec.feed.histories import Histories
from mmrec.feed.items import ContentSource, ItemReader, Modality, optional_links
from mmrec.preprocessing.views import PixelView, TokenView
from mmrec.storage import RaggedArray

FIRST_WORD = 5
"""Token ids below it are special."""


@dataclass(frozen=True)
class Likeness:
    """What a made feed takes from a real one.

    Args:
        items: posts.
        length: slots of a history.
        mean_events: mean events of a user before the cut (geometric).
        exponent: of the Zipf law of popularity.
        mean_tokens: of a caption.
        name: how rows call it.
    """

    items: int
    length: int
    mean_events: float
    exponent: float
    mean_tokens: int
    name: str = "made"


HM_LIKE = Likeness(items=7_200, length=20, mean_events=9.0, exponent=0.8, mean_tokens=33, name="hm-like")
ML1M_LIKE = Likeness(items=3_400, length=50, mean_events=165.0, exponent=0.9, mean_tokens=50, name="ml1m-like")


@dataclass(frozen=True)
class MadeFeed:
    """Contents by row, one caption and one picture an item.

    Args:
        captions: token ids of every caption.
        pictures: shape (items, 3, side, side), uint8.
        likeness: what it was made after.
    """

    captions: RaggedArray
    pictures: Tensor
    likeness: Likeness

    @classmethod
    def make(cls, likeness: Likeness, *, words: int, max_tokens: int, side: int) -> MadeFeed:
        """Draw contents.

        Args:
            likeness: the shape.
            words: size of the vocabulary.
            max_tokens: longest caption.
            side: of a picture, in pixels.
        """
        generator = np.random.default_rng(0)
        lengths = np.clip(generator.poisson(likeness.mean_tokens, likeness.items), 3, max_tokens)
        ids = generator.integers(FIRST_WORD, words, lengths.sum()).astype(np.int64)
        pictures = torch.randint(0, 256, (likeness.items, 3, side, side), dtype=torch.uint8)
        return cls(RaggedArray(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)), pictures, likeness)

    @property
    def text_view(self) -> TokenView:
        """The captions, as a prepared feed keeps them."""
        return TokenView(RaggedArray(self.captions.values.astype(np.int32), self.captions.offsets), truncated=0)

    @property
    def image_view(self) -> PixelView:
        """The pictures, as a prepared feed keeps them."""
        return PixelView((self.pictures.numpy(),), side=self.pictures.shape[2])

    def padded(self, rows: npt.NDArray[np.int64], *, max_tokens: int) -> Tensor:
        """Return captions padded to the longest allowed with 0, as the field does; row -1 is padding itself."""
        table = np.zeros((len(rows), max_tokens), np.int64)
        for place, row in enumerate(rows):
            if row >= 0:
                words = self.captions[int(row)]
                table[place, : len(words)] = words
        return torch.from_numpy(table)

    def users(self, count: int, *, seed: int) -> list[npt.NDArray[np.int64]]:
        """Draw the last ``length + 1`` items of some users, two at least."""
        shape = self.likeness
        generator = np.random.default_rng(seed)
        weights = np.arange(1, shape.items + 1) ** -shape.exponent
        lengths = np.clip(generator.geometric(1 / shape.mean_events, count), 2, shape.length + 1)
        # Popularity has nothing to do with the order of rows.
        places = np.random.default_rng(1).permutation(shape.items)
        return [
            places[generator.choice(shape.items, length, replace=False, p=weights / weights.sum())]
            for length in lengths
        ]


def batch_of(
    users: list[npt.NDArray[np.int64]], reader: ItemReader, *, negatives: npt.NDArray[np.int64]
) -> HistoryBatch:
    """Collate users' items as a training loader does: every event but the first is a target."""
    lengths = np.array([len(items) for items in users])
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    instants = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64)
    histories = Histories(
        user_ids=np.arange(len(users)).astype(str).astype(object),
        offsets=ends,
        item_rows=np.concatenate(users).astype(np.int64),
        timestamps=instants,
        has_time=False,
        event_names=(),
        event_codes=None,
        values=None,
    )
    windows = Windows(
        user_rows=np.arange(len(users)),
        events=np.arange(ends[-1]),
        lengths=lengths,
        instants=instants,
        opens=np.zeros(len(users), bool),
    )
    return collate(histories, windows, reader, negatives=negatives)


def reader_of(text: ContentSource, image: ContentSource, *, items: int) -> ItemReader:
    """Read one caption and one picture an item."""
    links = optional_links(np.arange(items))
    return ItemReader({"text": Modality(links, text), "image": Modality(links, image)})
