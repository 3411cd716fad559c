"""What a training step minimises, put together from the objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmrec.batch import HistoryBatch, ModelOutput
from mmrec.errors import ConfigError
from mmrec.host import on_device
from mmrec.movable import Movable
from mmrec.objectives.contrastive import contrastive_loss
from mmrec.objectives.negatives import Pairs, exclusion_pairs, log_inclusion_probability, window_pairs
from mmrec.objectives.pairwise import bpr_loss, negative_scores, usable_negatives
from mmrec.objectives.pointwise import bce_loss, mse_loss
from mmrec.objectives.softmax import full_softmax_loss, in_batch_softmax_loss
from mmrec.objectives.terms import Total, alone, own_scores

LossKind = Literal["full_softmax", "in_batch_softmax", "bpr", "bce", "mse"]


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch.

    Where several ranks share a batch, each has its summand: all of them add up to the loss of the batch.

    Args:
        total: scalar to be minimised.
        parts: by name, detached scalars before weighting.
        num_targets: targets of the batch, those of all ranks.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]
    num_targets: int


@dataclass(frozen=True, kw_only=True)
class TrainingLoss(Movable):
    """The objective of a run; ``to(device)`` moves what it knows of the feed.

    Args:
        kind: the main loss.
        chunk: candidates scored at once, at most (softmax losses).
        mask_history: leave the items of a target's own history out of its negatives.
        contrastive_weight: weight of the image-text contrastive loss; 0 switches it off.
        contrastive_temperature: its temperature.
        sampled_zeros: ``bce`` takes the batch's sampled negatives for values of 0.
        num_users: users that batches are drawn from (``in_batch_softmax``).
        users_with_item: shape (catalogue,), users whose window holds each item (``in_batch_softmax``).
        eligible: shape (catalogue,), items that may be negatives (``full_softmax``) and that negatives are drawn from
            (``in_batch_softmax``); None for all.
        first_seen: shape (catalogue,), time from which each item existed, so that what did not exist yet is no
            negative (``full_softmax``); None for no such rule.
        inclusion: what ``in_batch_softmax`` has worked out already, by users and negatives of a batch.
        sum_over_ranks: makes this process's sum one over all that share a batch.

    Raises:
        ConfigError: the kind needs something that was not given.
    """

    kind: LossKind = "full_softmax"
    chunk: int = 8192
    mask_history: bool = False
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.07
    sampled_zeros: bool = False
    num_users: int = 0
    users_with_item: Int[Tensor, " catalogue"] | None = None
    eligible: Bool[Tensor, " catalogue"] | None = None
    first_seen: Int[Tensor, " catalogue"] | None = None
    inclusion: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)
    sum_over_ranks: Total = alone

    def __post_init__(self) -> None:
        if self.kind == "in_batch_softmax" and (self.users_with_item is None or self.num_users < 1):
            raise ConfigError(
                "num_users and users_with_item for the loss 'in_batch_softmax'",
                where="TrainingLoss",
                fix="Count the users whose window holds each item.",
            )

    def __call__(
        self, output: ModelOutput, batch: HistoryBatch, bank: Float[Tensor, "catalogue dim"] | None = None
    ) -> LossTerms:
        """Return the loss of one batch.

        Args:
            output: what the model made of the batch.
            batch: the batch itself.
            bank: shape (catalogue, dim), a vector for every row of the catalogue (``full_softmax``); None where the
                batch holds the whole catalogue.
        """
        main = self._main(output, batch, bank)
        if batch.share is not None:
            # A rank without targets takes part in the backward pass of the others' all the same.
            main = main + 0 * output.item_embeddings.sum()
        parts: dict[str, Tensor] = {self.kind: main.detach()}
        total = main
        if self.contrastive_weight > 0:
            contrastive = self._contrastive(output)
            if contrastive is not None:
                # Every rank sees all pairs, and each takes its share of the same loss.
                contrastive = contrastive / (1 if batch.share is None else len(batch.share.sizes))
                parts["contrastive"] = contrastive.detach()
                total = main + self.contrastive_weight * contrastive
        return LossTerms(total=total, parts=parts, num_targets=batch.num_targets)

    def _main(self, output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> Tensor:
        items, vectors, targets = output.item_embeddings, output.target_vectors, batch.targets
        match self.kind:
            case "full_softmax":
                return self._full_softmax(output, batch, bank)
            case "in_batch_softmax":
                return self._in_batch_softmax(output, batch)
            case "bpr":
                return bpr_loss(
                    vectors,
                    items,
                    targets.item_positions,
                    batch.negatives,
                    targets.weight,
                    excluded=self._sent_history(batch),
                    total=self.sum_over_ranks,
                )
            case "mse":
                scores = own_scores(vectors, items, targets.item_positions)
                return mse_loss(scores, targets.value, targets.weight, total=self.sum_over_ranks)
            case "bce":
                scores = own_scores(vectors, items, targets.item_positions)
                if not self.sampled_zeros:
                    return bce_loss(scores, targets.value, targets.weight, total=self.sum_over_ranks)
                return bce_loss(
                    scores,
                    targets.value,
                    targets.weight,
                    negative_scores=negative_scores(vectors, items, batch.negatives),
                    usable=usable_negatives(targets.item_positions, batch.negatives, self._sent_history(batch)),
                    total=self.sum_over_ranks,
                )

    def _full_softmax(self, output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> Tensor:
        return full_softmax_loss(
            output.target_vectors,
            output.item_embeddings,
            batch.item_rows,
            batch.targets.item_positions,
            bank,
            batch.targets.weight,
            chunk=self.chunk,
            eligible=self.eligible,
            excluded=self._history(batch),
            first_seen=self.first_seen,
            target_times=batch.targets.timestamps,
            total=self.sum_over_ranks,
        )

    def _in_batch_softmax(self, output: ModelOutput, batch: HistoryBatch) -> Tensor:
        users, targets = _on_host(batch).users, _on_host(batch).targets
        log_inclusion = self._log_inclusion(batch_users=batch.num_users, negatives=len(batch.negatives))
        return in_batch_softmax_loss(
            output.target_vectors,
            output.item_embeddings,
            batch.targets.item_positions,
            log_inclusion[batch.item_rows],
            batch.targets.weight,
            chunk=self.chunk,
            certain=window_pairs(users.item_positions, users.valid, targets.user_index, targets.item_positions),
            excluded=self._history(batch),
            total=self.sum_over_ranks,
        )

    def _log_inclusion(self, *, batch_users: int, negatives: int) -> Float[Tensor, " catalogue"]:
        """Return every item's log probability of being in a batch; worked out once for each size of batch."""
        assert self.users_with_item is not None
        key = (batch_users, negatives)
        if key not in self.inclusion:
            counts = self.users_with_item
            self.inclusion[key] = log_inclusion_probability(
                counts.cpu(),  # float64, which not every device has
                num_users=self.num_users,
                batch_users=batch_users,
                negatives=negatives,
                num_items=len(counts) if self.eligible is None else int(self.eligible.sum()),
            ).to(counts.device, torch.float32)
        return self.inclusion[key]

    def _history(self, batch: HistoryBatch) -> Pairs | None:
        """Pairs of a target and the positions of its own history, or None where these count as negatives.

        They are worked out on the CPU: how many there are would be asked of a device otherwise.
        """
        if not self.mask_history:
            return None
        users, targets = _on_host(batch).users, _on_host(batch).targets
        pairs = exclusion_pairs(
            users.item_positions, users.valid, users.instants, targets.user_index, targets.time_index
        )
        return pairs.without_own(targets.item_positions)

    def _sent_history(self, batch: HistoryBatch) -> Pairs | None:
        """Return the same pairs on the batch's device."""
        pairs, device = self._history(batch), batch.user_rows.device
        return None if pairs is None else Pairs(*on_device(device, pairs.target_index, pairs.item_index))

    def _contrastive(self, output: ModelOutput) -> Tensor | None:
        """Mean over the pairs of modalities that the output has views of; None where it has fewer than two."""
        losses = [
            contrastive_loss(
                output.views[first],
                output.views[second],
                output.view_contents[first],
                output.view_contents[second],
                temperature=self.contrastive_temperature,
            )
            for first, second in combinations(sorted(output.views), 2)
        ]
        return torch.stack(losses).mean() if losses else None


def _on_host(batch: HistoryBatch) -> HistoryBatch:
    return batch if batch.host is None else batch.host
