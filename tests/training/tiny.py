"""A model, a loss and a loader small enough to train in milliseconds, with everything that makes resuming hard:
dropout, a buffer, a frozen part, a bank, a batch without targets, accumulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmrec.batch import HistoryBatch, ItemBatch, ModelOutput, Targets, UserBatch
from mmrec.training.contract import TrainSettings
from mmrec.training.loss import LossTerms
from mmrec.training.optimizer import build_adamw, parameter_groups

ITEMS, USERS, TIME, DIM = 12, 4, 3, 5


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.items = nn.Embedding(ITEMS, DIM)
        self.mix = nn.Linear(DIM, DIM)
        self.base = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("forwards", torch.zeros(()))
        self.forwards: Tensor
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.base.requires_grad_(False)

    def encode(self, item_rows: Tensor) -> Tensor:
        return self.dropout(self.base(self.items(item_rows)))

    def forward(self, batch: HistoryBatch) -> ModelOutput:
        if self.training:
            self.forwards += 1
        items = self.encode(batch.items.item_rows)
        slots = batch.users.item_positions[batch.targets.user_index, batch.targets.time_index]
        return ModelOutput(item_embeddings=items, target_vectors=self.mix(items[slots]))


def tiny_loss(output: ModelOutput, batch: HistoryBatch, bank: Tensor | None) -> LossTerms:
    scores = output.target_vectors @ output.item_embeddings.T
    own = nn.functional.cross_entropy(scores, batch.targets.item_positions)
    rest = own.new_zeros(()) if bank is None else (output.target_vectors @ bank.T).logsumexp(1).mean()
    return LossTerms(total=own + 0.1 * rest, parts={"own": own, "rest": rest}, num_targets=len(batch.targets))


def make_batch(*, seed: int, num_targets: int) -> HistoryBatch:
    """A batch of all items, whose targets are at the last slot of histories of ``TIME`` events."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    targets = Targets(
        user_index=draw(USERS, num_targets),
        time_index=torch.full((num_targets,), TIME - 1),
        item_positions=draw(ITEMS, num_targets),
        action=torch.zeros(num_targets, dtype=torch.long),
        value=torch.full((num_targets,), torch.nan),
        weight=torch.ones(num_targets),
        impression=torch.full((num_targets,), -1),
        together=torch.zeros(num_targets, dtype=torch.bool),
    )
    users = UserBatch(
        item_positions=draw(ITEMS, USERS, TIME),
        valid=torch.ones(USERS, TIME, dtype=torch.bool),
        instants=torch.arange(TIME).expand(USERS, TIME),
    )
    return HistoryBatch(
        items=ItemBatch(item_rows=torch.arange(ITEMS), parts={}),
        users=users,
        targets=targets,
        negatives=torch.zeros(0, dtype=torch.long),
        user_rows=torch.arange(USERS),
    )


@dataclass(frozen=True)
class TinyLoader:
    """``sizes[i]`` targets in batch i of every epoch."""

    sizes: tuple[int, ...] = (5, 3, 0, 4, 6, 2, 5)

    def __len__(self) -> int:
        return len(self.sizes)

    def batches(self, *, epoch: int, start: int) -> Iterator[HistoryBatch]:
        for index in range(start, len(self.sizes)):
            yield make_batch(seed=1000 * epoch + index, num_targets=self.sizes[index])


@dataclass
class TinyTraining:
    """Everything that :func:`mmrec.training.loop.train` takes, made anew as a new process would."""

    folder: Path

    def __post_init__(self) -> None:
        self.model = TinyModel()
        groups = parameter_groups(self.model, learning_rate=0.05, weight_decay=0.1, encoder_rates={})
        self.optimizer = build_adamw(groups)
        self.loader = TinyLoader()
        self.accelerator = Accelerator(cpu=True)

    def validate(self) -> dict[str, float]:
        torch.rand(3)
        batch = make_batch(seed=99, num_targets=8)
        return {"fit": -float(tiny_loss(self.model(batch), batch, None).total), "constant": 0.5}

    def refresh_bank(self) -> Tensor:
        return self.model.encode(torch.arange(ITEMS))


def settings(
    *,
    epochs: int = 4,
    accumulate: int = 2,
    checkpoint_steps: int = 2,
    patience: int = 3,
    metric: str = "fit",
    evaluate_every: int = 1,
    keep_checkpoints: int = 2,
    higher_is_better: bool = True,
) -> TrainSettings:
    return TrainSettings(
        epochs=epochs,
        metric=metric,
        higher_is_better=higher_is_better,
        accumulate=accumulate,
        patience=patience,
        evaluate_every=evaluate_every,
        bank_refresh=3,
        checkpoint_steps=checkpoint_steps,
        keep_checkpoints=keep_checkpoints,
        log_steps=1,
        seed=11,
    )
