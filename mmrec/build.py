"""Composition root: the only place that turns configuration into objects; here what is trained, a model of encoders.

What trains it is built in :mod:`mmrec.build_training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mmrec.config import (
    Attributes,
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
from mmrec.encoders.attributes import AttributeEncoder
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.item_id import ItemIdEncoder
from mmrec.encoders.precomputed import PrecomputedEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.tuning import Layers, choose_trunk_blocks
from mmrec.encoders.work import EncodingWork
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.ids import Ids
from mmrec.model.fusion import BottleneckFusion, ConcatFusion, Fusion
from mmrec.model.gru import GruUserEncoder
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.mean import MeanUserEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.model.user_encoder import UserEncoder
from mmrec.preprocessing.attribute_table import AttributeTable, read_vocabulary
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.preprocessing.views import VectorTable
from mmrec.storage import read_json, write_json

IMAGE_SETTINGS = "image_preprocessing.json"
VOCABULARY = "vocabulary.json"
Preprocessor = TextPreprocessor | ImagePreprocessor | AttributePreprocessor
ItemTable = VectorTable | AttributeTable
"""What a catalogue's items have of a modality that needs no trunk: contents by row, and the row of each item."""


@dataclass(frozen=True)
class BuiltEncoder:
    """An encoder and what prepares its content.

    Args:
        module: the encoder.
        preprocessor: for captions, pictures or attributes; None where content needs none.
        tuning: what of it is trained; None where there is nothing pretrained.
        table: the items' precomputed vectors or attributes.
    """

    module: nn.Module
    preprocessor: Preprocessor | None = None
    tuning: Tuning | None = None
    table: ItemTable | None = None

    @property
    def work(self) -> EncodingWork | None:
        """What the encoder has run; None where nothing is run that would be worth counting."""
        return self.module.work if isinstance(self.module, CutEncoder) else None


def build_encoders(
    config: Config, catalogue: Catalogue, *, ids: Ids, frozen: bool = False, saved: Path | None = None
) -> dict[str, BuiltEncoder]:
    """Build the encoders of a configuration, by modality.

    Args:
        config: the run's configuration.
        catalogue: the items, for precomputed vectors and attributes.
        ids: what training saw: the items that have an id vector, and those whose attributes count.
        frozen: build every pretrained encoder as it is before training, all of it trunk.
        saved: folder of the preprocessors that a run was trained with; None takes those of the encoders, and reads the
            vocabulary of attributes off the catalogue.

    Raises:
        ConfigError: an encoder that cannot be had, or an attribute column that the catalogue does not have.
    """
    built = {}
    for seed, (modality, settings) in enumerate(config.encoders.items(), start=config.train.seed):
        if frozen and not isinstance(settings, ItemId | Precomputed | Attributes):
            settings = settings.model_copy(update={"tuning": Tuning()})
        folder = None if saved is None else saved / modality
        built[modality] = _build_encoder(
            modality, settings, config=config, catalogue=catalogue, ids=ids, saved=folder, seed=seed
        )
        if folder is not None:
            built[modality] = replace(built[modality], preprocessor=_saved(built[modality], folder))
    return built


def save_preprocessors(encoders: Mapping[str, BuiltEncoder], folder: Path) -> None:
    """Write what prepares captions, pictures and attributes, one folder a modality."""
    for name, encoder in encoders.items():
        match encoder.preprocessor:
            case TextPreprocessor():
                (folder / name).mkdir(parents=True, exist_ok=True)
                encoder.preprocessor.save(folder / name)
            case ImagePreprocessor():
                write_json(folder / name / IMAGE_SETTINGS, encoder.preprocessor.to_dict())
            case AttributePreprocessor():
                write_json(folder / name / VOCABULARY, encoder.preprocessor.to_dict())


def _saved(encoder: BuiltEncoder, folder: Path) -> Preprocessor | None:
    match encoder.preprocessor:
        case TextPreprocessor():
            return TextPreprocessor.load(folder)
        case ImagePreprocessor():
            return ImagePreprocessor.from_dict(read_json(folder / IMAGE_SETTINGS))
    return encoder.preprocessor


