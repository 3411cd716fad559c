"""Run in, folder of vectors out: parquet and a manifest always, an index where one is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec import columns
from mmrec.commands.export_engine import EngineChoice
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import ArtifactError, RequestError
from mmrec.feed.catalogue import Catalogue, restore_ids
from mmrec.inference.embedding_table import EmbeddingTable, item_keys
from mmrec.inference.export import EXPORT_VERSION, MANIFEST, STORED, VectorFolder, write_arrays, write_vectors
from mmrec.inference.export_index import (
    CONTENT_HASH,
    IndexChoice,
    IndexKind,
    StoreKind,
    build_index,
    hash_index,
    shown,
)
from mmrec.inference.export_recall import questions_of, recall_against_full
from mmrec.inference.projection import MAP, project
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.search.packed import Precision
from mmrec.storage import atomic_folder, file_hash, read_json, write_array, write_json

_USERS = 2048
_INTERNAL = (columns.CAPTION_ROW, columns.FIRST_SEEN)


def export_run(
    run: Path,
    *,
    out: Path,
    store: StoreKind = "none",
    index: IndexKind | None = None,
    precision: Precision = "float32",
    dim: int | None = None,
    normalise: bool = False,
    only_new: bool = False,
    users: bool = True,
    with_map: bool = False,
    engine: EngineChoice | None = None,
    feed: Path | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> dict[str, object]:
    """Write the vectors of a catalogue and of its users.

    Args:
        run: run folder.
        out: folder to write; an export that is there is replaced when the new one is whole.
        store: index beside the parquet files.
        index: kind of a FAISS index, by default HNSW.
        precision: number format of the vectors.
        dim: leading content dimensions kept.
        normalise: unit vectors without the bias coordinate.
        only_new: take the vectors of posts whose content did not change from the export that is there.
        users: write user vectors too.
        with_map: lay the catalogue out in two dimensions, for the page of ``mmrec serve``.
        engine: who encodes, by default this process.
        feed: prepared feed, by default the run's own.
        device: where to compute.
        compute_dtype: number format in which encoders run, see :meth:`Recommender.load`.
        notify: told what is about to be done.
        meter: shows progress.

    Returns:
        What was written; of smaller vectors also their recall against the full ones, with an index its recall@10
        against exact search in what was written.

    Raises:
        ArtifactError: ``out`` holds something else, or ``only_new`` on an export of another model or format, or a changed
            one.
        MissingExtraError: the store's or the engine's library is not installed.
        RequestError: more dimensions than the model has, an index that cannot be built of these posts, or a place of
            blocks that cannot be reached.
    """
    choice, engine = IndexChoice(store, index), engine or EngineChoice()
    _check_target(out)
    engine.check(out)
    recommender = Recommender.load(
        run,
        feed=feed,
        device=device,
        fill_caches=engine.is_local,
        compute_dtype=compute_dtype,
        notify=notify,
        meter=meter,
    )
    catalogue = recommender.assembly.catalogue
    layout = layout_of(recommender, dim=dim, precision=precision, normalise=normalise)
    attributes = _attributes(catalogue)
    choice.check(len(catalogue), list(attributes))
    earlier = _earlier(out, recommender, layout) if only_new else []
    blocks = engine.block_run(recommender, out, device)
    vectors = WrittenVectors(recommender.item_embeddings(meter=meter, earlier=earlier, encode=blocks), layout)
    lost = _lost(recommender, vectors, meter) if layout.lossy else None
    temperature = _temperature(recommender, layout)
    with atomic_folder(out) as partial:
        extra: dict[str, list[object]] = {CONTENT_HASH: [*item_keys(recommender.assembly)], **attributes}
        _write_side(partial, "items", _ids(catalogue), vectors, extra)
        if precision != "float32":
            write_arrays(partial, vectors)
        if users:
            _write_users(partial, recommender, layout, meter)
        laid_out = None
        if with_map:
            with meter("map"):
                laid_out = project(vectors.vectors, has_bias=recommender.has_bias)
            write_array(partial / MAP, laid_out.points)
        files = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
        about = None
        if store != "none":
            with meter("index"):
                about = build_index(partial, choice, temperature=temperature)
        write_json(
            partial / MANIFEST,
            {
                "export_version": EXPORT_VERSION,
                "run": str(run.resolve()),
                "feed": str(catalogue.folder.resolve()),
                "feed_hash": catalogue.feed_hash,
                "model_hash": recommender.model_hash,
                "compute_dtype": compute_dtype,
                "metric": "inner_product",
                "repeat_bonus": recommender.repeat_bonus,
                "temperature": temperature,
                "items": len(vectors),
                "users": recommender.assembly.histories.num_users if users else 0,
                "dim": vectors.shape[1],
                "format": vars(layout),
                "bytes_per_item": vectors.bytes_per_vector,
                "against_full": lost,
                "store": store,
                "index": about,
                "map": None if laid_out is None else laid_out.about(),
                "files": files | hash_index(partial),
            },
        )
    if blocks is not None and engine.blocks is None:
        blocks.remove()
    return {
        "folder": str(out),
        "items": len(vectors),
        "items encoded": recommender.items_encoded if blocks is None else blocks.items_encoded,
        **({} if blocks is None else {"blocks": blocks.blocks, "blocks kept": blocks.blocks_kept}),
        "dim": int(vectors.shape[1]),
        "precision": precision,
        "bytes a post": vectors.bytes_per_vector,
        **(lost or {}),
        **shown(about),
        **({} if laid_out is None else {"map": laid_out.told}),
    }


def layout_of(recommender: Recommender, *, dim: int | None, precision: Precision, normalise: bool) -> VectorFormat:
    """Return the format that an export asks for.

    Raises:
        RequestError: more dimensions than the model has.
    """
    model = recommender.assembly.model
    if dim is not None and dim > model.dim:
        raise RequestError(f"at most {model.dim} dimensions", got=str(dim), where="--dim")
    return VectorFormat(
        precision=precision,
        normalised=normalise,
        dim=None if dim == model.dim else dim,
        has_bias=recommender.has_bias,
        keeps_length=model.scorer.similarity == "cosine",
    )


def _lost(recommender: Recommender, vectors: WrittenVectors, meter: Meter) -> dict[str, float]:
    """Measure smaller vectors against the full ones."""
    with meter("recall"):
        asked = questions_of(recommender, vectors.vectors)
        return recall_against_full(vectors.vectors, [vectors.layout], asked)[0]


def _ids(catalogue: Catalogue) -> list[str] | list[int]:
    return catalogue.external_ids(np.arange(len(catalogue)))


def _attributes(catalogue: Catalogue) -> dict[str, list[object]]:
    """Return the caption and every attribute column, for filters and for showing results."""
    table = catalogue.attributes.drop(columns=[columns.ITEM_ID, *_INTERNAL], errors="ignore")
    shown: dict[str, list[object]] = {
        columns.CAPTION: [catalogue.caption(row) for row in range(len(catalogue))],
    }
    for name in table.columns:
        if name not in {*shown, *STORED, CONTENT_HASH}:
            shown[str(name)] = [None if pd.isna(value) else value for value in table[name]]
    return shown


def _check_target(out: Path) -> None:
    """Refuse to replace anything but an export or an empty folder.

    Raises:
        ArtifactError: there is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file() or "export_version" not in read_json(out / MANIFEST):
        raise ArtifactError(
            "a new folder, or an export to replace",
            got="one that holds something else",
            where=str(out),
            fix="Choose another --out.",
        )


