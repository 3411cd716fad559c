"""The configuration of a run: nested, frozen, strict.

An unknown key is an error that lists near names.  Config stops at :mod:`mmrec.build`; every other room takes plain
keyword arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from mmrec.config_encoders import (
    Attributes,
    Count,
    Encoder,
    ItemId,
    OpenClipImage,
    OpenClipText,
    Positive,
    PositiveFloat,
    Precomputed,
    Settings,
    Share,
    TimmImage,
    TransformersText,
    Tuning,
)
from mmrec.settings_files import settings_error

__all__ = [
    "Attributes",
    "Config",
    "Encoder",
    "Feed",
    "Fusion",
    "ItemId",
    "Model",
    "Objective",
    "OpenClipImage",
    "OpenClipText",
    "Precomputed",
    "Settings",
    "TimmImage",
    "Train",
    "TransformersText",
    "Tuning",
    "User",
    "validate",
]


class Fusion(Settings):
    """How the modalities of an item become one vector."""

    kind: Literal["bottleneck", "concat"] = "bottleneck"
    """bottleneck: learned latents cross-attend to all tokens; concat: pooled modalities side by side."""
    latents: Positive = 4
    """Latent tokens of the bottleneck."""
    layers: Positive = 1
    """Cross-attention layers."""
    heads: Positive = 4
    """Attention heads."""
    dropout: Share = 0.1
    """Dropout inside fusion."""
    feature_dropout: Share = 0.1
    """Share of a content's channels that are hidden in a training step."""
    modality_dropout: Share = 0.1
    """Share of items with several modalities that lose one of them in a training step."""


class User(Settings):
    """How a history becomes a user vector."""

    kind: Literal["transformer", "gru", "mean"] = "transformer"
    """transformer: causal, pre-norm; gru; mean of the items."""
    layers: Positive = 2
    """Layers (all but mean)."""
    heads: Positive = 4
    """Attention heads (transformer)."""
    dropout: Share = 0.2
    """Dropout on inputs, attention and feed-forward."""
    events: bool = True
    """Embed the event's name where the feed has events."""
    time_gaps: bool = True
    """Embed the time since the previous instant where the feed has real timestamps."""


class Model(Settings):
    """The recommender's own part."""

    dim: Positive = 128
    """Width of item and user vectors."""
    fusion: Fusion = Fusion()
    """Item side."""
    user: User = User()
    """User side."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """cosine: unit item and user vectors over a learned temperature; dot: plain inner product."""
    temperature: PositiveFloat = 0.05
    """Initial temperature of the cosine."""
    item_bias: bool = True
    """Add a bias that is read off the item's content, so that a new post has one too."""
    trend_days: Count = 7
    """Known items gain by how far their popularity rose in the last days of training, by a weight that validation
    chooses; 0 switches it off.  It needs item ids, an item bias and real timestamps."""
    late_shares: tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...] = ()
    """Late unimodal scores: shares of the vector that a modality alone gives, of which validation chooses one or none for
    each modality, to be part of an item's vector outside training; empty switches it off.  Each candidate of each modality
    reads the validation histories once more."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Model:
        for part in (self.fusion, self.user):
            if part.kind in {"bottleneck", "transformer"} and self.dim % part.heads:
                raise ValueError(f"dim {self.dim} must be a multiple of the {part.heads} heads of the {part.kind}")
        return self


class Objective(Settings):
    """What training minimises."""

    kind: Literal["full_softmax", "in_batch_softmax", "bpr", "bce", "mse"] = "full_softmax"
    """full_softmax: the whole catalogue, fresh where the batch has the item, from the bank elsewhere."""
    negatives: Count = 256
    """Items drawn uniformly from the catalogue and encoded afresh in every step; ``bce`` takes them for values of 0, so
    set 0 where the feed has zeros of its own."""
    bank_refresh: Positive = 100
    """Steps between two refreshes of the bank of catalogue vectors."""
    mask_history: bool = True
    """Do not count items of the user's own history as negatives: nobody buys a post twice in one basket, but many come
    back for it."""
    contrastive_weight: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the image-text contrastive loss; 0 switches it off."""
    contrastive_items: Positive = 256
    """At most this many items of a batch enter the contrastive loss."""
    chunk: Positive = 8192
    """Catalogue rows scored at once; bounds memory."""
    matryoshka_dims: tuple[Positive, ...] = ()
    """Also train the vectors' first so many dimensions, rising and below ``model.dim``, so that ``mmrec export --dim`` loses
    little: the loss is the mean over these widths and the full one (Kusupati et al. 2022); empty switches it off."""
    matryoshka_weights: tuple[PositiveFloat, ...] = ()
    """Weight of each of them beside 1 for the full width; empty weighs all alike."""

    @model_validator(mode="after")
    def _widths_rise(self) -> Objective:
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if list(dims) != sorted(set(dims)):
            raise ValueError(f"matryoshka_dims must rise, such as [32, 64], not {list(dims)}")
        if weights and len(weights) != len(dims):
            raise ValueError(f"matryoshka_weights must be one for each of the {len(dims)} matryoshka_dims, or empty")
        return self


