"""The logs of a running ``mmrec serve``, fetched page by page and kept as files, so that a killed pull goes on."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn, get_args

from PIL import Image

from mmrec.errors import FeedError
from mmrec.storage import atomic_file, content_hash

Kind = Literal["posts", "feedback", "served"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
PULLED: Final = "images/pulled"
"""Where pictures of published posts lie in a pulled feed."""
Record = Mapping[str, object]
_TRIES, _SECONDS = 6, 60.0
_TRANSIENT: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Page:
    """Part of a log.

    Args:
        entries: as the service tells them.
        next: number to ask for after this.
        more: whether there is more.
    """

    entries: list[dict[str, object]]
    next: int
    more: bool


class ServiceLog:
    """The logs of a service over HTTP.

    Args:
        url: of the service, such as http://localhost:8000.
        key: of scope admin; None where the service asks for none.
        sleep: waits between two tries.

    Raises:
        FeedError: no URL of a service.
    """

    def __init__(self, url: str, key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment or parts.username:
            fix = "For example: --from http://localhost:8000."
            raise FeedError("the address of a service", got=repr(url), where="--from", fix=fix)
        self._url, self._key, self._sleep = url.rstrip("/"), key, sleep
        # A redirect would carry the key elsewhere.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def page(self, kind: Kind, after: int) -> Page:
        """Return the entries after a number; a service that is busy or away for a moment is asked again.

        Raises:
            FeedError: it refuses, cannot be reached, or tells something else.
        """
        request = urllib.request.Request(f"{self._url}/v1/log/{kind}?after={after}")
        if self._key is not None:
            request.add_header("Authorization", f"Bearer {self._key}")
        body = self._answer(request)
        try:
            value = json.loads(body)
            return Page([dict(entry) for entry in value["entries"]], int(value["next"]), bool(value["more"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FeedError("a page of a log", got=f"something else: {error}", where=request.full_url) from error

    def _answer(self, request: urllib.request.Request) -> bytes:
        for turn in range(_TRIES):
            seconds = float(2**turn) / 2
            try:
                with self._opener.open(request, timeout=_SECONDS) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                told = error.headers.get("Retry-After", "")
                if error.code not in _TRANSIENT or turn == _TRIES - 1:
                    _refused(error, request.full_url)
                seconds = min(float(told), _SECONDS) if told.isdecimal() else seconds
            except (OSError, http.client.HTTPException) as error:
                if turn == _TRIES - 1:
                    fix = "Start it, or give its address: --from."
                    raise FeedError(
                        "a service that answers", got=str(error), where=request.full_url, fix=fix
                    ) from error
            self._sleep(seconds)
        raise AssertionError("the last try returns or raises")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *arguments: object, **named: object) -> None:
        """Return nothing: the answer is an error."""


def _refused(error: urllib.error.HTTPError, url: str) -> NoReturn:
    try:
        told = str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        told = str(error.reason)
    fix = "Give a key of scope admin: --key-file FILE." if error.code in (401, 403) else ""
    raise FeedError("a page of a log", got=f"status {error.code}: {told}", where=url, fix=fix) from error


class PageFiles:
    """Pages as files of a folder, each whole or absent; their names begin with the number to go on after.

    Args:
        folder: the pulled feed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = {int(str(entry["number"])) for entry in self.entries("posts")}

    def cursor(self, kind: Kind) -> int:
        """Return the number after which a pull goes on."""
        return max((int(path.name.partition("-")[0]) for path in self._files(kind)), default=0)

    def entries(self, kind: Kind) -> Iterator[Record]:
        """Yield all entries, in the order in which they were told."""
        for path in self._files(kind):
            for line in path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def keep(self, kind: Kind, page: Page) -> int:
        """Write what is new in a page, pictures first; return how many entries that were."""
        entries = page.entries
        if kind == "posts":  # which may be told again
            entries = [entry for entry in entries if int(str(entry["number"])) not in self._told]
            self._told |= {int(str(entry["number"])) for entry in entries}
        if entries:
            lines = [json.dumps(self._without_pictures(entry)) + "\n" for entry in entries]
            with atomic_file(self._log(kind) / f"{page.next:020}-{len(self._files(kind)):08}.jsonl") as partial:
                partial.write_text("".join(lines), encoding="utf-8")
        return len(entries)

    def _without_pictures(self, entry: dict[str, object]) -> dict[str, object]:
        """Return an entry with the names of its pictures in their place, which are written."""
        pictures = entry.get("pictures")
        if not isinstance(pictures, list):
            return entry
        return entry | {"pictures": [self._picture(picture) for picture in pictures]}

    def _picture(self, picture: object) -> str:
        try:
            data = base64.b64decode(str(dict(picture)["base64"]), validate=True)  # type: ignore[call-overload]
            with Image.open(io.BytesIO(data)) as opened:
                kind = str(opened.format).lower()
        except (binascii.Error, KeyError, TypeError, ValueError, OSError) as error:
            raise FeedError("a picture in base64", got=str(error), where="a page of posts") from error
        name = f"{PULLED}/{content_hash(data)}.{kind}"
        if not (self._folder / name).exists():
            with atomic_file(self._folder / name) as partial:
                partial.write_bytes(data)
        return name

    def _files(self, kind: Kind) -> list[Path]:
        return sorted(self._log(kind).glob("[0-9]*-[0-9]*.jsonl"))

    def _log(self, kind: Kind) -> Path:
        return self._folder / "log" / kind
