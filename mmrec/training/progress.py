"""How far a training has come: all that must survive a kill and is not a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import cast

from pydantic import TypeAdapter, ValidationError

from mmrec.errors import ArtifactError

Record = dict[str, int | float]
"""One line of the history: epoch, step, training loss, and validation metrics where there was an evaluation."""


@dataclass
class Progress:
    """Position, early stopping and history of one training.

    Attributes:
        batches_per_epoch: length of the loader; a resumed training must have the same.
        epoch: whole epochs done, their evaluation included.
        batch: batches done in the current epoch.
        step: groups of accumulated batches done, whether or not they had a target.
        bank_step: step at which the bank was last refreshed, -1 for never.
        group_targets: targets of the unfinished group of batches.
        group_terms: loss terms of the unfinished group, weighted by targets.
        epoch_targets: targets of the current epoch.
        epoch_loss: their summed loss.
        skipped_batches: batches without any target.
        best: best validation metric so far.
        best_checkpoint: name of the checkpoint that reached it.
        evaluations_since_best: evaluations without improvement.
        records: calls of ``Tracker.log`` so far.
        seconds: time spent training, earlier sessions included.
        history: one record an epoch.
    """

    batches_per_epoch: int
    epoch: int = 0
    batch: int = 0
    step: int = 0
    bank_step: int = -1
    group_targets: int = 0
    group_terms: dict[str, float] = field(default_factory=dict)
    epoch_targets: int = 0
    epoch_loss: float = 0.0
    skipped_batches: int = 0
    best: float | None = None
    best_checkpoint: str = ""
    evaluations_since_best: int = 0
    records: int = 0
    seconds: float = 0.0
    history: list[Record] = field(default_factory=list)

    def add_batch(self, terms: Mapping[str, float], *, targets: int) -> None:
        """Count one batch and its loss terms, of which ``loss`` is the total."""
        self.group_targets += targets
        for name, value in terms.items():
            self.group_terms[name] = self.group_terms.get(name, 0.0) + value * targets

    def finish_group(self) -> dict[str, float]:
        """Count one optimiser step and return the group's mean terms; empty where it had no target."""
        terms = {name: value / self.group_targets for name, value in self.group_terms.items()}
        self.epoch_targets += self.group_targets
        self.epoch_loss += self.group_terms.get("loss", 0.0)
        self.step += 1
        self.group_targets, self.group_terms = 0, {}
        return terms

    def finish_epoch(self, metrics: Mapping[str, float]) -> None:
        """Count one epoch and add its record to the history."""
        loss = self.epoch_loss / self.epoch_targets if self.epoch_targets else math.nan
        self.epoch += 1
        self.history.append({"epoch": self.epoch, "step": self.step, "loss": loss, **metrics})
        self.batch, self.epoch_targets, self.epoch_loss = 0, 0, 0.0

    def judge(self, value: float, *, checkpoint: str, higher_is_better: bool) -> None:
        """Compare a validation metric with the best so far; ties go to the earlier checkpoint."""
        better = self.best is None or (value > self.best if higher_is_better else value < self.best)
        if better:
            self.best, self.best_checkpoint, self.evaluations_since_best = value, checkpoint, 0
        else:
            self.evaluations_since_best += 1

    def to_state(self) -> dict[str, object]:
        """Return everything as JSON can hold it; numbers that are not finite become null."""
        state = asdict(self)
        state["history"] = [
            {name: value if math.isfinite(value) else None for name, value in record.items()} for record in self.history
        ]
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, object], *, batches_per_epoch: int, where: str) -> Progress:
        """Read back what :meth:`to_state` gave.

        Raises:
            ArtifactError: written by another version, or with another number of batches in an epoch.
        """
        known = {entry.name for entry in fields(cls)}
        if state.keys() != known:
            raise ArtifactError(
                "the training state of this version", got=f"other keys: {sorted(state.keys() ^ known)}", where=where
            )
        if state["batches_per_epoch"] != batches_per_epoch:
            raise ArtifactError(
                f"{state['batches_per_epoch']} batches in an epoch, as before",
                got=str(batches_per_epoch),
                where=where,
                fix="Resume with the feed, batch size and seed of the first start, or start afresh in another folder.",
            )
        records = cast("list[dict[str, float | None]]", state["history"])
        history = [{name: math.nan if value is None else value for name, value in record.items()} for record in records]
        try:
            return TypeAdapter(cls).validate_python({**state, "history": history})
        except ValidationError as error:
            raise ArtifactError("a training state", got=str(error), where=where) from error
