"""Tables of requests to requests.

A row names a user (``user_id``, or ``history``: a list of item ids, ``|`` between them in text files) and either all
candidates (``candidates``: a list of ids or of ``{item_id, caption, image, attributes}``, ``|`` in text files) or one of them
(``item_id``, ``caption``, ``image``, ``attributes``); consecutive rows of one request then belong together.  Relative
picture paths start at the table's folder; attributes are an object, in text files written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mmrec import columns
from mmrec.errors import MmrecError, RequestError
from mmrec.inference.posts import Picture, Post
from mmrec.inference.references import Reference, Unusable
from mmrec.inference.scoring import Request
from mmrec.inference.tables import Row, column_names, read_rows

Known = Callable[[object], bool]
"""Whether an id is in the catalogue."""


def read_candidates(path: Path, *, known: Known) -> list[Reference]:
    """Read a table of candidates that all requests share."""
    return [candidate(row, folder=path.parent, known=known, position=i) for i, row in enumerate(read_rows(path))]


def check_requests(path: Path, *, candidates: bool) -> None:
    """Refuse a table that names no users, or no candidates, in any of its columns.

    Args:
        path: csv, tsv, jsonl or parquet.
        candidates: whether they must be in the table.

    Raises:
        RequestError: a column is missing, or the file cannot be read.
    """
    names = column_names(path)
    got, where = ", ".join(names) or "an empty table", str(path)
    if not {columns.USER_ID, columns.HISTORY} & set(names):
        raise RequestError("user_id or history", got=got, where=where, fix="Add a column.")
    one = {columns.ITEM_ID, columns.CAPTION, columns.IMAGE, columns.ATTRIBUTES}
    if candidates and not {columns.CANDIDATES, *one} & set(names):
        raise RequestError(
            "candidates, or item_id, caption or image", got=got, where=where, fix="Add a column, or give --candidates."
        )


def read_requests(path: Path, *, known: Known, shared: Sequence[Reference] | None = None) -> Iterator[Request]:
    """Yield the requests of a table; a row without user or candidate gives a request that says so when it is scored.

    Args:
        path: csv, tsv, jsonl or parquet.
        known: tells ids of the catalogue from others.
        shared: candidates of every request, in place of the table's own.

    Raises:
        RequestError: see :func:`check_requests`.
    """
    check_requests(path, candidates=shared is None)
    waiting: list[Row] = []
    for row in read_rows(path):
        alone = shared is not None or columns.CANDIDATES in row
        if waiting and (alone or _asker(waiting[0]) != _asker(row)):
            yield _request(waiting, path.parent, known, shared)
            waiting = []
        waiting.append(row)
        if alone:
            yield _request(waiting, path.parent, known, shared)
            waiting = []
    if waiting:
        yield _request(waiting, path.parent, known, shared)


def read_users(path: Path, *, known: Known) -> Iterator[Request]:
    """Yield a request without candidates for every row of a table of users.

    Raises:
        RequestError: see :func:`check_requests`.
    """
    check_requests(path, candidates=False)
    for row in read_rows(path):
        yield _request([row], path.parent, known, [])


def _asker(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in (columns.REQUEST_ID, columns.USER_ID, columns.HISTORY))


def _request(rows: Sequence[Row], folder: Path, known: Known, shared: Sequence[Reference] | None) -> Request:
    first = rows[0]
    candidates: Sequence[Reference]
    if shared is not None:
        candidates = shared
    elif columns.CANDIDATES in first:
        entries = _entries(first[columns.CANDIDATES])
        candidates = [candidate(e, folder=folder, known=known, position=i) for i, e in enumerate(entries)]
    else:
        candidates = [candidate(row, folder=folder, known=known, position=i) for i, row in enumerate(rows)]
    history = first.get(columns.HISTORY)
    past = None if history is None else _entries(history)
    user = first.get(columns.USER_ID) if past is None else None
    return Request(
        request_id=str(first.get(columns.REQUEST_ID, first.get(columns.USER_ID, ""))),
        candidates=candidates,
        user_id=None if user is None else str(user),
        history=None
        if past is None
        else [candidate(e, folder=folder, known=known, position=i) for i, e in enumerate(past)],
    )


def _entries(cell: object) -> list[object]:
    """Return a list cell: a list as it is, JSON text, or ``|`` between ids."""
    if isinstance(cell, str):
        if cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                return [cell]
        else:
            return [part.strip() for part in cell.split("|") if part.strip()]
    return list(cell) if isinstance(cell, Sequence) and not isinstance(cell, str | bytes) else [cell]


def candidate(entry: object, *, folder: Path, known: Known, position: int) -> Reference:
    """Turn a cell or a row into a reference; what cannot be used says why."""
    if entry is None:
        entry = {}
    if not isinstance(entry, Mapping):
        return str(entry)
    item_id, caption, image, attributes = (
        entry.get(name) for name in (columns.ITEM_ID, columns.CAPTION, columns.IMAGE, columns.ATTRIBUTES)
    )
    if item_id is not None and (known(item_id) or (caption is None and image is None and attributes is None)):
        return str(item_id)
    name = str(item_id) if item_id is not None else f"new:{position}"
    try:
        return Post(
            caption=None if caption is None else str(caption),
            image=_images(image, folder),
            name=name,
            attributes=_attributes(attributes),
        )
    except MmrecError as error:
        return Unusable(name, str(error))


def _attributes(cell: object) -> Mapping[str, object]:
    """Return attributes by name, from an object or from JSON text.

    Raises:
        RequestError: neither.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RequestError("attributes as a JSON object", got=str(error), where=columns.ATTRIBUTES) from error
    if cell is not None and not isinstance(cell, Mapping):
        raise RequestError("attributes as a JSON object", got=type(cell).__name__, where=columns.ATTRIBUTES)
    return cell or {}


def _images(cell: object, folder: Path) -> list[Picture] | None:
    if cell is None:
        return None
    if isinstance(cell, bytes):
        return [cell]
    parts = _entries(cell)
    return [part if isinstance(part, bytes) else folder / str(part) for part in parts]
