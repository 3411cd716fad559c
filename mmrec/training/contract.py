"""What the training loop takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from mmrec.batch import HistoryBatch, ModelOutput
from mmrec.training.loss import LossTerms
from mmrec.training.progress import Record


@runtime_checkable
class BatchLoader(Protocol):
    """Batches of an epoch, the same for the same (seed, epoch, index) whatever was read before."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def batches(self, *, epoch: int, start: int) -> Iterator[HistoryBatch]:
        """Yield the batches of ``epoch`` (from 0) from index ``start`` on."""
        ...


@runtime_checkable
class WorkCounter(Protocol):
    """Counts encoding work for the log; its counts are no part of the training's state."""

    def count(self, batch: HistoryBatch) -> None:
        """Take note of a batch, on the CPU, before it is run."""
        ...

    def read(self) -> Mapping[str, float]:
        """Return figures by name for the log: of the last batch, or of all work since the call before."""
        ...


Loss = Callable[[ModelOutput, HistoryBatch, Tensor | None], LossTerms]
"""Output, batch and bank to loss terms.  Whatever it learns must belong to the model."""


OnValidation = Callable[[int, float], bool]
"""Called after each evaluation with the epochs done and the value of the metric; True asks to stop there."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop.

    Args:
        epochs: passes over the users.
        metric: validation metric that selects the best checkpoint and stops training.
        higher_is_better: whether more of ``metric`` is better.
        accumulate: batches whose gradients are added up, weighted by their targets, before a step.
        clip_norm: gradient norm is clipped to this.
        warmup_share: share of the steps over which the rate rises.
        precision: auto is bfloat16 on a GPU and float32 elsewhere.
        patience: evaluations without improvement before training stops.
        evaluate_every: epochs between two evaluations; the last epoch is always evaluated.
        bank_refresh: steps between two refreshes of the bank.
        checkpoint_steps: steps between two checkpoints beside the one at each epoch's end; 0 for none.
        keep_checkpoints: newest checkpoints kept, beside the best.
        log_steps: steps between two log records.
        seed: seed of dropout and of whatever else the model draws.
    """

    epochs: int
    metric: str
    higher_is_better: bool = True
    accumulate: int = 1
    clip_norm: float = 1.0
    warmup_share: float = 0.05
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    patience: int = 3
    evaluate_every: int = 1
    bank_refresh: int = 100
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    log_steps: int = 10
    seed: int = 0


@dataclass(frozen=True)
class StepReport:
    """What the progress callback sees after every step: how far, and the step's mean loss (NaN without targets)."""

    epoch: int
    step: int
    total_steps: int
    loss: float


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Args:
        best_metric: best validation metric, None where nothing was evaluated.
        best_checkpoint: folder that reached it, the last one where nothing was evaluated.
        last_checkpoint: folder of the final state.
        epochs: epochs done.
        steps: steps done.
        stopped_early: whether patience ran out, or the caller asked to stop.
        skipped_batches: batches without any target.
        seconds: time spent, earlier sessions included.
        history: one record an epoch.
    """

    best_metric: float | None
    best_checkpoint: Path
    last_checkpoint: Path
    epochs: int
    steps: int
    stopped_early: bool
    skipped_batches: int
    seconds: float
    history: list[Record]
