"""What a running service took in and showed, as the tables of a feed, alone or behind those of the feed it was trained on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from data_tools.picture_store import Progress
from data_tools.prepare import silent
from data_tools.pulled_tables import (
    RawFeed,
    remove_unused,
    write_feedback,
    write_interactions,
    write_items,
    write_served,
)
from data_tools.service_log import KINDS, Kind, Page, PageFiles
from mmrec.errors import FeedError
from mmrec.storage import read_json, write_json

STATE: Final = "pull.json"
KEY_VARIABLE: Final = "MMREC_KEY"
_LOCK: Final = "pull.lock"


@runtime_checkable
class Log(Protocol):
    """Whatever tells the logs of a service."""

    def page(self, kind: Kind, after: int) -> Page:
        """Return the entries of a log after a number."""
        ...


@dataclass(frozen=True)
class PullReport:
    """What a pulled feed holds.

    Args:
        new_posts: entries that this pull brought.
        new_events: likewise.
        new_answers: likewise.
        items: rows of the items table.
        published: those of them that were published through the service.
        interactions: rows of the interactions table.
        not_chosen: events that no history counts; in ``feedback.parquet`` alone.
        of_other_items: events of items that the items table lacks; in ``feedback.parquet`` alone.
        unreadable_times: interactions of the feed whose times cannot be read; left out.
        answers: rows of ``served.parquet``.
    """

    new_posts: int
    new_events: int
    new_answers: int
    items: int
    published: int
    interactions: int
    not_chosen: int
    of_other_items: int
    unreadable_times: int
    answers: int

    def record(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


def pull(
    log: Log,
    out: Path,
    *,
    source: str,
    feed: RawFeed | None = None,
    progress: Progress = silent,
) -> PullReport:
    """Bring the folder ``out`` up to date with a service and write its tables.

    Every page is kept in ``out/log`` before the next is asked for: a pull that was killed, and one a week later, go on
    behind the last.  Tables are written beside and renamed.

    Args:
        log: tells the logs.
        out: folder of the pulled feed; made if it is not there.
        source: name of the service; one folder is of one service.
        feed: the raw feed that the service was trained on, whose rows come first; None for what was pulled alone.
        progress: told a stage and how far it is.

    Raises:
        FeedError: a folder of something else, or of another service; a service that does not answer; a feed without times.
    """
    with _held(out, source):
        files = PageFiles(out)
        new = {kind: _fetch(log, files, kind, progress) for kind in KINDS}
        items = write_items(out, files.entries("posts"), feed)
        interactions = write_interactions(out, files.entries("feedback"), items.ids, feed)
        write_feedback(out, files.entries("feedback"))
        answers = write_served(out, files.entries("served"))
        remove_unused(out, items.pictures)
    return PullReport(
        new_posts=new["posts"],
        new_events=new["feedback"],
        new_answers=new["served"],
        items=len(items.ids),
        published=items.published,
        interactions=interactions.rows,
        not_chosen=interactions.not_chosen,
        of_other_items=interactions.of_other_items,
        unreadable_times=interactions.unreadable_times,
        answers=answers,
    )


def _fetch(log: Log, files: PageFiles, kind: Kind, progress: Progress) -> int:
    """Keep what is new of a log; return how many entries that were."""
    after, count, more = files.cursor(kind), 0, True
    while more:
        page = log.page(kind, after)
        if page.next < after or (page.more and page.next == after):
            raise FeedError("pages that go on", got=f"{page.next} after {after}", where=f"the log of {kind}")
        count += files.keep(kind, page)
        after, more = page.next, page.more
        progress(kind, count, 0)
    return count


def read_key(path: Path | None) -> str | None:
    """Return the key of a file or, without one, of the environment variable ``MMREC_KEY``; None where there is none.

    Raises:
        FeedError: no such file, or nothing in it.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FeedError("a file that holds a key", got=type(error).__name__, where=str(path)) from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise FeedError("a file that holds a key and nothing else", got="something else", where=str(path))
    return key


@contextmanager
def _held(out: Path, source: str) -> Iterator[None]:
    """Keep other pulls out of a folder while this one writes.

    Raises:
        FeedError: the folder holds something else, is of another service, or another pull runs.
    """
    state = out / STATE
    if out.exists() and not state.is_file() and (not out.is_dir() or any(out.iterdir())):
        fix = "Give another --out."
        raise FeedError("a folder that a pull made, or none", got="something else", where=str(out), fix=fix)
    known = str(read_json(state).get("source", "")) if state.is_file() else source
    if known != source:
        fix = "Give another --out; numbers of two services cannot be told apart."
        raise FeedError(f"the service {known}", got=source, where=str(out), fix=fix)
    out.mkdir(parents=True, exist_ok=True)
    write_json(state, {"source": source})
    with (out / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "Wait for it to end."
            raise FeedError(
                "nobody else pulling into this folder", got="another pull", where=str(out), fix=fix
            ) from error
        yield
