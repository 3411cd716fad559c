"""An index over a million vectors against exact search by the same library, and filters on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch

from benchmarks.made_run import RunShape
from benchmarks.made_vectors import MadeExport, Vectors, make_export
from benchmarks.measure import Row, alternate, ratios
from mmrec.commands.index import index_export
from mmrec.commands.search import search_vectors
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import IndexKind, open_store
from mmrec.search.index import Store, recall

K = 10
ALONE = 50
"""Questions put one by one."""


@dataclass(frozen=True)
class Shapes:
    """Sizes.

    Args:
        run: of the trained model; all of its caption encoder is live.
        items: vectors searched.
        questions: asked.
        kinds: of index.
    """

    run: RunShape
    items: int
    questions: int
    kinds: tuple[IndexKind, ...]


def _captions(items: int, users: int, topics: int, text: tuple[int, int, int], epochs: int) -> RunShape:
    return RunShape(items, users, 8, topics, 8.0, text, None, 32, 64, live=True, epochs=epochs)


SHAPES = {
    "small": Shapes(_captions(200, 60, 20, (32, 1, 2), 1), 5_000, 60, ("hnsw",)),
    "cpu": Shapes(_captions(4_000, 2_000, 200, (64, 2, 2), 4), 1_000_000, 1_000, ("hnsw", "ivfpq")),
    "gpu": Shapes(_captions(4_000, 2_000, 200, (64, 2, 2), 4), 1_000_000, 1_000, ("hnsw", "ivfpq")),
}


def search(*, size: str, device: str, rounds: int, items: int | None = None) -> Iterator[Row]:
    """Measure opening, recall, questions a second, and filters.

    Args:
        size: small, cpu or gpu.
        device: where vectors are made; an index is searched on the CPU.
        rounds: turns of each side.
        items: vectors, in place of the million whose graph takes a core the better part of an hour.
    """
    shapes = SHAPES[size]
    faiss.omp_set_num_threads(torch.get_num_threads())
    with TemporaryDirectory() as folder:
        export = make_export(Path(folder), shapes.run, items or shapes.items, device=device)
        questions = export.questions(shapes.questions)
        for kind in shapes.kinds:
            start = time.perf_counter()
            index_export(export.folder, index=kind)
            seconds = time.perf_counter() - start
            yield from _index_rows(export, questions, kind, build=seconds, size=size, rounds=rounds)
        yield from _filter_rows(export)


def _index_rows(
    export: MadeExport, questions: Vectors, kind: str, *, build: float, size: str, rounds: int
) -> Iterator[Row]:
    count, width = export.vectors.shape
    where = f"{kind}, {count:,} vectors of width {width}"
    folder = VectorFolder.open(export.folder)
    opened = []
    for _ in range(rounds):
        start = time.perf_counter()
        store = open_store(folder, export.vectors)
        store.search(questions[:1], k=K)
        opened.append(time.perf_counter() - start)
    yield Row(
        "search",
        f"opening the index and a first question, {where}",
        tuple(opened),
        bound="at most",
        target=1.0,
        unit="s",
        details={"building it s": build},
    )
    flat = faiss.IndexFlatIP(width)
    flat.add(export.vectors)
    exact = flat.search(questions, K)[1]
    found = store.search(questions, k=K).rows
    half = len(questions) // 2
    yield Row(
        "search",
        f"recall@{K} of {len(questions):,} questions, {where}",
        (recall(found, exact),),
        target=0.95,
        unit="share",
        details={"captions": recall(found[:half], exact[:half]), "users": recall(found[half:], exact[half:])},
    )
    for what, sides in _sides(store, flat, questions).items():
        seconds = alternate(sides, rounds=rounds)
        yield Row(
            "search",
            f"questions a second over exact search, {what}, {where}",
            ratios(seconds["exact"], seconds["index"]),
            target=None if size == "small" else 15.0,
            details={f"{name} s": min(values) for name, values in seconds.items()},
        )


def _sides(store: Store, flat: faiss.Index, questions: Vectors) -> dict[str, dict[str, Callable[[], object]]]:
    """Ask all at once, where exact search is one blocked product, and one by one, as people do."""
    alone = np.split(questions[:: max(1, len(questions) // ALONE)][:ALONE], min(ALONE, len(questions)))
    return {
        f"{len(questions):,} at once": {
            "index": lambda: store.search(questions, k=K),
            "exact": lambda: flat.search(questions, K),
        },
        "one by one": {
            "index": lambda: [store.search(question, k=K) for question in alone],
            "exact": lambda: [flat.search(question, K) for question in alone],
        },
    }


def _filter_rows(export: MadeExport) -> Iterator[Row]:
    """Ask with conditions that many, few and fewer than k posts meet: k rows must come, or all there are and a reason."""
    ids, _ = VectorFolder.open(export.folder).vectors("items")
    prices = VectorFolder.open(export.folder).table()["price"].to_numpy()
    generator = np.random.default_rng(5)
    conditions = {
        "topic=t3": export.topics == 3,
        "price<3 and topic!=t3": (prices < 3) & (export.topics != 3),
        "price=7 and topic in (t1, t2)": (prices == 7) & np.isin(export.topics, [1, 2]),
        "price<0": np.zeros(len(ids), dtype=bool),
    }
    right, seconds = [], []
    for condition, holds in conditions.items():
        start = time.perf_counter()
        found = search_vectors(export.folder, items=[str(generator.choice(ids))], where=condition, k=K)
        seconds.append(time.perf_counter() - start)
        wanted = min(K, int(holds.sum()))
        meet = {str(item_id) for item_id in ids[holds]}
        right.append(
            len(found.rows) == wanted
            and all(str(row[1]) in meet for row in found.rows)
            and (wanted == K) == (not found.note)
        )
    yield Row(
        "search",
        f"filters that give {K} posts that meet them, or all of fewer and say so",
        (float(np.mean(right)),),
        target=1.0,
        unit="share",
        details={"conditions": len(conditions), "fastest call s": min(seconds), "slowest call s": max(seconds)},
    )
