"""The way in: who may, how much at once, how long; errors become problem details, and every answer is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mmrec.errors import MissingExtraError, RequestError
from mmrec.preprocessing.pictures import PictureError
from mmrec.serving.figures.metrics import Metrics
from mmrec.serving.http.body import read_body
from mmrec.serving.http.keys import Key, KeyRing, Scope
from mmrec.serving.http.rates import Rates
from mmrec.serving.http.recent_problems import RecentProblems
from mmrec.serving.http.request_log import RequestLog
from mmrec.serving.http.route_work import Work
from mmrec.serving.limits import Limits
from mmrec.serving.model.threads import use_one_thread
from mmrec.serving.problems import MEDIA_TYPE, ProblemError, overloaded, problem_body, too_slow
from mmrec.serving.stores.store import StoreFailureError
from mmrec.serving.trace import Trace

try:
    from fastapi import Request, Response
    from starlette.background import BackgroundTask
    from starlette.requests import ClientDisconnect
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

JSON = "application/json"
Lane = Literal["queue", "aside", "long", "here"]
LONG_SECONDS = 660.0
"""How long a request on the long lane may take."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class Entrance:
    """Who may come in.

    Args:
        keys: of callers; None lets everybody in who speaks to this machine by a name of its own, but for pages of other
            origins: a browser sends forms and fetches pictures for whichever page it shows.
    """

    keys: KeyRing | None

    def check(self, headers: Mapping[str, str], scope: Scope) -> Key | None:
        """Return the key of a caller, None of one who needs none; refuse those who may not.

        Raises:
            ProblemError: no key, an unknown one, one of a lower scope; or, without keys, another name of this machine or
                a page of another origin.
        """
        if self.keys is None:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in LOOPBACK_NAMES:
                raise ProblemError(
                    403,
                    "a request to localhost",
                    got="another host name",
                    where="Host",
                    fix="Start mmrec serve with --keys.",
                )
            _refuse_other_origins(headers, host)
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        presented = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        key = self.keys.find(presented) if presented else None
        if key is None:
            got = "none" if not presented else "an unknown one"
            raise ProblemError(
                401, "a key", got=got, where="Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
        if not key.allows(scope):
            raise ProblemError(403, f"a key of scope {scope}", got=f"one of scope {key.scope}", where="Authorization")
        return key


def _refuse_other_origins(headers: Mapping[str, str], host: str) -> None:
    """Refuse what a browser sends for a page that is not the service's own; other programs send neither header.

    Raises:
        ProblemError: it is such a request.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    own = origin is None or origin.partition("://")[2] == host
    if not own or site not in {"none", "same-origin"}:
        raise ProblemError(
            403,
            "a request of the service's own page",
            got="one of another origin",
            where="Origin" if not own else "Sec-Fetch-Site",
            fix="Start mmrec serve with --keys.",
        )


class Door:
    """Takes requests in and gives answers out.

    Args:
        entrance: who may come in.
        limits: of the service.
        metrics: counts answers.
        log: writes what requests came to.
        recent: keeps the last refusals.
    """

    def __init__(
        self, entrance: Entrance, limits: Limits, metrics: Metrics, log: RequestLog, recent: RecentProblems
    ) -> None:
        self._entrance, self._limits, self._metrics, self._log = entrance, limits, metrics, log
        self._recent = recent
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="mmrec-request", initializer=use_one_thread)
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="mmrec-aside")
        self._long = ThreadPoolExecutor(2, thread_name_prefix="mmrec-long")
        self._rates = Rates(limits)
        self._in_work = 0

    def close(self) -> None:
        """Finish what was taken in."""
        self._pool.shutdown(wait=True)
        self._aside.shutdown(wait=True)
        self._long.shutdown(wait=True)

    async def answer(
        self, request: Request, route: str, scope: Scope | None, work: Work, *, lane: Lane = "queue"
    ) -> Response:
        """Do the work of a request and answer it, whatever happens.

        Args:
            request: as it came.
            route: its name, without ids.
            scope: what its key must allow; None asks for no key.
            work: what it is about.
            lane: ``queue``: among the requests in work, of which there may be so many; ``aside``: in a thread that these
                cannot fill; ``long``: as aside, and with minutes of time; ``here``: at once, for work of no length.
        """
        trace = Trace(route, seconds=LONG_SECONDS if lane == "long" else self._limits.request_seconds)
        headers: dict[str, str] = {}
        try:
            if scope is not None:
                self._rates.check(self._entrance.check(request.headers, scope))
            body = await self._done(request, work, trace, lane)
            status, media = trace.status, JSON
        except Exception as error:  # a fault of the program gets an answer too
            status, media, detail, errors, headers = *_refusal(error), _headers_of(error)
            if status == 500:
                self._log.failed(trace, error)
            self._recent.add(trace, status, error)
            body = problem_body(status, detail, request_id=trace.request_id, errors=errors)
        headers = {**_HEADERS, "X-Request-ID": trace.request_id, **headers}
        noted = BackgroundTask(self._note, trace, status)
        return Response(body, status, media_type=media, headers=headers, background=noted)

    async def _note(self, trace: Trace, status: int) -> None:
        """Count and log an answer; it has been sent, so that nobody waits for this."""
        self._metrics.on_answer(trace, status)
        self._log.answered(trace, status)

    async def _done(self, request: Request, work: Work, trace: Trace, lane: Lane) -> bytes:
        if lane == "here":
            return work(b"", trace)
        if lane == "aside":
            return await self._result(_handed(self._aside, work, b"", trace), trace)
        if lane == "long":
            body = await self._body(request, seconds=self._limits.request_seconds)
            return await self._result(_handed(self._long, work, body, trace), trace)
        self._enter()
        answer: asyncio.Future[bytes] | None = None
        try:
            with trace.stage("read"):
                body = await self._body(request, seconds=trace.left())
            # It counts until its thread is done with it, answered or given up.
            answer = _handed(self._pool, work, body, trace, over=self._leave)
        finally:
            if answer is None:
                self._leave()
        return await self._result(answer, trace)

    async def _body(self, request: Request, *, seconds: float) -> bytes:
        """Read a body.

        Raises:
            ProblemError: it is too long, comes too slowly, or ends early.
        """
        declared = request.headers.get("content-length")
        try:
            async with asyncio.timeout(seconds):
                return await read_body(request.stream(), declared=declared, limit=self._limits.body_bytes)
        except TimeoutError:
            raise ProblemError(408, f"a whole body within {self._limits.request_seconds:g} seconds") from None
        except ClientDisconnect:
            raise ProblemError(400, "a whole body", got="a part of it") from None

    async def _result(self, answer: asyncio.Future[bytes], trace: Trace) -> bytes:
        """Wait for what a thread makes, as long as there is time; it is not interrupted."""
        try:
            async with asyncio.timeout(trace.left()):
                return await answer
        except TimeoutError:
            raise too_slow(self._limits.request_seconds) from None

    def _enter(self) -> None:
        """Count a request in.

        Raises:
            ProblemError: there are too many.
        """
        if self._in_work >= self._limits.requests:
            raise overloaded("requests", limit=self._limits.requests)
        self._in_work += 1
        self._metrics.on_work(1)

    def _leave(self) -> None:
        self._in_work -= 1
        self._metrics.on_work(-1)


def _handed(
    pool: ThreadPoolExecutor, work: Work, body: bytes, trace: Trace, *, over: Callable[[], None] = lambda: None
) -> asyncio.Future[bytes]:
    """Have a thread do some work, and return what will hold the answer; the thread wakes the loop once.

    Args:
        pool: of the thread.
        work: what it does.
        body: of the request.
        trace: of the request.
        over: called when the thread is done, whether anybody still waits for it or not.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def settle(made: bytes | BaseException) -> None:
        over()
        # What comes too late is nobody's answer, and nobody's error.
        if answer.done():
            return
        if isinstance(made, bytes):
            answer.set_result(made)
        else:
            answer.set_exception(made)

    def run() -> None:
        made: bytes | BaseException
        try:
            made = work(body, trace)
        except BaseException as error:
            made = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, made)

    pool.submit(run)
    return answer


def _refusal(error: Exception) -> tuple[int, str, str, list[Mapping[str, str]]]:
    """Return status, media type, detail and places of an error; what is not the caller's fault tells nothing."""
    if isinstance(error, ProblemError):
        return error.status, MEDIA_TYPE, str(error), error.errors
    if isinstance(error, RequestError | PictureError):
        return 422, MEDIA_TYPE, str(error), []
    if isinstance(error, StoreFailureError):
        return 503, MEDIA_TYPE, "The store did not keep it: nothing was changed. Try again.", []
    return 500, MEDIA_TYPE, "The service failed at this; its log has the place under the request_id.", []


def _headers_of(error: Exception) -> dict[str, str]:
    return error.headers if isinstance(error, ProblemError) else {}


def plain_problem(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Return the answer to a request that no route takes."""
    body = problem_body(status, detail, request_id="")
    return Response(body, status, media_type=MEDIA_TYPE, headers={**_HEADERS, **headers})
