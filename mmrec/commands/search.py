"""A question in words, pictures, items or a user in; posts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.errors import RequestError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import CONTENT_HASH, open_store
from mmrec.inference.posts import Post
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.search.index import Hits, Store
from mmrec.search.where import where_mask

_SHOWN = 60


@dataclass(frozen=True)
class Found:
    """Posts that were found, best first.

    Args:
        columns: of the rows.
        rows: one a post.
        note: why there are fewer than asked for, or empty.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    note: str

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"found": [dict(zip(self.columns, row, strict=True)) for row in self.rows], "note": self.note}


@dataclass(frozen=True)
class _Query:
    """What is looked for.

    Args:
        vector: shape (dim,).
        had: rows of the export that the asking user had.
        bonus: what their scores gain.
    """

    vector: npt.NDArray[np.float32]
    had: npt.NDArray[np.int64]
    bonus: float


def search_vectors(
    vectors: Path,
    *,
    text: str | None = None,
    images: Sequence[Path] = (),
    items: Sequence[str] = (),
    user: str | None = None,
    where: str = "",
    k: int = 10,
    run: Path | None = None,
    feed: Path | None = None,
    device: str = "auto",
) -> Found:
    """Find posts in an export.

    Text and pictures are encoded together, as one post.  Several questions are averaged as unit vectors.  A question
    about content leaves the bias (the general appeal of a post) out; a question about a user counts it.

    Args:
        vectors: folder of an export.
        text: a caption.
        images: picture files.
        items: item ids of the export.
        user: user id of the export's feed.
        where: conditions on attributes.
        k: posts wanted.
        run: run that encodes the question; by default the one that exported.
        feed: prepared feed that knows the user; by default the exported one.
        device: where to compute.

    Raises:
        ArtifactError: no export, one of another model than the run's, or a store that is damaged or unknown.
        MissingExtraError: the library of the export's store is not installed.
        RequestError: nothing asked, an unknown item or user, an unreadable picture, or a condition that is none.
    """
    folder = VectorFolder.open(vectors)
    ids, matrix = folder.vectors("items")
    table = folder.table()
    allowed = where_mask(table, where) if where.strip() else None
    place, of = run or Path(str(folder.manifest["run"])), feed or Path(str(folder.manifest["feed"]))
    load = partial(Recommender.load, place, feed=of, device=device)
    query = _query(folder, ids, matrix, text=text, images=images, items=items, user=user, load=load)
    store = open_store(folder, matrix)
    possible = len(ids) if allowed is None else int(allowed.sum())
    hits = _search(store, query, matrix, allowed, k=min(k, len(ids)))
    held = f"{possible} of {len(ids)} posts meet the conditions" if where.strip() else f"{possible} posts were exported"
    note = "" if possible >= k else f"only {held}, {k} were asked for"
    return _present(hits.rows[0], hits.scores[0], table, note)


def _query(
    folder: VectorFolder,
    ids: npt.NDArray[np.object_],
    matrix: npt.NDArray[np.float32],
    *,
    text: str | None,
    images: Sequence[Path],
    items: Sequence[str],
    user: str | None,
    load: Callable[[], Recommender],
) -> _Query:
    layout = folder.format
    content = matrix.shape[1] - int(layout.has_bias and not layout.normalised)
    directions, bias, bonus, had = [], 0.0, 0.0, np.zeros(0, dtype=np.int64)
    if text or images or user:
        recommender = load()
        folder.require_model(recommender.model_hash)
        if text or images:
            post = Post(caption=text, image=list(images) or None)
            directions.append(layout.shape(recommender.embed([post]))[0, :content])
        if user is not None:
            asked = recommender.scoring.users([Request("search", (), user_id=user)])
            if asked.error_messages[0] is not None:
                raise RequestError("a known user", got=asked.error_messages[0], where="--user")
            vector = asked.vectors.mean(dim=1).numpy()
            directions.append(layout.shape(vector)[0, :content])
            # Scaled with the direction, so that user, bias and repeat bonus keep their proportion.
            bias = 1.0 / max(float(np.linalg.norm(vector[0, :content])), 1e-12)
            bonus = bias * recommender.repeat_bonus
            past = [recommender.assembly.catalogue.item_ids[entry.row] for entry in asked.had[0]]
            rows = _rows(ids, past)
            had = np.unique(rows[rows >= 0])
    for item_id, row in zip(items, _rows(ids, items), strict=True):
        if row < 0:
            raise RequestError("the id of an exported item", got=repr(item_id), where="--item")
        directions.append(matrix[row, :content])
    if not directions:
        raise RequestError("a text, a picture, an item or a user", got="nothing", where="search")
    units = [direction / max(float(np.linalg.norm(direction)), 1e-12) for direction in directions]
    query = np.mean(units, axis=0)
    tail = [bias / len(directions)] if content < matrix.shape[1] else []
    vector = np.concatenate([query, tail]).astype(np.float32)
    return _Query(vector, had, bonus / len(directions))


def _rows(ids: npt.NDArray[np.object_], wanted: Sequence[object]) -> npt.NDArray[np.int64]:
    """Return the rows of some ids, -1 for one that the export does not hold."""
    if not wanted:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(pd.Index(ids).get_indexer(pd.Index([str(item_id) for item_id in wanted])), dtype=np.int64)


def _search(
    store: Store, query: _Query, matrix: npt.NDArray[np.float32], allowed: npt.NDArray[np.bool_] | None, *, k: int
) -> Hits:
    """Find the k best rows, what the user had with its bonus; a negative one may push that many out of the first."""
    found = min(k + len(query.had), len(matrix))
    hits = store.search(query.vector[None], k=found, allowed=allowed)
    had = query.had if allowed is None else query.had[allowed[query.had]]
    others = ~np.isin(hits.rows[0], had)
    rows = np.concatenate([hits.rows[0][others], had])
    scores = np.concatenate([hits.scores[0][others], matrix[had] @ query.vector + query.bonus])
    best = np.argsort(-scores, kind="stable")[:k]
    return Hits(rows[best][None], scores[best][None].astype(np.float32))


def _present(rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], table: pd.DataFrame, note: str) -> Found:
    kept = rows >= 0
    names = [name for name in table.columns if name not in {columns.ITEM_ID, columns.CAPTION, CONTENT_HASH}][:4]
    found = []
    for rank, (row, score) in enumerate(zip(rows[kept], scores[kept], strict=True), start=1):
        entry = table.iloc[int(row)]
        caption = "" if pd.isna(entry[columns.CAPTION]) else str(entry[columns.CAPTION])
        short = caption if len(caption) <= _SHOWN else caption[: _SHOWN - 1] + "…"
        item_id = entry[columns.ITEM_ID]
        item_id = int(item_id) if isinstance(item_id, np.integer | Decimal) else item_id
        shown = tuple(None if pd.isna(entry[name]) else str(entry[name]) for name in names)
        found.append((rank, item_id, round(float(score), 4), short, *shown))
    return Found(("rank", columns.ITEM_ID, columns.SCORE, columns.CAPTION, *names), tuple(found), note)
