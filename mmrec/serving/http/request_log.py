"""One line a request: what, how long, how it ended; users as keyed hashes, and never a caption or an item."""

from __future__ import annotations

import hashlib
import json
import logging

from mmrec.serving.problems import places_of
from mmrec.serving.trace import Trace

_LOG = logging.getLogger("mmrec.serving.requests")


class RequestLog:
    """Writes what requests came to.

    Args:
        secret: key of the hashes, so that they can be compared with each other but not be looked up.
        reveal_ids: write user ids as they are.
    """

    def __init__(self, secret: bytes, *, reveal_ids: bool) -> None:
        self._secret, self._reveal = secret[:64], reveal_ids

    def answered(self, trace: Trace, status: int) -> None:
        """Write a line of JSON."""
        line: dict[str, object] = {
            "request_id": trace.request_id,
            "route": trace.route,
            "status": status,
            "milliseconds": round(1000 * trace.elapsed, 1),
        }
        if trace.user_id is not None:
            line["user"] = self.shown(trace.user_id)
        _LOG.info(json.dumps(line))

    def failed(self, trace: Trace, error: BaseException) -> None:
        """Write where the program failed, without the message of the error, which may hold what was sent."""
        line = {"request_id": trace.request_id, "error": type(error).__name__, "at": places_of(error)}
        _LOG.error(json.dumps(line))

    def shown(self, user_id: str) -> str:
        """Return a user id as the log shows it."""
        if self._reveal:
            return user_id
        return hashlib.blake2b(user_id.encode("utf-8", "replace"), key=self._secret, digest_size=8).hexdigest()