class Train(Settings):
    """The training loop."""

    epochs: Positive = 20
    """Passes over the users."""
    batch_users: Positive = 256
    """Users in an optimiser step."""
    accumulate: Positive = 1
    """Batches whose gradients are added up before a step."""
    items_at_once: Count = 0
    """Keep the activations of this many distinct items at most and compute the others again in the backward pass, which
    costs one more forward pass and lets a batch of any size fit; 0 keeps all."""
    history_length: Positive = 50
    """Most recent events a user's history is cut to."""
    simultaneous: Literal["apart", "shuffled"] = "shuffled"
    """apart: events of one instant never see each other in training; shuffled: they take an order drawn anew every
    epoch, so that a basket teaches what is chosen together.  Evaluation always keeps them apart."""
    max_images: Positive = 4
    """Pictures of one post that are used."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of everything but pretrained encoders."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW weight decay on matrices."""
    warmup_share: Share = 0.05
    """Share of the steps over which the rate rises; then it falls along a cosine."""
    clip_norm: PositiveFloat = 1.0
    """Gradient norm is clipped to this."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 elsewhere."""
    seed: int = 0
    """Seed of weights, order, dropout and negatives."""
    patience: Positive = 3
    """Evaluations without improvement before training stops."""
    evaluate_every: Positive = 1
    """Epochs between two evaluations on the validation cases."""
    validation_cases: Count = 0
    """At most this many validation cases, drawn by seed; 0 takes all."""
    metric: str = "ndcg@10"
    """Validation metric that selects the best checkpoint."""
    cold_cost: Share | None = None
    """Share of the warm cases' hits (HR@5 to HR@20) that cold items among the candidates may cost: validation gives known
    items the least bonus that keeps to it.  It needs a cold_items split that holds warm cases out; null leaves cold items their scores."""
    checkpoint_steps: Count = 0
    """Steps between two checkpoints beside the one at each epoch's end; 0 for none."""
    shard_encoders: bool = False
    """Share the live blocks of encoders out among the processes of a training (FSDP2), with their gradients and AdamW's
    state, where one device cannot hold all four.  Weights are whole while a batch runs; each process also loads them whole
    first.  Of a single process no effect."""
    compile: bool = False
    """Have torch.compile translate the live blocks of encoders and the layers of the transformer user encoder as they are
    first run, which takes a compiler and some minutes; never what is frozen.  Results are the same to rounding, so that
    a resumed training agrees with an uninterrupted one to rounding too, no longer to the bit."""
    device_contents: Share = 0.25
    """Share of a GPU's free memory in which captions, pictures and cached trunk states may lie from the start, so that
    a batch brings their numbers alone; 0 sends contents with every batch.  Of a CPU no effect."""
    trunk_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of cached trunk states."""
    trunk_cache: bool = True
    """Run frozen blocks once per distinct content and keep their output on disk."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics are sent beside metrics.jsonl."""
    workers: Count = 1
    """Threads that prepare batches ahead; 0 prepares them in step."""

    @model_validator(mode="after")
    def _blocks_run_in_step(self) -> Train:
        if self.shard_encoders and self.items_at_once:
            raise ValueError("shard_encoders and items_at_once do not go together: processes run different slices")
        return self

    @model_validator(mode="after")
    def _compiled_blocks_run_once(self) -> Train:
        if self.compile and self.items_at_once:
            raise ValueError(
                "compile and items_at_once do not go together: what the backward pass computes again may be compiled "
                "otherwise than in the forward pass; set one of them to its default"
            )
        if self.compile and self.shard_encoders:
            raise ValueError("compile and shard_encoders do not go together (never tried); set one of them to false")
        return self


class Feed(Settings):
    """Which part of the prepared feed is used."""

    split: str | None = None
    """Name of a split of the prepared feed; None takes its default."""


class Config(Settings):
    """A whole run."""

    encoders: dict[str, Encoder]
    """Modality name to encoder.  Captions feed ``text``, pictures ``image``, ids ``item_id``, attribute columns ``attributes``."""
    feed: Feed = Feed()
    """Input."""
    model: Model = Model()
    """The recommender's own part."""
    objective: Objective = Objective()
    """What training minimises."""
    train: Train = Train()
    """The training loop."""

    @model_validator(mode="after")
    def _widths_fit_model(self) -> Config:
        dims = self.objective.matryoshka_dims
        if dims and dims[-1] >= self.model.dim:
            raise ValueError(f"matryoshka_dims must be below model.dim {self.model.dim}, which is trained anyway")
        return self

    @model_validator(mode="after")
    def _encoders_fit_modalities(self) -> Config:
        fits: dict[str, tuple[type[Settings], ...]] = {
            "text": (TransformersText, OpenClipText),
            "image": (TimmImage, OpenClipImage),
            "item_id": (ItemId,),
            "attributes": (Attributes,),
        }
        if not self.encoders:
            raise ValueError("at least one encoder is needed")
        for modality, encoder in self.encoders.items():
            wanted = fits.get(modality, (Precomputed,))
            if not isinstance(encoder, wanted):
                kinds = ", ".join(str(w.model_fields["kind"].annotation) for w in wanted)
                raise ValueError(f"modality {modality!r} takes {kinds}, not kind {encoder.kind!r}")
        return self


def _known_keys(path: Sequence[str | int]) -> list[str]:
    """Names that would have been right beside the last part of ``path``."""
    model: type[BaseModel] = Config
    kinds: dict[str, type[BaseModel]] = {
        "transformers": TransformersText,
        "timm": TimmImage,
        "open_clip_text": OpenClipText,
    }
    kinds |= {"open_clip_image": OpenClipImage, "item_id": ItemId, "precomputed": Precomputed}
    kinds["attributes"] = Attributes
    for part in path[:-1]:
        if isinstance(part, str) and part in kinds and model is Config:
            model = kinds[part]
        elif isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return sorted(model.model_fields)


def validate(values: Mapping[str, object], *, where: str) -> Config:
    """Turn nested plain values into a :class:`Config`.

    Args:
        values: nested mappings as read from YAML.
        where: name of the source, for messages.

    Raises:
        ConfigError: an unknown key (near names listed), a wrong type or a value out of range.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise settings_error(error, known=_known_keys, where=where) from error
