"""Tables of requests in, tables of scores or recommendations out; streaming, whole or absent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmrec import columns
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import RequestError
from mmrec.feed.catalogue import Catalogue
from mmrec.inference.recommender import Recommender, scored_columns
from mmrec.inference.requests import check_requests, read_candidates, read_requests, read_users
from mmrec.inference.scoring import Request
from mmrec.inference.tables import check_output, id_type, row_writer
from mmrec.notices import Advance, Notify, ignore

SCORES = pa.schema(
    [
        (columns.REQUEST_ID, pa.string()),
        (columns.CANDIDATE, pa.string()),
        (columns.SCORE, pa.float32()),
        (columns.RANK, pa.int64()),
        (columns.PRESENT, pa.string()),
        (columns.ERROR_MESSAGE, pa.string()),
    ]
)
_GROUP = 64
_T = TypeVar("_T")


def score_file(
    run: Path,
    *,
    requests: Path,
    out: Path,
    candidates: Path | None = None,
    feed: Path | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    progress: Advance | None = None,
    notify: Notify = ignore,
) -> dict[str, object]:
    """Score every request of a table; one row a candidate, in the order asked.

    Args:
        run: run folder.
        requests: see :mod:`mmrec.inference.requests`.
        out: parquet, csv, tsv or jsonl file.
        candidates: table of candidates that all requests share.
        feed: prepared feed, by default the run's own.
        device: where to compute.
        compute_dtype: number format in which encoders run, see :meth:`Recommender.load`.
        progress: told of every request.
        notify: told what is about to be done.

    Raises:
        RequestError: a file that is no table of requests, or an unknown output format.
    """
    check_output(out)
    check_requests(requests, candidates=candidates is None)
    recommender = Recommender.load(run, feed=feed, device=device, compute_dtype=compute_dtype, notify=notify)
    known = recommender.assembly.catalogue.__contains__
    shared = None if candidates is None else read_candidates(candidates, known=known)
    counts = {"requests": 0, "candidates": 0, "scored": 0, "errors": 0}
    with row_writer(out, SCORES) as writer:
        asked = read_requests(requests, known=known, shared=shared)
        for scored in recommender.scoring.score(asked, group=_GROUP):
            writer.write(scored_columns(scored))
            counts["requests"] += 1
            counts["candidates"] += len(scored.candidates)
            counts["errors"] += sum(message is not None for message in scored.error_messages)
            if progress:
                progress(1)
        if counts["requests"] == 0:
            raise RequestError("at least one request", got="an empty table", where=str(requests))
    counts["scored"] = counts["candidates"] - counts["errors"]
    encoded = recommender.vectors.num_encoded
    return {**counts, "posts encoded": encoded, "file": str(out), "model": recommender.model_hash}


def recommend_file(
    run: Path,
    *,
    out: Path,
    users: Path | None = None,
    k: int = 20,
    new_only: bool = False,
    feed: Path | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    progress: Advance | None = None,
    notify: Notify = ignore,
) -> dict[str, object]:
    """Write the k best items of the catalogue for every user of a table, or of the feed.

    A user that is unknown or whose history cannot be read gets one row with an error.

    Args:
        run: run folder.
        out: parquet, csv, tsv or jsonl file.
        users: table with user_id or history; None takes every user of the feed.
        k: items a user; all of them where the catalogue is smaller.
        new_only: leave out the items of the user's history.
        feed: prepared feed, by default the run's own.
        device: where to compute.
        compute_dtype: number format in which encoders run, see :meth:`Recommender.load`.
        progress: told of every user.
        notify: told what is about to be done.
    """
    check_output(out)
    if users is not None:
        check_requests(users, candidates=False)
    recommender = Recommender.load(run, feed=feed, device=device, compute_dtype=compute_dtype, notify=notify)
    histories, catalogue = recommender.assembly.histories, recommender.assembly.catalogue
    asked: Iterable[Request] = (
        (Request(str(user_id), (), user_id=str(user_id)) for user_id in histories.user_ids)
        if users is None
        else read_users(users, known=catalogue.__contains__)
    )
    counts = {"users": 0, "rows": 0, "errors": 0}
    with row_writer(out, _recommendations(catalogue)) as writer:
        for group in _groups(asked, _GROUP):
            answer = recommender.scoring.users(group)
            rows, scores = recommender.top_items(answer, k=k, new_only=new_only)
            for index, request in enumerate(group):
                error = answer.error_messages[index]
                kept = np.flatnonzero(rows[index] >= 0) if error is None else np.zeros(0, dtype=np.int64)
                ids = catalogue.external_ids(rows[index][kept])
                writer.write(_recommended(request.request_id, ids, scores[index][kept], error))
                counts["users"] += 1
                counts["rows"] += len(ids)
                counts["errors"] += error is not None
                if progress:
                    progress(1)
        if counts["users"] == 0:
            raise RequestError("at least one user", got="an empty table", where=str(users))
    return {**counts, "file": str(out), "model": recommender.model_hash}


def _recommendations(catalogue: Catalogue) -> pa.Schema:
    return pa.schema(
        [
            (columns.USER_ID, pa.string()),
            (columns.ITEM_ID, id_type(catalogue.external_ids(np.arange(len(catalogue))))),
            (columns.SCORE, pa.float32()),
            (columns.RANK, pa.int64()),
            (columns.ERROR_MESSAGE, pa.string()),
        ]
    )


def _recommended(
    user_id: str, ids: Sequence[str] | Sequence[int], scores: npt.NDArray[np.float32], error: str | None
) -> dict[str, Sequence[object]]:
    """Return one user's rows as columns: the items, or one row that says why there are none."""
    if error is not None:
        alone: dict[str, Sequence[object]] = {
            columns.USER_ID: [user_id],
            columns.ITEM_ID: [None],
            columns.SCORE: [None],
        }
        return alone | {columns.RANK: [0], columns.ERROR_MESSAGE: [error]}
    return {
        columns.USER_ID: [user_id] * len(ids),
        columns.ITEM_ID: list(ids),
        columns.SCORE: [float(score) for score in scores],
        columns.RANK: list(range(1, len(ids) + 1)),
        columns.ERROR_MESSAGE: [None] * len(ids),
    }


def _groups(entries: Iterable[_T], size: int) -> Iterator[Sequence[_T]]:
    iterator = iter(entries)
    while group := list(islice(iterator, size)):
        yield group
