"""Composition root: the only module that turns configuration into objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mmrec.config import (
    Config,
    Encoder,
    ItemId,
    OpenClipImage,
    OpenClipText,
    Precomputed,
    TimmImage,
    TransformersText,
    Tuning,
)
from mmrec.encoders.item_id import ItemIdEncoder
from mmrec.encoders.precomputed import PrecomputedEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.tuning import Layers, choose_trunk_blocks
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader
from mmrec.feed.loader import HistoryLoader
from mmrec.feed.splits import Split
from mmrec.model.fusion import BottleneckFusion, ConcatFusion, Fusion
from mmrec.model.gru import GruUserEncoder
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.mean import MeanUserEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.model.user_encoder import UserEncoder
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.preprocessing.views import VectorTable
from mmrec.storage import read_json, write_json
from mmrec.training.contract import TrainSettings
from mmrec.training.loss import TrainingLoss
from mmrec.training.optimizer import EncoderRate, build_adamw, parameter_groups

IMAGE_SETTINGS = "image_preprocessing.json"
Preprocessor = TextPreprocessor | ImagePreprocessor


@dataclass(frozen=True)
class BuiltEncoder:
    """An encoder and what prepares its content.

    Args:
        module: the encoder.
        preprocessor: for captions or pictures; None where content needs none.
        tuning: what of it is trained; None where there is nothing pretrained.
        vectors: the table behind precomputed vectors.
    """

    module: nn.Module
    preprocessor: Preprocessor | None = None
    tuning: Tuning | None = None
    vectors: VectorTable | None = None


def build_encoders(
    config: Config, catalogue: Catalogue, *, num_ids: int, frozen: bool = False, saved: Path | None = None
) -> dict[str, BuiltEncoder]:
    """Build the encoders of a configuration, by modality.

    Args:
        config: the run's configuration.
        catalogue: the items, for precomputed vectors.
        num_ids: items that have an id vector.
        frozen: build every pretrained encoder as it is before training, all of it trunk.
        saved: folder of the preprocessors that a run was trained with; None takes those of the encoders.
    """
    built = {}
    for seed, (modality, settings) in enumerate(config.encoders.items(), start=config.train.seed):
        if frozen and not isinstance(settings, ItemId | Precomputed):
            settings = settings.model_copy(update={"tuning": Tuning()})
        built[modality] = _build_encoder(
            modality, settings, config=config, catalogue=catalogue, num_ids=num_ids, seed=seed
        )
        if saved is not None:
            built[modality] = replace(built[modality], preprocessor=_saved(built[modality], saved / modality))
    return built


def save_preprocessors(encoders: Mapping[str, BuiltEncoder], folder: Path) -> None:
    """Write what prepares captions and pictures, one folder a modality."""
    for name, encoder in encoders.items():
        match encoder.preprocessor:
            case TextPreprocessor():
                (folder / name).mkdir(parents=True, exist_ok=True)
                encoder.preprocessor.save(folder / name)
            case ImagePreprocessor():
                write_json(folder / name / IMAGE_SETTINGS, encoder.preprocessor.to_dict())


def _saved(encoder: BuiltEncoder, folder: Path) -> Preprocessor | None:
    match encoder.preprocessor:
        case TextPreprocessor():
            return TextPreprocessor.load(folder)
        case ImagePreprocessor():
            return ImagePreprocessor.from_dict(read_json(folder / IMAGE_SETTINGS))
    return None


def _build_encoder(
    modality: str, settings: Encoder, *, config: Config, catalogue: Catalogue, num_ids: int, seed: int
) -> BuiltEncoder:
    where = f"encoders.{modality}"
    match settings:
        case TransformersText():
            return _transformers_text(settings, seed=seed, where=where)
        case TimmImage():
            return _timm_image(settings, seed=seed, where=where)
        case OpenClipText():
            return _open_clip_text(settings, seed=config.train.seed, where=where)
        case OpenClipImage():
            return _open_clip_image(settings, seed=config.train.seed, where=where)
        case ItemId():
            return BuiltEncoder(ItemIdEncoder(num_ids, config.model.dim, seed=seed))
        case Precomputed():
            table = VectorTable.load(Path(settings.path), catalogue)
            return BuiltEncoder(PrecomputedEncoder(table.vector_dim), vectors=table)


def _cut(tuning: Tuning, layers: Layers, where: str) -> int:
    return choose_trunk_blocks(tuning.mode, blocks=tuning.blocks, layers=layers, where=f"{where}.tuning")


def _transformers_text(settings: TransformersText, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.transformers_text import TransformersStack, load_text_model

    model = load_text_model(settings.model, random_weights=settings.random_weights, seed=seed)
    stack = TransformersStack(model)
    limit = min(settings.max_tokens, stack.max_tokens)
    preprocessor = TextPreprocessor.from_transformers(settings.model, max_tokens=limit)
    encoder = TextEncoder(stack, trunk_blocks=_cut(settings.tuning, stack.layers, where))
    return BuiltEncoder(encoder, preprocessor, settings.tuning)


def _timm_image(settings: TimmImage, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.image import ImageEncoder
    from mmrec.encoders.timm_image import TimmStack, load_timm_model

    loaded = load_timm_model(
        settings.model,
        weights=settings.weights,
        random_weights=settings.random_weights,
        seed=seed,
        side=settings.side,
    )
    stack = TimmStack(loaded.model, side=settings.side)
    encoder = ImageEncoder(
        stack,
        trunk_blocks=_cut(settings.tuning, stack.layers, where),
        mean=settings.mean or loaded.mean,
        std=settings.std or loaded.std,
        token_grid=settings.token_grid,
    )
    return BuiltEncoder(encoder, ImagePreprocessor(side=settings.side), settings.tuning)


def _open_clip_text(settings: OpenClipText, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.clip import load_open_clip, open_clip_text_encoder, open_clip_text_stack

    pair = load_open_clip(
        settings.model, pretrained=settings.pretrained, random_weights=settings.random_weights, seed=seed
    )
    layers = open_clip_text_stack(pair).layers
    encoder = open_clip_text_encoder(pair, trunk_blocks=_cut(settings.tuning, layers, where))
    preprocessor = TextPreprocessor.from_open_clip(
        pair.source, context_length=pair.context_length, reads_padding=pair.reads_padding
    )
    return BuiltEncoder(encoder, preprocessor, settings.tuning)


def _open_clip_image(settings: OpenClipImage, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.clip import load_open_clip, open_clip_image_encoder, open_clip_image_stack

    pair = load_open_clip(
        settings.model, pretrained=settings.pretrained, random_weights=settings.random_weights, seed=seed
    )
    layers = open_clip_image_stack(pair).layers
    encoder = open_clip_image_encoder(
        pair, trunk_blocks=_cut(settings.tuning, layers, where), token_grid=settings.token_grid
    )
    return BuiltEncoder(encoder, ImagePreprocessor(side=pair.side), settings.tuning)


def build_model(config: Config, encoders: Mapping[str, BuiltEncoder], *, num_events: int) -> RecommenderModel:
    """Build the recommender around its encoders, with initial weights that depend on the seed alone.

    Args:
        config: the run's configuration.
        encoders: by modality.
        num_events: names of events in the feed.
    """
    model, ids = config.model, config.encoders.get("item_id")
    content = [name for name in encoders if name != "item_id"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return RecommenderModel(
            item_encoder=ItemEncoder(
                encoders={name: encoder.module for name, encoder in encoders.items()},
                fusion=_build_fusion(config, num_modalities=len(content)) if content else None,
                dim=model.dim,
                id_dropout=ids.dropout if isinstance(ids, ItemId) else 0.0,
                id_gate=ids.gate if isinstance(ids, ItemId) else "frequency",
                modality_dropout=model.fusion.modality_dropout,
                feature_dropout=model.fusion.feature_dropout,
            ),
            user_encoder=_build_user_encoder(config, num_events=num_events),
            scorer=Scorer(
                dim=model.dim,
                similarity=model.similarity,
                temperature=model.temperature,
                item_bias=model.item_bias,
            ),
            contrastive_items=config.objective.contrastive_items if config.objective.contrastive_weight else 0,
        )


def _build_fusion(config: Config, *, num_modalities: int) -> Fusion:
    fusion, dim = config.model.fusion, config.model.dim
    match fusion.kind:
        case "bottleneck":
            return BottleneckFusion(
                dim=dim,
                num_modalities=num_modalities,
                num_latents=fusion.latents,
                num_layers=fusion.layers,
                num_heads=fusion.heads,
                dropout=fusion.dropout,
            )
        case "concat":
            return ConcatFusion(dim=dim, num_modalities=num_modalities, dropout=fusion.dropout)


def _build_user_encoder(config: Config, *, num_events: int) -> UserEncoder:
    user, dim = config.model.user, config.model.dim
    events = num_events if user.events else 0
    match user.kind:
        case "transformer":
            return TransformerUserEncoder(
                dim=dim,
                num_layers=user.layers,
                num_heads=user.heads,
                max_length=config.train.history_length,
                dropout=user.dropout,
                num_events=events,
                time_gaps=user.time_gaps,
            )
        case "gru":
            return GruUserEncoder(
                dim=dim,
                num_layers=user.layers,
                dropout=user.dropout,
                num_events=events,
                time_gaps=user.time_gaps,
            )
        case "mean":
            return MeanUserEncoder()


def build_loader(
    config: Config, histories: Histories, split: Split, reader: ItemReader, *, negatives: npt.NDArray[np.bool_]
) -> HistoryLoader:
    """Build the training batches of a feed.

    Args:
        config: the run's configuration.
        histories: the feed's interactions.
        split: tells which of them may be used.
        reader: gives the items' contents.
        negatives: shape (items,), items that may be taken as not chosen.
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
    )


def build_loss(
    config: Config,
    histories: Histories,
    split: Split,
    *,
    num_windows: int,
    negatives: npt.NDArray[np.bool_],
    first_seen: npt.NDArray[np.int64],
) -> TrainingLoss:
    """Build the objective, with what it knows of the feed.

    Args:
        config: the run's configuration.
        histories: the feed's interactions.
        split: tells which of them may be used.
        num_windows: windows of an epoch; the in-batch correction takes each for a user that shows an item once, which
            is exact where every history fits one window.
        negatives: shape (items,), items that may be taken as not chosen.
        first_seen: shape (items,), of the catalogue; counts where the split asks for existing items only.
    """
    objective = config.objective
    return TrainingLoss(
        kind=objective.kind,
        chunk=objective.chunk,
        mask_history=objective.mask_history,
        contrastive_weight=objective.contrastive_weight,
        sampled_zeros=objective.kind == "bce" and objective.negatives > 0,
        num_users=num_windows,
        users_with_item=torch.from_numpy(users_with_item(histories, split)),
        eligible=torch.from_numpy(negatives),
        first_seen=torch.from_numpy(first_seen.copy()) if split.existing_only and histories.has_time else None,
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
