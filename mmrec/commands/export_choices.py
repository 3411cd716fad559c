"""Sizes and number formats side by side: bytes of a post, and what each loses.  Nothing is written but the run's own table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from mmrec.commands.export import layout_of
from mmrec.encoders.compute import ComputeDtype
from mmrec.inference.export_recall import questions_of, recall_against_full
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import WrittenVectors
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.search.packed import Precision


def compare_choices(
    run: Path,
    *,
    dim: int | None = None,
    normalise: bool = False,
    feed: Path | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> list[dict[str, object]]:
    """Measure what an export would lose in each number format and at several widths.

    The widths are the full one, a half, a quarter, and those that were trained for (``objective.matryoshka_dims``).

    Args:
        run: run folder.
        dim: one more width.
        normalise: as for an export.
        feed: prepared feed, by default the run's own.
        device: where to compute.
        compute_dtype: number format in which encoders run, see :meth:`Recommender.load`.
        notify: told what is about to be done.
        meter: shows progress.

    Returns:
        One row a choice, largest first.

    Raises:
        ArtifactError: not a run.
        RequestError: more dimensions than the model has.
    """
    recommender = Recommender.load(
        run, feed=feed, device=device, compute_dtype=compute_dtype, notify=notify, meter=meter
    )
    asked = layout_of(recommender, dim=dim, precision="float32", normalise=normalise)
    whole, trained = recommender.assembly.model.dim, recommender.assembly.config.objective.matryoshka_dims
    dims = sorted({whole, whole // 2 or 1, whole // 4 or 1, *trained, dim or whole}, reverse=True)
    formats: tuple[Precision, ...] = get_args(Precision)
    layouts = [
        replace(asked, dim=None if width == whole else width, precision=precision)
        for width in dims
        for precision in formats
    ]
    vectors = recommender.item_embeddings(meter=meter)
    with meter("recall"):
        found = recall_against_full(vectors, layouts, questions_of(recommender, vectors))
    rows: list[dict[str, object]] = []
    for layout, lost in zip(layouts, found, strict=True):
        width = layout.dim or whole
        rows.append(
            {
                "dim": width,
                "trained": "yes" if width == whole or width in trained else "no",
                "precision": layout.precision,
                "bytes a post": WrittenVectors(vectors, layout).bytes_per_vector,
                **lost,
            }
        )
    return rows