def _earlier(out: Path, recommender: Recommender, layout: VectorFormat) -> list[EmbeddingTable]:
    """Return the vectors of the export that is there, where its format kept them as they were.

    Raises:
        ArtifactError: an export of another model or format, or one whose vectors were changed.
    """
    if not (out / MANIFEST).is_file():
        return []
    old = VectorFolder.open(out)
    computed = recommender.assembly.compute_dtype
    if old.compute_dtype != computed:
        raise ArtifactError(
            f"an export by encoders that ran in {computed}",
            got=f"one by encoders in {old.compute_dtype}",
            where=str(out),
            fix=f"Give --compute-dtype {old.compute_dtype}, or leave out --only-new.",
        )
    old.require_model(recommender.model_hash)
    if old.format != layout:
        raise ArtifactError(
            f"an export in the format {json.dumps(vars(layout))}",
            got=json.dumps(vars(old.format)),
            where=str(out),
            fix="Give the same options, or leave out --only-new.",
        )
    if layout.lossy or layout.normalised:
        return []
    # What is carried over is written under a new hash: a file that changed meanwhile must not pass for a whole one.
    old.verify("items.parquet")
    return [EmbeddingTable(old.table()[CONTENT_HASH].tolist(), old.vectors("items")[1])]


def _write_side(
    folder: Path,
    side: str,
    ids: list[str] | list[int],
    vectors: WrittenVectors,
    extra: Mapping[str, list[object]],
) -> None:
    write_vectors(folder / f"{side}.parquet", ids, vectors, id_column=f"{side[:-1]}_id", extra=extra)


def _write_users(folder: Path, recommender: Recommender, layout: VectorFormat, meter: Meter) -> None:
    """Write one vector a user (of several interests, their mean)."""
    histories, items = recommender.assembly.histories, recommender.catalogue_tensor
    pieces = []
    with meter("users") as advance:
        for start in range(0, histories.num_users, _USERS):
            rows = np.arange(start, min(start + _USERS, histories.num_users))
            pieces.append(recommender.scoring.feed_user_vectors(rows, items).mean(dim=1).numpy())
            advance(len(rows))
    ids = restore_ids(histories.user_ids, histories.user_id_type)
    _write_side(folder, "users", ids, WrittenVectors(np.concatenate(pieces), layout), {})


def _temperature(recommender: Recommender, layout: VectorFormat) -> float | None:
    """Return by what a user's content is divided beside a bias of 1; None where vectors hold no bias."""
    if not layout.ends_in_bias:
        return None
    return float(recommender.assembly.model.scorer.temperature().detach())
