"""A question in words, pictures, items or a user in; posts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.errors import RequestError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import CONTENT_HASH, open_store
from mmrec.inference.posts import Post
from mmrec.inference.questions import Question, as_query
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Request
from mmrec.search.index import Hits, Rows, Store, VectorRows, Vectors
from mmrec.search.repeats import search_with_repeats
from mmrec.search.rescored import num_candidates
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

    An export that is cut or in a smaller number format gives candidates; where the run is at hand (a question of words,
    pictures or a user, or ``run``), they are scored again with full vectors, so that search and score agree.

    Args:
        vectors: folder of an export.
        text: a caption.
        images: picture files.
        items: item ids of the export.
        user: user id of the export's feed.
        where: conditions on attributes.
        k: posts wanted.
        run: run that encodes the question and scores again; by default the one that exported.
        feed: prepared feed that knows the user; by default the exported one.
        device: where to compute.

    Raises:
        ArtifactError: no export, one of another model than the run's, or a store that is damaged or unknown.
        MissingExtraError: the library of the export's store is not installed.
        RequestError: nothing asked, an unknown item or user, an unreadable picture, or a condition that is none.
    """
    folder = VectorFolder.open(vectors)
    ids, matrix = folder.items()
    table = folder.table()
    allowed = where_mask(table, where) if where.strip() else None
    if not (text or images or user is not None or items):
        raise RequestError("a text, a picture, an item or a user", got="nothing", where="search")
    recommender = None
    if text or images or user is not None or (run is not None and folder.format.lossy):
        place, of = run or Path(str(folder.manifest["run"])), feed or Path(str(folder.manifest["feed"]))
        recommender = Recommender.load(place, feed=of, device=device, compute_dtype=folder.compute_dtype)
        folder.require_model(recommender.model_hash)
    question = _question(recommender, ids, text=text, images=images, items=items, user=user)
    store = open_store(folder, matrix)
    hits, note = _search(folder, store, ids, matrix, question, recommender, allowed, k=min(k, len(ids)))
    possible = len(ids) if allowed is None else int(allowed.sum())
    held = f"{possible} of {len(ids)} posts meet the conditions" if where.strip() else f"{possible} posts were exported"
    notes = [note] if note else []
    if possible < k:
        notes.append(f"only {held}, {k} were asked for")
    return _present(hits.rows[0], hits.scores[0], table, "; ".join(notes))


def _question(
    recommender: Recommender | None,
    ids: npt.NDArray[np.object_],
    *,
    text: str | None,
    images: Sequence[Path],
    items: Sequence[str],
    user: str | None,
) -> Question:
    """Encode what is asked.

    Raises:
        RequestError: an unknown item or user, or an unreadable picture.
    """
    post = asking = None
    bonus, had = 0.0, np.zeros(0, dtype=np.int64)
    if recommender is not None and (text or images):
        post = recommender.embed([Post(caption=text, image=list(images) or None)])
    if recommender is not None and user is not None:
        asked = recommender.scoring.users([Request("search", (), user_id=user)])
        if asked.error_messages[0] is not None:
            raise RequestError("a known user", got=asked.error_messages[0], where="--user")
        asking, bonus = asked.vectors.mean(dim=1).numpy(), recommender.repeat_bonus
        past = [recommender.assembly.catalogue.item_ids[entry.row] for entry in asked.had[0]]
        rows = _rows(ids, past)
        had = np.unique(rows[rows >= 0])
    item_rows = _rows(ids, items)
    for item_id, row in zip(items, item_rows, strict=True):
        if row < 0:
            raise RequestError("the id of an exported item", got=repr(item_id), where="--item")
    return Question(post, asking, item_rows, had, bonus)


def _rows(ids: npt.NDArray[np.object_], wanted: Sequence[object]) -> npt.NDArray[np.int64]:
    """Return the rows of some ids, -1 for one that the export does not hold."""
    if not wanted:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(pd.Index(ids).get_indexer(pd.Index([str(item_id) for item_id in wanted])), dtype=np.int64)


def _search(
    folder: VectorFolder,
    store: Store,
    ids: npt.NDArray[np.object_],
    matrix: VectorRows,
    question: Question,
    recommender: Recommender | None,
    allowed: npt.NDArray[np.bool_] | None,
    *,
    k: int,
) -> tuple[Hits, str]:
    """Return the k best rows, what the user had with its bonus, and a note where the scores are not those of ``score``."""
    layout = folder.format
    exact = None if recommender is None else _full_vectors(folder, recommender, ids)
    query = as_query(layout, question, matrix[question.item_rows])
    found = num_candidates(k, items=len(ids)) if exact is not None else k
    hits = search_with_repeats(
        store,
        matrix,
        query.vector[None],
        had=[question.had],
        bonus=np.array([query.bonus], dtype=np.float32),
        k=found,
        allowed=allowed,
    )
    if exact is None:
        size = f"dim {matrix.shape[1] - int(layout.ends_in_bias)}, {layout.precision}"
        return hits, f"scores are those of the exported vectors ({size})" if layout.lossy else ""
    rows = hits.rows[0][hits.rows[0] >= 0]
    query = as_query(layout.full, question, exact(question.item_rows))
    scores = exact(rows) @ query.vector + query.bonus * np.isin(rows, question.had)
    best = np.argsort(-scores, kind="stable")[:k]
    return Hits(rows[best][None], scores[best][None].astype(np.float32)), ""


def _full_vectors(
    folder: VectorFolder, recommender: Recommender, ids: npt.NDArray[np.object_]
) -> Callable[[Rows], Vectors] | None:
    """Return what gives full vectors of exported rows; None where the export has them, or where the feed is another."""
    layout = folder.format
    if not layout.lossy or recommender.assembly.catalogue.feed_hash != folder.manifest["feed_hash"]:
        return None
    return lambda rows: layout.full.shape(recommender.embed([str(item_id) for item_id in ids[rows]]))


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