def _build_encoder(
    modality: str,
    settings: Encoder,
    *,
    config: Config,
    catalogue: Catalogue,
    ids: Ids,
    saved: Path | None,
    seed: int,
) -> BuiltEncoder:
    where = f"encoders.{modality}"
    match settings:
        case TransformersText():
            return _transformers_text(settings, seed=seed, where=where)
        case TimmImage():
            return _timm_image(settings, seed=seed, where=where)
        case OpenClipText() | OpenClipImage():
            # Both halves of a pair start from the same weights, random ones too.
            return _open_clip(settings, seed=config.train.seed, where=where)
        case ItemId():
            return BuiltEncoder(ItemIdEncoder(len(ids.item_ids), config.model.dim, seed=seed))
        case Precomputed():
            table = VectorTable.load(Path(settings.path), catalogue)
            return BuiltEncoder(PrecomputedEncoder(table.vector_dim), table=table)
        case Attributes():
            return _attributes(
                settings, config=config, catalogue=catalogue, ids=ids, saved=saved, seed=seed, where=where
            )


def _attributes(
    settings: Attributes, *, config: Config, catalogue: Catalogue, ids: Ids, saved: Path | None, seed: int, where: str
) -> BuiltEncoder:
    key = f"{where}.columns"
    if saved is not None:
        vocabulary = AttributePreprocessor.from_dict(read_json(saved / VOCABULARY))
    else:
        vocabulary = read_vocabulary(
            catalogue,
            ids.rows(catalogue) >= 0,
            columns=settings.columns,
            numbers=settings.numbers,
            separators=settings.separators,
            buckets=settings.buckets,
            min_count=settings.min_count,
            where=key,
        )
    encoder = AttributeEncoder(vocabulary.sizes, config.model.dim, others=vocabulary.others, seed=seed)
    return BuiltEncoder(encoder, vocabulary, table=AttributeTable.read(catalogue, vocabulary, where=key))


def _cut(tuning: Tuning, layers: Layers, where: str) -> int:
    return choose_trunk_blocks(tuning.mode, blocks=tuning.blocks, layers=layers, where=f"{where}.tuning")


def _transformers_text(settings: TransformersText, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.transformers_text import TransformersStack, load_text_model

    model = load_text_model(settings.model, random_weights=settings.random_weights, seed=seed, dropout=settings.dropout)
    stack = TransformersStack(model)
    limit = min(settings.max_tokens, stack.max_tokens)
    preprocessor = TextPreprocessor.from_transformers(settings.model, max_tokens=limit, windows=settings.windows)
    encoder = TextEncoder(stack, trunk_blocks=_cut(settings.tuning, stack.layers, where), window=limit)
    return BuiltEncoder(encoder, preprocessor, settings.tuning)


def _timm_image(settings: TimmImage, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.timm_image import TimmStack, load_timm_model

    loaded = load_timm_model(
        settings.model,
        weights=settings.weights,
        random_weights=settings.random_weights,
        seed=seed,
        side=settings.side,
    )
    stack = TimmStack(loaded.model, side=loaded.side)
    encoder = ImageEncoder(
        stack,
        trunk_blocks=_cut(settings.tuning, stack.layers, where),
        mean=settings.mean or loaded.mean,
        std=settings.std or loaded.std,
        token_grid=settings.token_grid,
    )
    return BuiltEncoder(encoder, ImagePreprocessor(side=loaded.side), settings.tuning)


def _open_clip(settings: OpenClipText | OpenClipImage, *, seed: int, where: str) -> BuiltEncoder:
    from mmrec.encoders.clip import load_open_clip, open_clip_image_stack, open_clip_text_stack

    pair = load_open_clip(
        settings.model, pretrained=settings.pretrained, random_weights=settings.random_weights, seed=seed
    )
    match settings:
        case OpenClipText():
            text = open_clip_text_stack(pair)
            preprocessor = TextPreprocessor.from_open_clip(
                pair.source,
                context_length=pair.context_length,
                reads_padding=pair.reads_padding,
                windows=settings.windows,
            )
            encoder = TextEncoder(text, trunk_blocks=_cut(settings.tuning, text.layers, where))
            return BuiltEncoder(encoder, preprocessor, settings.tuning)
        case OpenClipImage():
            image = open_clip_image_stack(pair)
            trunk_blocks = _cut(settings.tuning, image.layers, where)
            return BuiltEncoder(
                ImageEncoder(
                    image,
                    trunk_blocks=trunk_blocks,
                    mean=pair.mean,
                    std=pair.std,
                    token_grid=settings.token_grid,
                ),
                ImagePreprocessor(side=pair.side),
                settings.tuning,
            )


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
                items_at_once=config.train.items_at_once,
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
