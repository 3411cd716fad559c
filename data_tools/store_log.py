"""Where logs are pulled from: a service, or a store itself, without a service in between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from data_tools.pull import Log
from data_tools.pulled_tables import RawFeed
from data_tools.service_log import Kind, Page, ServiceLog
from mmrec.columns import ITEM_ID
from mmrec.errors import FeedError
from mmrec.serving.log_schemas import LogRequest
from mmrec.serving.schemas import external_id
from mmrec.serving.stores.log_pages import feedback_page, posts_page, served_page
from mmrec.serving.stores.store import Store, StoreFailureError
from mmrec.serving.stores.store_place import StorePlace
from mmrec.serving.trace import Trace

_PAGES: Final = {"posts": posts_page, "feedback": feedback_page, "served": served_page}
_SERVICE: Final = ("http://", "https://")
_HARMLESS: Final = frozenset({"host", "hostaddr", "port", "dbname"})
"""What a query may tell of where a database is; everything else may be a secret, or the path to one."""


class StoreLog:
    """The logs of a store.

    Args:
        store: a service's, which may be at work on it.
        integer_ids: whether the feed's ids are integers, which a store does not know.
        limit: entries of a page.
    """

    def __init__(self, store: Store, *, integer_ids: bool, limit: int = 1000) -> None:
        self._store, self._integers, self._limit = store, integer_ids, limit

    def page(self, kind: Kind, after: int) -> Page:
        """Return the entries after a number, as the service tells them.

        Raises:
            FeedError: the store cannot be read.
        """
        request, trace = LogRequest(after=after, limit=self._limit), Trace("pull", seconds=math.inf)
        try:
            page = _PAGES[kind](self._store, lambda i: external_id(i, integers=self._integers), request, trace)
        except StoreFailureError as error:
            raise FeedError("a store that can be read", got=str(error), where=f"the log of {kind}") from error
        return Page(page.model_dump(mode="json")["entries"], page.next, page.more)


@contextmanager
def open_log(source: str, key: str | None, feed: RawFeed | None) -> Iterator[Log]:
    """Open the logs of a service by its address, or those of a store.

    Args:
        source: ``http://...`` or ``https://...``, or a store as ``mmrec serve --store`` takes it.
        key: of scope admin, for a service.
        feed: that the service was trained on, whose ids have the type of those in the logs.
    """
    if source.startswith(_SERVICE):
        yield ServiceLog(source, key)
        return
    with open_store(source) as store:
        yield StoreLog(store, integer_ids=feed is not None and feed.items.id_type(ITEM_ID) == "integer")


@contextmanager
def open_store(place: str) -> Iterator[Store]:
    """Open a store beside the services that use it.

    Args:
        place: as ``mmrec serve --store`` takes it.

    Raises:
        ArtifactError: a store that is damaged, of another version, or not there.
        ConfigError: a server that cannot be reached.
        FeedError: a folder without a store.
    """
    found = StorePlace.parse(place)
    if found.kind == "folder":
        from mmrec.serving.stores.sqlite_store import DATABASE

        if not (Path(place) / DATABASE).is_file():
            fix = "Give what mmrec serve got as --data or --store, or its address: --from http://HOST:PORT."
            raise FeedError("a folder with the store of mmrec serve", got="another", where=place, fix=fix)
    store = found.open(shared=True, make=False)
    try:
        yield store
    finally:
        store.close()


def source_name(place: str) -> str:
    """Return what tells a service or a store from others, without its password or key."""
    if place.startswith(_SERVICE):
        return place.rstrip("/")
    kind = StorePlace.parse(place).kind
    if kind == "folder":
        return str(Path(place).resolve())
    parts = urlsplit(place)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if kind == "postgres" and name in _HARMLESS]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(kept, safe="/"), fragment="").geturl()
