"""Settings of the encoders, and what every group of settings is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """Base of every group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class Tuning(Settings):
    """Which part of a pretrained encoder is trained."""

    mode: Literal["frozen", "top", "full"] = "frozen"
    """frozen: nothing; top: the last ``blocks`` blocks; full: everything."""
    blocks: Count = 0
    """Blocks trained when mode is ``top``."""
    learning_rate: PositiveFloat = 5e-5
    """Learning rate of the top-most live block."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Each block below learns at this share of the one above it."""

    @model_validator(mode="after")
    def _blocks_match_mode(self) -> Tuning:
        if (self.mode == "top") != (self.blocks > 0):
            raise ValueError("blocks must be positive when mode is 'top', and 0 otherwise")
        return self


class TransformersText(Settings):
    """A text encoder of the transformers library."""

    kind: Literal["transformers"]
    model: str
    """Hub name, folder, or ``package:IMPORT_NAME`` for weights that a Python package carries."""
    max_tokens: Annotated[int, Field(ge=4)] = 64
    """Longer captions are cut, and counted."""
    windows: Positive = 1
    """A caption longer than ``max_tokens`` is read in so many windows of that length at most, one after the other, before
    it is cut; captions that fit are not touched."""
    dropout: Share | None = 0.0
    """Dropout inside the blocks that are trained; none keeps the model's own, which costs a CPU a fifth of the step."""
    random_weights: bool = False
    """Start from random weights of the model's shape instead of its trained ones."""
    tuning: Tuning = Tuning()
    """What is trained."""


class TimmImage(Settings):
    """An image encoder of the timm library."""

    kind: Literal["timm"]
    model: str
    """timm model name, or ``hf-hub:`` tag, or a folder with config.json."""
    weights: str | None = None
    """A safetensors file, or ``converted:NAME`` for one made by ``mmrec convert-weights``; None takes timm's own
    pretrained weights."""
    random_weights: bool = False
    """Start from random weights instead of trained ones."""
    side: Positive = 224
    """Pictures are padded to a square and resized to this many pixels a side."""
    token_grid: Count = 0
    """Pool the patches to this many a side before fusion; 0 keeps them all."""
    mean: tuple[float, float, float] | None = None
    """Channel means in [0, 1]; None takes the model's own."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations; None takes the model's own."""
    tuning: Tuning = Tuning()
    """What is trained."""


class OpenClipText(Settings):
    """The text half of an open_clip pair."""

    kind: Literal["open_clip_text"]
    model: str
    """open_clip model name, ``hf-hub:`` tag, or a folder with open_clip_config.json."""
    pretrained: str | None = None
    """open_clip pretrained tag or safetensors file."""
    random_weights: bool = False
    """Start from random weights instead of trained ones."""
    windows: Positive = 1
    """A caption longer than the model's context is read in so many windows of that length at most."""
    tuning: Tuning = Tuning()
    """What is trained."""


class OpenClipImage(Settings):
    """The image half of an open_clip pair."""

    kind: Literal["open_clip_image"]
    model: str
    """open_clip model name, ``hf-hub:`` tag, or a folder with open_clip_config.json."""
    pretrained: str | None = None
    """open_clip pretrained tag or safetensors file."""
    random_weights: bool = False
    """Start from random weights instead of trained ones."""
    token_grid: Count = 0
    """Pool the patches to this many a side before fusion; 0 keeps them all."""
    tuning: Tuning = Tuning()
    """What is trained."""


class ItemId(Settings):
    """A learned vector for each item that training saw."""

    kind: Literal["item_id"]
    dropout: Share = 0.2
    """Share of items whose id is hidden in a training step."""
    gate: Literal["frequency", "always"] = "frequency"
    """frequency: the id's weight depends on how often training saw the item; always: weight one."""


class Precomputed(Settings):
    """Vectors made elsewhere, one for each item that has one."""

    kind: Literal["precomputed"]
    path: str
    """Parquet file with item_id and a list column ``vector``."""


class Attributes(Settings):
    """Attribute columns of the items (category, brand, price, ...): each is one more token of an item.

    A cell may list several values, as a JSON list or with a separator between them.
    """

    kind: Literal["attributes"]
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Columns of the feed's items, such as ``[product_type_name, price]``."""
    numbers: tuple[str, ...] | None = None
    """Those of them that hold numbers or dates; None takes the columns in which every value is one, and more than
    ``buckets`` of these are different."""
    separators: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """What stands between the values of a cell, by column, such as ``{actors: ","}``; ``|`` where nothing is said."""
    buckets: Annotated[int, Field(ge=2)] = 16
    """Numbers are put into so many buckets, each of about as many of training's items."""
    min_count: Positive = 5
    """A value that fewer of training's items have shares one vector with all such and with unknown ones."""

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> Attributes:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must differ, not {list(self.columns)}")
        if not set(self.numbers or ()) <= set(self.columns):
            raise ValueError(f"numbers must be among columns {list(self.columns)}, not {list(self.numbers or ())}")
        if not set(self.separators) <= set(self.columns):
            raise ValueError(f"separators must be of columns {list(self.columns)}, not {list(self.separators)}")
        return self


Encoder = Annotated[
    TransformersText | TimmImage | OpenClipText | OpenClipImage | ItemId | Precomputed | Attributes,
    Field(discriminator="kind"),
]
