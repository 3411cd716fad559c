"""The tensors that travel between rooms.

Everything variable in length is *ragged*: values laid end to end plus a length each, so that padding is neither
stored, sent nor encoded.  Everything repeated is stored once and referred to by position, so that nothing is encoded
twice; ``index_select`` sums the gradients of the repetitions, which makes the result exactly that of the padded,
duplicated computation.  What says only where things lie stays on the CPU, whatever the device (see :mod:`mmrec.host`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.contents import Content, StoredContent
from mmrec.movable import Movable

NEXT = 0
"""Code of the default action: the item is what the user chose next."""


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
