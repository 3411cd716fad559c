"""Hiding parts of items, before anything is encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.batch import Parts
from mmrec.contents import StoredContent, take


def presence(parts: Mapping[str, Parts], modalities: Sequence[str], num_items: int) -> Bool[Tensor, "items modalities"]:
    """Return which items have at least one part of each modality, on the CPU as all that says who has what.

    Args:
        parts: by modality.
        modalities: order of the second axis.
        num_items: items of the batch.
    """
    present = torch.zeros(num_items, len(modalities), dtype=torch.bool)
    for column, name in enumerate(modalities):
        if name in parts:
            present[parts[name].item_index, column] = True
    return present


def draw_dropped(
    present: Bool[Tensor, "items modalities"], *, share: float, noise: Float[Tensor, "items modalities_and_one"]
) -> Bool[Tensor, "items modalities"]:
    """Choose one modality to hide from a share of the items that have several; none ever loses its last.

    Args:
        present: which item has what.
        share: share of items with several modalities that lose one.
        noise: uniform in [0, 1), one column more than ``present``: the last decides whether, the others which.
    """
    loses = (noise[:, -1] < share) & (present.sum(dim=1) > 1)
    which = noise[:, :-1].masked_fill(~present, -1.0).argmax(dim=1)
    columns = torch.arange(present.shape[1])
    return loses.unsqueeze(1) & (columns == which.unsqueeze(1))


def without(parts: Parts, hidden: Bool[Tensor, " items"]) -> Parts | None:
    """Remove the parts of the hidden items, and the contents nobody shows any more; None when nothing is left."""
    kept = ~hidden[parts.item_index]
    item_index, content_index = parts.item_index[kept], parts.content_index[kept]
    if not len(item_index):
        return None
    used = torch.zeros(len(parts.content), dtype=torch.bool)
    used[content_index] = True
    if bool(used.all()):
        return replace(parts, item_index=item_index, content_index=content_index)
    rows, content = used.nonzero()[:, 0], parts.content
    return Parts(
        content=replace(content, rows=content.rows[rows])
        if isinstance(content, StoredContent)
        else take(content, rows),
        item_index=item_index,
        content_index=(used.cumsum(0) - 1)[content_index],
        content_rows=None if parts.content_rows is None else parts.content_rows[rows],
    )


def slice_parts(parts: Mapping[str, Parts], *, start: int, stop: int, num_items: int) -> dict[str, Parts]:
    """Return what the items ``start`` to ``stop`` show, these items numbered from 0."""
    rows = torch.arange(num_items)
    outside = (rows < start) | (rows >= stop)
    left = {name: without(part, outside) for name, part in parts.items()}
    return {name: replace(part, item_index=part.item_index - start) for name, part in left.items() if part is not None}


def first_contents(parts: Parts, items: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the first content of each of some items, which all have one: its number in the feed or the batch."""
    first = parts.content_index[torch.searchsorted(parts.item_index, items)]
    return first if parts.content_rows is None else parts.content_rows[first]
