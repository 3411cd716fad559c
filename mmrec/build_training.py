"""What trains a model, from configuration: batches, objective, optimiser and the settings of the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch

from mmrec.build import BuiltEncoder
from mmrec.config import Config
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader
from mmrec.feed.loader import HistoryLoader
from mmrec.feed.splits import Split
from mmrec.model.recommender import RecommenderModel
from mmrec.run_folder import RunFolder
from mmrec.training.contract import TrainSettings
from mmrec.training.loss import TrainingLoss
from mmrec.training.nested_loss import NestedLoss
from mmrec.training.optimizer import EncoderRate, build_adamw, parameter_groups
from mmrec.training.ranks import ALONE, Ranks
from mmrec.training.tracking import JsonLinesTracker, MlflowTracker, TensorBoardTracker, Tracker, WandbTracker


def build_loader(
    config: Config,
    histories: Histories,
    split: Split,
    reader: ItemReader,
    *,
    negatives: npt.NDArray[np.bool_],
    ranks: Ranks = ALONE,
    watch: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> HistoryLoader:
    """Build the training batches of a feed.

    Args:
        config: the run's configuration.
        histories: the feed's interactions.
        split: tells which of them may be used.
        reader: gives the items' contents.
        negatives: shape (items,), items that may be taken as not chosen.
        ranks: the processes that share each batch.
        watch: opens a context around the preparation of each batch.
    """
    train, objective = config.train, config.objective
    in_batch = objective.kind == "in_batch_softmax"
    return HistoryLoader(
        histories,
        split,
        reader,
        batch_users=train.batch_users,
        history_length=train.history_length,
        negatives=negatives,
        num_negatives=0 if objective.kind == "mse" else objective.negatives,
        simultaneous=train.simultaneous,
        seed=train.seed,
        # The logQ correction counts on batches drawn uniformly.
        bucket=1 if in_batch else 8,
        prefetch=2 * train.workers,
        rank=ranks.rank,
        num_ranks=ranks.count,
        watch=watch,
    )


def build_loss(
    config: Config,
    histories: Histories,
    split: Split,
    *,
    num_windows: int,
    negatives: npt.NDArray[np.bool_],
    first_seen: npt.NDArray[np.int64],
    ranks: Ranks = ALONE,
) -> TrainingLoss | NestedLoss:
    """Build the objective, with what it knows of the feed.

    Args:
        config: the run's configuration.
        histories: the feed's interactions.
        split: tells which of them may be used.
        num_windows: windows of an epoch; the in-batch correction takes each for a user that shows an item once, which
            is exact where every history fits one window.
        negatives: shape (items,), items that may be taken as not chosen.
        first_seen: shape (items,), of the catalogue; counts where the split asks for existing items only.
        ranks: the processes that share each batch.
    """
    objective, model = config.objective, config.model
    loss = TrainingLoss(
        kind=objective.kind,
        chunk=objective.chunk,
        mask_history=objective.mask_history,
        contrastive_weight=objective.contrastive_weight,
        sampled_zeros=objective.kind == "bce" and objective.negatives > 0,
        num_users=num_windows,
        users_with_item=torch.from_numpy(users_with_item(histories, split)),
        eligible=torch.from_numpy(negatives),
        first_seen=torch.from_numpy(first_seen.copy()) if split.existing_only and histories.has_time else None,
        sum_over_ranks=ranks.sum,
    )
    if not objective.matryoshka_dims:
        return loss
    return NestedLoss(
        loss=loss,
        dims=objective.matryoshka_dims,
        weights=objective.matryoshka_weights,
        has_bias=model.item_bias,
        keeps_length=model.similarity == "cosine",
    )


def users_with_item(histories: Histories, split: Split) -> npt.NDArray[np.int64]:
    """Count the users whose training events hold each item, shape (items,)."""
    events = np.flatnonzero(split.train_events)
    num_items = len(split.item_roles)
    pairs = np.unique(histories.user_rows[events] * num_items + histories.item_rows[events])
    return np.bincount(pairs % num_items, minlength=num_items)


def build_optimizer(
    config: Config, model: RecommenderModel, encoders: Mapping[str, BuiltEncoder]
) -> torch.optim.Optimizer:
    """Build AdamW with the rates of the configuration."""
    rates = {
        name: EncoderRate(
            layers=model.item_encoder.encoder(name).layer_groups(),
            learning_rate=encoder.tuning.learning_rate,
            layer_decay=encoder.tuning.layer_decay,
        )
        for name, encoder in encoders.items()
        if encoder.tuning is not None
    }
    groups = parameter_groups(
        model,
        learning_rate=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
        encoder_rates=rates,
    )
    return build_adamw(groups)


def build_settings(config: Config) -> TrainSettings:
    """Build the settings of the training loop."""
    train = config.train
    return TrainSettings(
        epochs=train.epochs,
        metric=train.metric,
        accumulate=train.accumulate,
        clip_norm=train.clip_norm,
        warmup_share=train.warmup_share,
        precision=train.precision,
        patience=train.patience,
        evaluate_every=train.evaluate_every,
        bank_refresh=config.objective.bank_refresh,
        checkpoint_steps=train.checkpoint_steps,
        seed=train.seed,
    )


def build_trackers(config: Config, run: RunFolder) -> list[Tracker]:
    """Open the trackers of a configuration, metrics.jsonl always among them."""
    flat = {"config": json.dumps(config.model_dump(mode="json"))}
    trackers: list[Tracker] = [JsonLinesTracker(run.metrics)]
    for name in config.train.trackers:
        match name:
            case "tensorboard":
                trackers.append(TensorBoardTracker(run.path / "tensorboard"))
            case "wandb":
                trackers.append(WandbTracker(run.path / "wandb", project="mmrec", name=run.path.name, settings=flat))
            case "mlflow":
                trackers.append(
                    MlflowTracker(run.path / "mlflow", experiment="mmrec", name=run.path.name, settings=flat)
                )
    return trackers
