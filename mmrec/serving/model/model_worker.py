"""The threads that run the model: pictures, words and users of all requests, each kind in batches of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from mmrec.batch import UserBatch
from mmrec.contents import read_content
from mmrec.feed.batches import ordered_users, pad
from mmrec.feed.items import ItemReader
from mmrec.inference.encoding import encode_catalogue, evaluating
from mmrec.inference.posts import DecodedPost
from mmrec.inference.recommender import Recommender
from mmrec.search.index import Vectors
from mmrec.serving.limits import Limits
from mmrec.serving.model.batcher import Batcher, Until, never
from mmrec.serving.model.jobs import ItemJob, Times, UserJob
from mmrec.serving.model.threads import Cores, use_all_threads, use_one_thread

_PostJob = DecodedPost | ItemJob
WORTH_A_CORE = 4
"""Posts: a core encodes fewer no faster alone than all cores do together."""


class ModelWorker:
    """Encodes posts and users for all requests.

    Words take a tenth of the time of pictures and users a hundredth, so each of the three has a thread of its own: who
    searches, or opens a feed, waits for nobody's pictures.

    Args:
        recommender: the trained model.
        limits: of the service.
        on_batch: told the size of every batch.
    """

    def __init__(self, recommender: Recommender, limits: Limits, *, on_batch: Callable[[int], None]) -> None:
        self._recommender, self._model = recommender, recommender.assembly.model
        self._picture_tokens, self._cores = picture_tokens(recommender), Cores(least=WORTH_A_CORE)
        batcher = partial(
            Batcher,
            most=limits.batch_posts,
            budget=limits.batch_tokens,
            seconds=limits.batch_seconds,
            waiting=limits.posts_waiting,
            on_batch=on_batch,
        )
        posts: Callable[[], Batcher[_PostJob, Vectors]] = partial(
            batcher, self._encoded_posts, cost=self._cost, begin=use_all_threads
        )
        self._pictures, self._words = posts(), posts()
        self._users: Batcher[UserJob, Vectors] = batcher(
            self._encoded_users, cost=lambda job: len(job.items), begin=use_one_thread
        )

    @property
    def depth(self) -> int:
        """Posts and users that wait."""
        return self._pictures.depth + self._words.depth + self._users.depth

    @property
    def alive(self) -> bool:
        """Whether it takes more."""
        return self._pictures.alive and self._words.alive and self._users.alive

    def encode_posts(
        self, posts: Sequence[DecodedPost], *, until: Sequence[Until] | None = None
    ) -> list[Future[Vectors]]:
        """Return what will hold the posts' score-ready vectors, each of shape (width,); see :meth:`Batcher.submit_all`."""
        ends = until or [never] * len(posts)
        coming: dict[int, Future[Vectors]] = {}
        for batcher, sees in ((self._pictures, True), (self._words, False)):
            places = [place for place, post in enumerate(posts) if bool(post.pictures) == sees]
            if places:
                jobs, late = [posts[place] for place in places], [ends[place] for place in places]
                coming |= dict(zip(places, batcher.submit_all(jobs, until=late), strict=True))
        return [coming[place] for place in range(len(posts))]

    def encode_users(self, jobs: Sequence[UserJob]) -> list[Future[Vectors]]:
        """Return what will hold users' score-ready vectors, each of shape (interests, width).

        Several are encoded together; one alone in the calling thread, where no other request is there.
        """
        if len(jobs) == 1:
            return [self._users.do(jobs[0])]
        return self._users.submit_all(jobs)

    def encode_item(self, job: ItemJob, *, until: Until = never) -> Future[Vectors]:
        """Return what will hold an item's score-ready vector, shape (width,); see :meth:`Batcher.submit_all`."""
        return (self._pictures if "image" in job.kept else self._words).submit(job, until=until)

    def close(self) -> None:
        """Finish what waits, then stop."""
        for batcher in (self._pictures, self._words, self._users):
            batcher.close()
        self._cores.close()

    def _cost(self, job: _PostJob) -> int:
        """Return how many tokens a job may have; of a caption one a character, for to count them is to make them."""
        words = self._recommender.assembly.words
        most = 0 if words is None else words.max_tokens * words.windows
        if isinstance(job, ItemJob):
            return (most if "text" in job.kept else 0) + (self._picture_tokens if "image" in job.kept else 0)
        return min(most, len(job.caption or "")) + self._picture_tokens * len(job.pictures)

    def _encoded_posts(self, jobs: Sequence[_PostJob]) -> Sequence[Vectors]:
        results: dict[int, Vectors] = {}
        posts = {index: job for index, job in enumerate(jobs) if isinstance(job, DecodedPost)}
        if posts:
            results |= dict(zip(posts, self._encode(list(posts.values())), strict=True))
        items = {index: job for index, job in enumerate(jobs) if isinstance(job, ItemJob)}
        for kept in {job.kept for job in items.values()}:
            places = [index for index, job in items.items() if job.kept == kept]
            results |= dict(zip(places, self._items([items[index].row for index in places], kept), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _encode(self, posts: Sequence[DecodedPost]) -> Sequence[Vectors]:
        """Encode posts, on a CPU many of them in shares."""

        def encode(some: Sequence[DecodedPost]) -> Sequence[Vectors]:
            return list(self._recommender.vectors.encode(some).numpy())

        return self._cores.map(encode, posts) if self._recommender.device.type == "cpu" else encode(posts)

    def _encoded_users(self, jobs: Sequence[UserJob]) -> Sequence[Vectors]:
        results: dict[int, Vectors] = {}
        for bare in (True, False):
            users = {index: job for index, job in enumerate(jobs) if (job.times is None) == bare}
            if users:
                results |= dict(zip(users, self._some_users(list(users.values())), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _items(self, rows: Sequence[int], kept: Sequence[str]) -> Vectors:
        """Encode items from some of their modalities, shape (items, width)."""
        modalities = self._recommender.assembly.reader.modalities
        reader = ItemReader({name: modality for name, modality in modalities.items() if name in kept})
        wanted = np.array(rows, dtype=np.int64)
        return np.asarray(encode_catalogue(self._model, reader, wanted, device=self._recommender.device).numpy())

    def _some_users(self, jobs: Sequence[UserJob]) -> Vectors:
        """Encode users whose histories all have times, or all have none; shape (users, interests, width)."""
        lengths = np.array([len(job.items) for job in jobs], dtype=np.int64)
        flat = np.arange(lengths.sum(), dtype=np.int64)
        items = np.concatenate([job.items for job in jobs]).astype(np.float32)
        if not len(items):
            items = np.zeros((1, self._model.width), dtype=np.float32)
        times = [job.times for job in jobs if job.times is not None]
        users = timed_users(flat, lengths, times) if times else ordered_users(flat, lengths)
        device = self._recommender.device
        with evaluating(self._model):
            vectors = self._model.encode_users(users.to(device), torch.from_numpy(items).to(device)).vectors
            return np.asarray(vectors.float().cpu().numpy())


def picture_tokens(recommender: Recommender) -> int:
    """Return how many tokens the model makes of a picture, 0 where it sees none."""
    if recommender.assembly.pixels is None:
        return 0
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    model, batch = (
        recommender.assembly.model,
        recommender.vectors.batch([DecodedPost(None, (grey,), ("grey",), "grey")]),
    )
    with evaluating(model):
        content = read_content(batch.to(recommender.device).parts["image"].content)
        return int(model.item_encoder.encoder("image")(content).lengths[0])


def timed_users(
    item_positions: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], times: Sequence[Times]
) -> UserBatch:
    """Build the user side of a batch from histories with times, laid end to end."""
    width = max(int(lengths.max(initial=0)), 1)

    def tensor(pieces: Sequence[npt.NDArray[np.generic] | None], fill: float = 0.0) -> torch.Tensor | None:
        there = [piece for piece in pieces if piece is not None]
        if len(there) < len(pieces):
            return None
        return torch.from_numpy(pad(np.concatenate(there), lengths, width=width, fill=fill))

    return UserBatch(
        item_positions=torch.from_numpy(pad(item_positions, lengths, width=width)),
        valid=torch.from_numpy(np.arange(width) < lengths[:, None]),
        instants=torch.from_numpy(pad(np.concatenate([entry.instants for entry in times]), lengths, width=width)),
        timestamps=tensor([entry.timestamps for entry in times]),
        events=tensor([entry.codes for entry in times]),
        values=tensor([entry.values for entry in times], np.nan),
    )
