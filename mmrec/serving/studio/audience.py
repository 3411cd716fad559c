"""Vectors of the feed's users, made behind the requests once somebody wants to know who would like a post."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.errors import MmrecError
from mmrec.search.index import Vectors
from mmrec.serving.answers.pasts import Pasts
from mmrec.serving.answers.service import Service
from mmrec.serving.model.jobs import UserJob
from mmrec.serving.problems import ProblemError

MOST = 50_000
"""Users that are asked; of a larger feed a sample, always the same."""
_BLOCK = 32
_PAUSE = 0.2


@dataclass(frozen=True)
class Crowd:
    """Users whose vectors are there.

    Args:
        user_ids: shape (users,).
        vectors: shape (users, interests, width), score-ready.
        wanted: how many there will be.
    """

    user_ids: npt.NDArray[np.object_]
    vectors: Vectors
    wanted: int

    def scores(self, post: Vectors) -> Vectors:
        """Return the score of a post that nobody had, shape (width,), for every user; of several interests the best."""
        return np.asarray((self.vectors @ post).max(axis=1, initial=-np.inf))

    @property
    def mean(self) -> Vectors | None:
        """The mean user, shape (width,); None where users have several interests, or there are no users."""
        one = self.vectors.shape[1] == 1 and len(self.vectors) > 0
        return np.asarray(self.vectors[:, 0].mean(axis=0)) if one else None


class Audience:
    """Encodes users of the feed in the background, in small blocks among the requests' own.

    Args:
        service: encodes users; ends the work when it is closed.
        most: users at most.
    """

    def __init__(self, service: Service, most: int = MOST) -> None:
        self._service = service
        ids = service.histories.user_ids
        rows = np.sort(np.random.default_rng(0).permutation(len(ids))[:most])
        self._user_ids = ids[rows]
        self._vectors: Vectors = np.zeros((len(rows), 1, service.recommender.assembly.model.width), np.float32)
        self._done = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def crowd(self) -> Crowd:
        """Return the users that are there by now; the first call starts the work."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._encode_all, name="mmrec-audience", daemon=True)
                self._thread.start()
            return Crowd(self._user_ids[: self._done], self._vectors[: self._done], len(self._user_ids))

    def _encode_all(self) -> None:
        """Encode block after block until all are there, or the service stops."""
        start = 0
        while start < len(self._user_ids):
            try:
                vectors = self._encoded(self._user_ids[start : start + _BLOCK])
            except ProblemError as error:
                if error.status != 429:
                    return
                time.sleep(_PAUSE)  # the requests come first
                continue
            except MmrecError:
                return
            with self._lock:
                if vectors.shape[1] != self._vectors.shape[1]:
                    shape = (len(self._user_ids), *vectors.shape[1:])
                    self._vectors = np.zeros(shape, dtype=np.float32)
                self._vectors[start : start + len(vectors)] = vectors
                start += len(vectors)
                self._done = start

    def _encoded(self, user_ids: npt.NDArray[np.object_]) -> Vectors:
        """Return the vectors of some users after their history in the feed, shape (users, interests, width)."""
        service = self._service
        exported = service.items.exported
        pasts = Pasts(service.histories, service.catalogue.item_ids, service.store, length=service.length)
        jobs: list[UserJob] = []
        for user_id in user_ids:
            past = pasts.of_feed(str(user_id))
            assert past is not None, "every user of a feed has an event"
            rows = [exported.row_of(item_id) for item_id in past.item_ids]
            items = np.asarray(exported.full[rows], dtype=np.float32)
            jobs.append(UserJob(items, past.times))
        return np.stack([future.result() for future in service.worker.encode_users(jobs)])
