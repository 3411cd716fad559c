"""A model on a feed: everything that training, evaluation, scoring and export need, put together once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from mmrec.build import BuiltEncoder, build_encoders, build_model
from mmrec.config import Config
from mmrec.encoders.base import ContentEncoder
from mmrec.encoders.compute import ComputeDtype, emulates_bfloat16
from mmrec.encoders.cut import CutEncoder
from mmrec.errors import ConfigError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.ids import Ids
from mmrec.feed.items import ContentSource, ItemReader, Modality, optional_links, picture_links
from mmrec.feed.splits import Split
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.trunk_cache import CacheEstimate, build_trunk_cache, is_cached
from mmrec.model.recommender import RecommenderModel
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.preprocessing.views import IdTable, pixel_view, token_view
from mmrec.storage import RaggedArray, content_hash


@dataclass(frozen=True)
class Assembly:
    """A model and the feed it runs on.

    Args:
        config: what it was built from.
        catalogue: the items.
        histories: the interactions.
        encoders: by modality.
        model: the recommender, on ``device``.
        reader: the items' contents, from caches where a trunk is frozen.
        device: where it computes.
        bases: fingerprints of the frozen weights as they were loaded, by modality.
        compute_dtype: number format in which the encoders run.
    """

    config: Config
    catalogue: Catalogue
    histories: Histories
    encoders: Mapping[str, BuiltEncoder]
    model: RecommenderModel
    reader: ItemReader
    device: torch.device
    bases: Mapping[str, str]
    compute_dtype: ComputeDtype = "float32"

    @property
    def words(self) -> TextPreprocessor | None:
        """What turns captions into tokens."""
        found = [e.preprocessor for e in self.encoders.values() if isinstance(e.preprocessor, TextPreprocessor)]
        return found[0] if found else None

    @property
    def pixels(self) -> ImagePreprocessor | None:
        """What turns pictures into pixels."""
        found = [e.preprocessor for e in self.encoders.values() if isinstance(e.preprocessor, ImagePreprocessor)]
        return found[0] if found else None

    @property
    def vocabulary(self) -> AttributePreprocessor | None:
        """What turns attributes into codes."""
        found = [e.preprocessor for e in self.encoders.values() if isinstance(e.preprocessor, AttributePreprocessor)]
        return found[0] if found else None

    @property
    def trunks(self) -> dict[str, LiveTrunk]:
        """What runs the frozen part of each encoder on contents that are in no cache, by modality."""
        found = {}
        for name, built in self.encoders.items():
            encoder = cast("ContentEncoder", built.module)
            if encoder.has_trunk:
                found[name] = LiveTrunk(encoder, None, self.config.train.trunk_dtype, self.device)
        return found

    @property
    def all_rows(self) -> npt.NDArray[np.int64]:
        """Every row of the catalogue."""
        return np.arange(len(self.catalogue))


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count() if cuda else 0)), *["mps"] * mps]
    if name != "cuda" and name not in found or name == "cuda" and not cuda:
        raise ConfigError(f"a device of this machine (auto, {', '.join(found)})", got=repr(name), where="--device")
    return torch.device(name)


def split_fingerprint(split: Split) -> str:
    """Hash what a split lets training use and what it asks, so that a run is never measured on another one."""
    cases = [
        array
        for part in split.parts.values()
        for array in (part.user_rows, part.history_stops, part.target_starts, part.target_stops)
    ]
    arrays = [split.train_events, split.item_roles, *cases]
    return content_hash(split.kind, *(np.ascontiguousarray(array).tobytes() for array in arrays))


def assemble(
    config: Config,
    feed: Path,
    ids: Ids,
    *,
    device: torch.device,
    event_names: Sequence[str] | None = None,
    preprocessing: Path | None = None,
    fill_caches: bool = True,
    compute_dtype: ComputeDtype = "float32",
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> Assembly:
    """Put a model with initial weights together with a prepared feed.

    Args:
        config: what to build.
        feed: prepared feed.
        ids: items that have an id vector.
        device: where to compute.
        event_names: names of events that the model knows; None takes the feed's own.
        preprocessing: folder of the preprocessors that a run was trained with; None takes those of the encoders.
        fill_caches: run trunks over what their caches lack; otherwise such a trunk runs where an item is read.
        compute_dtype: number format in which encoders of captions and pictures run; float32 where they are trained.
        notify: told about caches before they are written.
        meter: shows the progress of caches.

    Raises:
        ConfigError: an unknown format, or an encoder that does not run in it.
    """
    if compute_dtype not in get_args(ComputeDtype):
        raise ConfigError(
            f"a number format to compute in ({', '.join(get_args(ComputeDtype))})",
            got=repr(compute_dtype),
            where="compute_dtype",
        )
    catalogue, histories = Catalogue.load(feed), Histories.load(feed)
    if event_names is not None:
        histories = with_event_names(histories, event_names)
    encoders = build_encoders(config, catalogue, ids=ids, saved=preprocessing)
    model = build_model(config, encoders, num_events=len(histories.event_names)).to(device)
    bases = _bases(encoders)
    if compute_dtype == "bfloat16":
        _run_in_bfloat16(encoders, device, notify)
    reader = build_reader(
        config, catalogue, encoders, ids, device=device, fill_caches=fill_caches, notify=notify, meter=meter
    )
    return Assembly(config, catalogue, histories, encoders, model, reader, device, bases, compute_dtype)


def _bases(encoders: Mapping[str, BuiltEncoder]) -> dict[str, str]:
    found = {name: cast("ContentEncoder", built.module).trunk_fingerprint() for name, built in encoders.items()}
    return {name: fingerprint for name, fingerprint in found.items() if fingerprint}


def _run_in_bfloat16(encoders: Mapping[str, BuiltEncoder], device: torch.device, notify: Notify) -> None:
    if emulates_bfloat16(device):
        notify("this machine has no products of bfloat16: float32 is faster here")
    for built in encoders.values():
        if isinstance(built.module, CutEncoder):
            built.module.to(device).to_bfloat16()


def with_event_names(histories: Histories, names: Sequence[str]) -> Histories:
    """Return histories whose event codes count in ``names``; -1 for a name that is not among them."""
    codes = histories.event_codes
    if codes is not None:
        place = {name: code for code, name in enumerate(names)}
        codes = np.array([place.get(name, -1) for name in histories.event_names], dtype=np.int16)[codes]
    return replace(histories, event_names=list(names), event_codes=codes if names else None)


def build_reader(
    config: Config,
    catalogue: Catalogue,
    encoders: Mapping[str, BuiltEncoder],
    ids: Ids,
    *,
    device: torch.device,
    fill_caches: bool = True,
    notify: Notify,
    meter: Meter,
) -> ItemReader:
    """Open (the first time: derive) what the encoders want of every item: tokens, pixels, or states of their trunks."""
    modalities = {}
    for name, built in encoders.items():
        raw = _raw(name, built, config, catalogue, ids, notify, meter)
        links, source, hashes, prints = raw.links, raw.source, raw.hashes, raw.fingerprint
        encoder, dtype = cast("ContentEncoder", built.module.to(device)), config.train.trunk_dtype
        if not encoder.has_trunk or hashes is None:
            modalities[name] = Modality(links, source)
            continue
        place = catalogue.folder / "trunks"
        if not config.train.trunk_cache or not (
            fill_caches or is_cached(encoder, hashes, place, preprocessing_fingerprint=prints, dtype=dtype)
        ):
            modalities[name] = Modality(links, LiveTrunk(encoder, source, dtype, device))
        else:
            with meter(f"{name} trunk") as advance:
                cache = build_trunk_cache(
                    encoder,
                    source,
                    hashes,
                    place,
                    preprocessing_fingerprint=prints,
                    dtype=dtype,
                    device=device,
                    work=built.work,
                    progress=advance.at,
                    notify=partial(_tell, notify, name),
                )
            modalities[name] = Modality(links, cache)
    return ItemReader(modalities)


def _tell(notify: Notify, name: str, estimate: CacheEstimate) -> None:
    notify(f"{name} trunk: {estimate}")


@dataclass(frozen=True)
class _Raw:
    """A modality as it comes.

    Args:
        links: the contents of each item.
        source: raw contents.
        hashes: shape (contents, 16), what the states of a trunk are found by; None where none could be cached.
        fingerprint: hash of what else decides raw contents.
    """

    links: RaggedArray
    source: ContentSource
    hashes: npt.NDArray[np.uint8] | None = None
    fingerprint: str = ""


def _raw(
    name: str,
    built: BuiltEncoder,
    config: Config,
    catalogue: Catalogue,
    ids: Ids,
    notify: Notify,
    meter: Meter,
) -> _Raw:
    """Read a modality's raw contents, and tell what was found in them."""
    if isinstance(built.preprocessor, TextPreprocessor):
        with meter(f"{name} tokens") as advance:
            tokens = token_view(catalogue, built.preprocessor, progress=advance.at)
        if tokens.truncated:
            notify(_cut(name, tokens.truncated, len(tokens), built.preprocessor))
        hashes = tokens.state_hashes(catalogue.captions.hashes, window=built.preprocessor.max_tokens)
        return _Raw(optional_links(catalogue.caption_rows), tokens, hashes, built.preprocessor.window_fingerprint)
    if isinstance(built.preprocessor, ImagePreprocessor):
        with meter(f"{name} pixels") as advance:
            pixels = pixel_view(catalogue, built.preprocessor, workers=2, progress=advance.at)
        links = picture_links(catalogue, max_images=config.train.max_images)
        return _Raw(links, pixels, catalogue.pictures.hashes, built.preprocessor.fingerprint)
    if built.table is not None:
        if isinstance(built.preprocessor, AttributePreprocessor):
            notify(f"{name}: {built.preprocessor}")
        return _Raw(optional_links(built.table.rows), built.table)
    return _Raw(optional_links(ids.rows(catalogue)), IdTable(ids.counts, ids.trends))


def _cut(name: str, truncated: int, captions: int, words: TextPreprocessor) -> str:
    limit = (
        f"{words.max_tokens} tokens" if words.windows == 1 else f"{words.windows} windows of {words.max_tokens} tokens"
    )
    return f"{name}: {truncated:,} of {captions:,} captions are longer than {limit} and are cut"
