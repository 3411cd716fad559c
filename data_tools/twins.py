"""Posts whose content another post repeats, exactly or nearly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools.duplicates import components, near_captions, near_pictures
from data_tools.findings import MAX_EXAMPLES, Finding
from mmrec.feed.catalogue import NO_CAPTION, Catalogue

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NONE = -1


@dataclass(frozen=True)
class Twins:
    """Which posts have the same content, near-duplicates counted as the same.

    A *slot* is one picture of an item; an item without a picture has one empty slot.

    Args:
        items: shape (slots,), the item of every slot.
        captions: shape (slots,), group of its caption, or -1.
        pictures: shape (slots,), group of its picture, or -1.
        num_items: posts in all.
        near_captions: distinct captions with a near-duplicate.
        near_pictures: distinct pictures with a near-duplicate.
    """

    items: Rows
    captions: Rows
    pictures: Rows
    num_items: int
    near_captions: int
    near_pictures: int

    @classmethod
    def of(cls, catalogue: Catalogue, advance: Callable[[int], None]) -> Twins:
        """Compare all content of a catalogue; ``advance`` hears of every caption and picture read."""
        caption_pairs = near_captions(catalogue.captions, advance)
        picture_pairs = near_pictures(catalogue.pictures, advance)
        caption_groups = components(len(catalogue.captions), caption_pairs)
        picture_groups = components(len(catalogue.pictures), picture_pairs)
        lengths = catalogue.item_images.lengths
        items = np.repeat(np.arange(len(catalogue)), np.maximum(lengths, 1))
        pictures = np.full(len(items), NONE, dtype=np.int64)
        pictures[np.repeat(lengths, np.maximum(lengths, 1)) > 0] = picture_groups[catalogue.item_images.values]
        rows = catalogue.caption_rows
        of_item = np.full(len(catalogue), NONE, dtype=np.int64)
        of_item[rows != NO_CAPTION] = caption_groups[rows[rows != NO_CAPTION]]
        near = (len(np.unique(caption_pairs)), len(np.unique(picture_pairs)))
        return cls(items, of_item[items], pictures, len(catalogue), *near)

    def like(self, others: Mask) -> tuple[Mask, Mask, Mask]:
        """Return which posts share their caption, a picture, or both at once with one of ``others``; each (items,)."""
        _, both = np.unique(np.stack([self.captions, self.pictures], axis=1), axis=0, return_inverse=True)
        some = (self.captions != NONE) | (self.pictures != NONE)
        slots = others[self.items]
        return (
            self._shared(self.captions, self.captions != NONE, slots),
            self._shared(self.pictures, self.pictures != NONE, slots),
            self._shared(both.reshape(-1), some, slots),
        )

    def _shared(self, keys: Rows, counted: Mask, slots: Mask) -> Mask:
        known = np.unique(keys[slots & counted])
        result = np.zeros(self.num_items, dtype=np.bool_)
        result[self.items[counted & np.isin(keys, known)]] = True
        return result


def content_findings(catalogue: Catalogue, twins: Twins) -> list[Finding]:
    """Return what to know about posts without content and about repeated content."""
    findings = []
    for count, what, option in (
        (len(catalogue.captions), "caption", "--caption"),
        (len(catalogue.pictures), "picture", "--images"),
    ):
        if not count:
            message = f"no post has a {what}: if the raw feed has them, prepare it again with {option}"
            findings.append(Finding("warning", f"no-{what}s", message, "feed", len(catalogue)))
    empty = np.flatnonzero((catalogue.caption_rows == NO_CAPTION) & (catalogue.item_images.lengths == 0))
    if len(empty):
        message = f"{len(empty):,} posts have neither caption nor picture; only a model with ids can tell them apart"
        ids = tuple(str(item_id) for item_id in catalogue.item_ids[empty[:MAX_EXAMPLES]])
        findings.append(Finding("warning", "empty-posts", message, "feed", len(empty), ids))
    for code, count, total in (
        ("near-captions", twins.near_captions, len(catalogue.captions)),
        ("near-pictures", twins.near_pictures, len(catalogue.pictures)),
    ):
        if count:
            message = f"{count:,} of {total:,} distinct {code[5:]} have a near-duplicate"
            findings.append(Finding("note", code, message, "feed", count))
    return findings
