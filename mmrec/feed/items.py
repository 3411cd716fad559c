"""Items by row number to a batch of their distinct contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from mmrec.batch import ItemBatch, Parts
from mmrec.contents import Content, StoredContent
from mmrec.feed.catalogue import NO_CAPTION, Catalogue
from mmrec.storage import RaggedArray


@runtime_checkable
class ContentSource(Protocol):
    """Distinct contents of one modality by row: tokens, pixels, vectors, or states of a trunk that has already run."""

    def gather(self, rows: npt.NDArray[np.int64]) -> Content | StoredContent:
        """Return the contents of the given rows, in that order, on the CPU, or where they are stored on the device."""
        ...


@dataclass(frozen=True)
class Modality:
    """Where one modality of a catalogue's items comes from.

    Args:
        links: row ``i`` holds the content rows of item ``i``: none, one or several.
        source: the contents.
    """

    links: RaggedArray
    source: ContentSource


def optional_links(rows: npt.NDArray[np.int64], *, absent: int = NO_CAPTION) -> RaggedArray:
    """Turn one content row an item, or ``absent``, into links."""
    present = rows != absent
    return RaggedArray(rows[present], np.concatenate([[0], np.cumsum(present)]).astype(np.int64))


def picture_links(catalogue: Catalogue, *, max_images: int) -> RaggedArray:
    """Return the picture rows of every item, the first ``max_images`` of each."""
    links = catalogue.item_images
    kept = np.minimum(links.lengths, max_images)
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    index = np.arange(offsets[-1]) + np.repeat(links.offsets[:-1] - offsets[:-1], kept)
    return RaggedArray(np.asarray(links.values)[index].astype(np.int64), offsets)


@dataclass(frozen=True)
class ItemReader:
    """Reads items of a catalogue, each distinct content once.

    Args:
        modalities: by name, in the order the model wants them.
    """

    modalities: Mapping[str, Modality]

    def read(self, item_rows: npt.NDArray[np.int64]) -> ItemBatch:
        """Return a batch of the given distinct items, in that order."""
        parts = {}
        for name, modality in self.modalities.items():
            links = modality.links.gather(item_rows)
            contents, inverse = np.unique(links.values, return_inverse=True)
            if len(contents) == 0:
                continue
            parts[name] = Parts(
                content=modality.source.gather(contents.astype(np.int64)),
                item_index=torch.from_numpy(np.repeat(np.arange(len(item_rows)), links.lengths)),
                content_index=torch.from_numpy(inverse.astype(np.int64)),
                content_rows=torch.from_numpy(contents.astype(np.int64)),
            )
        return ItemBatch(item_rows=torch.from_numpy(np.ascontiguousarray(item_rows, dtype=np.int64)), parts=parts)
