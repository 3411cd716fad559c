"""The tensors that travel between rooms.

Everything variable in length is *ragged*: values laid end to end plus a length each, so that padding is neither
stored, sent nor encoded.  Everything repeated is stored once and referred to by position, so that nothing is encoded
twice; ``index_select`` sums the gradients of the repetitions, which makes the result exactly that of the padded,
duplicated computation.  What says only where things lie stays on the CPU, whatever the device (see :mod:`mmrec.host`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mmrec.host import on_device, ragged_places

NEXT = 0
"""Code of the default action: the item is what the user chose next."""


_M = TypeVar("_M", bound="Movable")


@dataclass(frozen=True)
class Movable:
    """A dataclass of tensors (possibly nested) that moves between devices as one, but for its ``on_host`` fields."""

    on_host: ClassVar[frozenset[str]] = frozenset()

    def to(self: _M, device: torch.device, *, non_blocking: bool = False) -> _M:
        """Return a copy with every tensor on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self: _M, change: Callable[[Tensor], Tensor]) -> _M:
        """Return a copy with every tensor changed that may leave the CPU."""

        def visit(value: object) -> object:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Movable):
                return value.map(change)
            if isinstance(value, Mapping):
                return {key: visit(entry) for key, entry in value.items()}
            return value

        names = [entry.name for entry in fields(self) if entry.name not in self.on_host]
        return replace(self, **{name: visit(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class TextContent(Movable):
    """Token ids of distinct captions, end to end; special tokens included.

    Args:
        token_ids: shape (total,), row after row.
        lengths: shape (contents,), tokens of each caption, all >= 1; on the CPU.
    """

    on_host = frozenset({"lengths"})
    token_ids: Int[Tensor, " total"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class ImageContent(Movable):
    """Distinct pictures as an encoder wants them before normalisation.

    Args:
        pixels: shape (contents, 3, height, width), uint8 RGB.
    """

    pixels: UInt8[Tensor, "contents 3 height width"]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class VectorContent(Movable):
    """Distinct precomputed vectors.

    Args:
        vectors: shape (contents, vector_dim).
    """

    vectors: Float[Tensor, "contents vector_dim"]

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class AttributeContent(Movable):
    """Codes of distinct combinations of attributes, end to end.

    Args:
        codes: shape (total,), row after row, ascending within a row; each column has a range of codes of its own.  On
            the CPU, and the lengths too.
        lengths: shape (contents,), codes of each combination, all >= 1.
    """

    on_host = frozenset({"codes", "lengths"})
    codes: Int[Tensor, " total"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class IdContent(Movable):
    """Known items by row number.

    Args:
        item_rows: shape (contents,), all >= 0.
        counts: shape (contents,), how often training saw each item, all >= 1.
        trends: shape (contents,), how far each item's popularity rose of late, a logarithm; 0 where unknown.
    """

    item_rows: Int[Tensor, " contents"]
    counts: Float[Tensor, " contents"]
    trends: Float[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.item_rows)


@dataclass(frozen=True)
class TokenStates(Movable):
    """Token vectors of distinct contents, end to end: an encoder's output, or its trunk's.

    Args:
        states: shape (total, dim).
        lengths: shape (contents,), tokens of each content, all >= 1; on the CPU.
    """

    on_host = frozenset({"lengths"})
    states: Float[Tensor, "total dim"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


Content = TextContent | ImageContent | VectorContent | AttributeContent | IdContent | TokenStates
"""What an encoder takes: raw content, or ``TokenStates`` when its trunk has already run."""


@dataclass(frozen=True)
class StoredContent(Movable):
    """Distinct contents that lie on the device already, so that only their row numbers have to travel.

    Args:
        store: all contents of a feed, whatever their number format; never copied.
        rows: shape (contents,), which of them these are; on the CPU.
    """

    on_host = frozenset({"store", "rows"})
    store: Content
    rows: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Content:
        """Return the contents themselves; token states in float32."""
        content = take(self.store, self.rows)
        return replace(content, states=content.states.float()) if isinstance(content, TokenStates) else content


def read_content(content: Content | StoredContent) -> Content:
    """Return what an encoder takes."""
    return content.read() if isinstance(content, StoredContent) else content


def take(content: Content, rows: Int[Tensor, " chosen"]) -> Content:
    """Return some of the contents, in the order given; ``rows`` is on the CPU wherever the contents are."""

    def gather(values: Tensor, places: Tensor) -> Tensor:
        return values.index_select(0, *on_device(values.device, places))

    match content:
        case ImageContent():
            return ImageContent(pixels=gather(content.pixels, rows))
        case VectorContent():
            return VectorContent(vectors=gather(content.vectors, rows))
        case IdContent():
            (there,) = on_device(content.item_rows.device, rows)
            return content.map(lambda column: column.index_select(0, there))
        case TextContent():
            places, _ = ragged_places(content.lengths, rows)
            return TextContent(gather(content.token_ids, places), content.lengths.index_select(0, rows))
        case AttributeContent():
            places, _ = ragged_places(content.lengths, rows)
            return AttributeContent(content.codes.index_select(0, places), content.lengths.index_select(0, rows))
        case TokenStates():
            places, _ = ragged_places(content.lengths, rows)
            return TokenStates(gather(content.states, places), content.lengths.index_select(0, rows))


@dataclass(frozen=True)
class Parts(Movable):
    """What one modality contributes to a batch of items.

    A part says "item ``item_index[p]`` shows content ``content_index[p]``".  An item may have none, one or several
    parts; a content may be shared by several items.

    Args:
        content: the distinct contents of the batch, each once; :func:`read_content` gives what an encoder takes.  All
            else is on the CPU.
        item_index: shape (parts,), ascending positions in the batch's items.
        content_index: shape (parts,), positions in ``content``.
        content_rows: shape (contents,), the contents' numbers in the feed, which are the same in every batch; None
            where they are from nowhere.
    """

    on_host = frozenset({"item_index", "content_index", "content_rows"})
    content: Content | StoredContent
    item_index: Int[Tensor, " parts"]
    content_index: Int[Tensor, " parts"]
    content_rows: Int[Tensor, " contents"] | None = None


@dataclass(frozen=True)
class ItemBatch(Movable):
    """Distinct items with whatever content each of them has.

    Args:
        item_rows: shape (items,), row in the catalogue, -1 for a post that is not in it.
        parts: by modality; a modality no item of the batch has may be missing.
    """

    item_rows: Int[Tensor, " items"]
    parts: Mapping[str, Parts]

    def __len__(self) -> int:
        return len(self.item_rows)


@dataclass(frozen=True)
class UserBatch(Movable):
    """Histories, oldest first, left-aligned, as positions in a batch of distinct items.

    Args:
        item_positions: shape (users, time), position in the item batch; 0 where not valid.
        valid: shape (users, time), True where the slot is a real event; real slots come first.
        instants: shape (users, time), rank of the event's instant within the history, from 0, non-decreasing.  Events
            of one instant have no order.
        timestamps: shape (users, time), milliseconds, or None where the feed knows only an order.
        events: shape (users, time), code of the event's name, or None where the feed has no events.
        values: shape (users, time), the event's value (NaN where unknown), or None.
        context: further request features by name, each of shape (users, ...).
    """

    item_positions: Int[Tensor, "users time"]
    valid: Bool[Tensor, "users time"]
    instants: Int[Tensor, "users time"]
    timestamps: Int[Tensor, "users time"] | None = None
    events: Int[Tensor, "users time"] | None = None
    values: Float[Tensor, "users time"] | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item_positions)


@dataclass(frozen=True)
class Targets(Movable):
    """Items to predict, one entry each.

    Args:
        user_index: shape (targets,), row of the user batch.
        time_index: shape (targets,), slot of the history whose state predicts the target; the slot's instant is
            strictly earlier than the target's.
        item_positions: shape (targets,), position in the item batch.
        action: shape (targets,), code of the action; ``NEXT`` is the default.
        value: shape (targets,), NaN where the event has none.
        weight: shape (targets,), weight in the loss.
        impression: shape (targets,), number of the impression, -1 where unknown.
        together: shape (targets,), True where the predicting slot lies at the target's own instant (a basket that
            training put in an order); outside training never.
        timestamps: shape (targets,), when each was chosen, milliseconds, or None where the feed knows only an order.
    """

    user_index: Int[Tensor, " targets"]
    time_index: Int[Tensor, " targets"]
    item_positions: Int[Tensor, " targets"]
    action: Int[Tensor, " targets"]
    value: Float[Tensor, " targets"]
    weight: Float[Tensor, " targets"]
    impression: Int[Tensor, " targets"]
    together: Bool[Tensor, " targets"]
    timestamps: Int[Tensor, " targets"] | None = None

    def __len__(self) -> int:
        return len(self.user_index)


@dataclass(frozen=True)
class Share(Movable):
    """What a batch is of which this process (a *rank*) holds a share: some of its users, some of its distinct items.

    Args:
        item_rows: shape (all_items,), rows of all distinct items, the ranks' items end to end.
        sizes: items of each rank.
        num_users: users of all ranks.
        num_targets: targets of all ranks.
    """

    item_rows: Int[Tensor, " all_items"]
    sizes: tuple[int, ...]
    num_users: int
    num_targets: int


@dataclass(frozen=True)
class HistoryBatch(Movable):
    """One training step: histories and targets as positions in the distinct items of the global batch.

    Args:
        items: the distinct items of histories, targets and negatives; where the batch is shared out, this rank's.
        users: the histories; where the batch is shared out, this rank's.
        targets: what to predict for these users.
        negatives: shape (negatives,), positions of items drawn uniformly from the catalogue.
        user_rows: shape (users,), row of each user.
        share: the whole batch, where several ranks share it; positions are then positions in *its* items.
        host: the batch on the CPU, where this is its copy on a device.
    """

    on_host = frozenset({"host"})
    items: ItemBatch
    users: UserBatch
    targets: Targets
    negatives: Int[Tensor, " negatives"]
    user_rows: Int[Tensor, " users"]
    share: Share | None = None
    host: HistoryBatch | None = None

    def to(self, device: torch.device, *, non_blocking: bool = False) -> HistoryBatch:
        """Return a copy with every tensor on ``device``, which knows what it is a copy of."""
        moved = super().to(device, non_blocking=non_blocking)
        return moved if device.type == "cpu" else replace(moved, host=self.host or self)

    @property
    def item_rows(self) -> Int[Tensor, " all_items"]:
        """Rows of the distinct items of all ranks."""
        return self.items.item_rows if self.share is None else self.share.item_rows

    @property
    def num_users(self) -> int:
        """Users of all ranks."""
        return len(self.user_rows) if self.share is None else self.share.num_users

    @property
    def num_targets(self) -> int:
        """Targets of all ranks."""
        return len(self.targets) if self.share is None else self.share.num_targets


@dataclass(frozen=True)
class UserStates(Movable):
    """What is known of users.

    Args:
        vectors: shape (users, interests, dim), the state after the whole history.
        states: shape (users, time, dim), the state after each slot and its instant.
        valid: shape (users, time).
    """

    vectors: Float[Tensor, "users interests dim"]
    states: Float[Tensor, "users time dim"]
    valid: Bool[Tensor, "users time"]


@dataclass(frozen=True)
class ModelOutput(Movable):
    """What one forward pass gives to the objective.

    Args:
        item_embeddings: shape (items, dim), score-ready vectors of the batch's distinct items, those of all ranks.
        target_vectors: shape (targets, dim), score-ready user vectors at each target's ``time_index``; the score of a
            target against an item is their inner product.
        views: modality to shape (pairs, dim): vectors of the same items from one modality alone, for the contrastive
            loss.  Empty where it is off or no item of the batch has several modalities.
        view_contents: modality to shape (pairs,): which distinct content each row shows, so that two items that share
            a caption or a picture are not taken for each other's negatives.
    """

    item_embeddings: Float[Tensor, "items dim"]
    target_vectors: Float[Tensor, "targets dim"]
    views: Mapping[str, Tensor] = field(default_factory=dict)
    view_contents: Mapping[str, Tensor] = field(default_factory=dict)
