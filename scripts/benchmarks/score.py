"""Requests whose candidates are partly brand-new posts, against encoding each new content once and multiplying."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.bare_encoders import bare_image, bare_text
from benchmarks.made_run import TINY, MadeRun, RunShape, jpeg, make_run, picture
from benchmarks.measure import Row, alternate, ratios, wait
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.feed.batches import ordered_users
from mmrec.inference.encoding import evaluating
from mmrec.inference.post_contents import image_content, text_content
from mmrec.inference.posts import Post, decode_post
from mmrec.inference.recommender import Recommender
from mmrec.inference.references import Reference
from mmrec.inference.scoring import Request

MOST_TIME = 1.15
MOST_MILLISECONDS = 20.0
NEW_SHARE = 0.2
HISTORY = 20
ADDED = 20_000
"""Numbers that a bare loop adds to find out how fast it is."""


@dataclass(frozen=True)
class Shapes:
    """Sizes.

    Args:
        run: of the trained run; its encoders are those of the README's first configuration, with random weights.
        requests: asked in one go.
        candidates: of each.
        new_posts: different ones among all candidates.
        calls: single requests timed one by one.
    """

    run: RunShape
    requests: int
    candidates: int
    new_posts: int
    calls: int


SHAPES = {
    "small": Shapes(TINY, 12, 40, 25, 10),
    "cpu": Shapes(RunShape(1_000, 300, 8, 20, 24.0, (384, 6, 12), "tf_efficientnet_lite0", 128, 128), 1_000, 500, 2_000, 300),
    "gpu": Shapes(RunShape(1_000, 300, 8, 20, 24.0, (768, 12, 12), "vit_base_patch16_224", 224, 256), 1_000, 500, 20_000, 300),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Requests, and the new posts in them.

    Args:
        requests: each with posts of its own, as if read from a table: equal contents are never the same object.
        posts: each distinct new post.
        histories: shape (requests, history), rows of the catalogue.
    """

    requests: list[Request]
    posts: list[Post]
    histories: npt.NDArray[np.int64]

    @classmethod
    def make(cls, made: MadeRun, shapes: Shapes) -> Asked:
        """Draw requests; every new post is in some of them, if there is room."""
        generator = np.random.default_rng(1)
        topics = generator.integers(0, made.shape.topics, shapes.new_posts)
        captions = made.language.captions(topics, generator)
        pictures = [jpeg(picture(int(topic), generator, side=made.shape.side)) for topic in topics]
        ids = made.item_ids
        new = round(NEW_SHARE * shapes.candidates)
        places = np.tile(generator.permutation(shapes.new_posts), -(-shapes.requests * new // shapes.new_posts))
        histories = generator.integers(0, len(ids), (shapes.requests, HISTORY))
        requests = []
        for number, history in enumerate(histories):
            candidates: list[Reference] = [ids[row] for row in generator.integers(0, len(ids), shapes.candidates - new)]
            for place in places[number * new : (number + 1) * new]:
                candidates.append(Post(caption=captions[place], image=pictures[place]))
            requests.append(Request(str(number), candidates, history=[ids[row] for row in history]))
        posts = [Post(caption=caption, image=data) for caption, data in zip(captions, pictures, strict=True)]
        return cls(requests, posts, histories)


class Floor:
    """Encodes the new contents, encodes the users, multiplies: nothing is looked up, read or kept.

    Args:
        recommender: whose networks are run.
        asked: the requests.
        device: where to compute.
    """

    def __init__(self, recommender: Recommender, asked: Asked, *, device: str) -> None:
        self._model = recommender.assembly.model
        encoders = {name: built.module for name, built in recommender.assembly.encoders.items()}
        words, pixels = recommender.assembly.words, recommender.assembly.pixels
        assert words is not None
        assert pixels is not None
        side = recommender.assembly.catalogue.manifest["image_side"]
        decoded = [decode_post(post, side=int(str(side)), max_images=1) for post in asked.posts]
        captions = text_content(words, [post.caption or "" for post in decoded])
        pictures = image_content(pixels, [post.pictures[0] for post in decoded])
        self._encode = (
            bare_text(cast("TextEncoder", encoders["text"]), captions, device=device),
            bare_image(cast("ImageEncoder", encoders["image"]), pictures, device=device),
        )
        self._items = torch.from_numpy(np.array(recommender.item_embeddings())).to(device)
        count, length = asked.histories.shape
        self._users = ordered_users(asked.histories.reshape(-1), np.full(count, length)).to(torch.device(device))
        candidates = len(asked.requests[0].candidates)
        self._candidates = torch.randn(count, candidates, self._items.shape[1], device=device)

    def run(self) -> Tensor:
        """Do it all; return the scores."""
        for encode in self._encode:
            encode()
        return torch.bmm(self._candidates, self.encode_users().transpose(1, 2))[..., 0]

    def encode_users(self) -> Tensor:
        """Encode all users at once."""
        with evaluating(self._model):
            return self._model.encode_users(self._users, self._items).vectors


def fresh(loaded: Recommender) -> Recommender:
    """Return a recommender that has met no new post yet, over the same model."""
    return Recommender(loaded.run, loaded.assembly, weights_hash=loaded.weights_hash)


def contents_encoded(recommender: Recommender) -> int:
    """Return how many captions and pictures have gone through the networks so far."""
    modules = [built.module for built in recommender.assembly.encoders.values()]
    return sum(module.work.encoded for module in modules if isinstance(module, CutEncoder))


def score_all(loaded: Recommender, asked: Asked) -> int:
    """Score every request; return how many contents were encoded for it."""
    before = contents_encoded(loaded)
    for answer in fresh(loaded).scoring.score(asked.requests):
        assert np.isfinite(answer.scores).all(), answer.request_error or answer.error_messages
    return contents_encoded(loaded) - before


def score(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Time a thousand requests with new posts over their floor, then single requests of known candidates."""
    shapes = SHAPES[size]
    with TemporaryDirectory() as folder:
        made = make_run(Path(folder), shapes.run, device=device)
        loaded = Recommender.load(made.run, device=device)
        loaded.item_embeddings()
        asked = Asked.make(made, shapes)
        distinct = len({post.caption for post in asked.posts}) + len({post.image for post in asked.posts})
        encoded = score_all(loaded, asked)
        count = len(asked.requests) * round(NEW_SHARE * shapes.candidates)
        yield Row(
            "score",
            f"times that each distinct new content is encoded, {shapes.requests:,} requests x {shapes.candidates}",
            (encoded / distinct,),
            bound="at most",
            target=1.0,
            unit="times",
            details={"distinct contents": distinct, "new posts named": count},
        )
        floor = Floor(loaded, asked, device=device)
        seconds = alternate(
            {"mmrec": lambda: score_all(loaded, asked), "floor": floor.run, "users": floor.encode_users},
            rounds=min(rounds, 3),
            device=device,
        )
        yield Row(
            "score",
            f"over encoding and products alone, {shapes.requests:,} requests x {shapes.candidates}, "
            f"{shapes.new_posts:,} different new posts",
            ratios(seconds["mmrec"], seconds["floor"]),
            bound="at most",
            target=None if size == "small" else MOST_TIME,
            details={f"{side} s": min(values) for side, values in seconds.items()},
        )
        beyond, whole = single_requests(loaded, asked, shapes, device=device)
        what = f"a request of {shapes.candidates} known candidates beyond the user encoder"
        percentiles = {f"p{p} whole": float(np.percentile(whole, p)) for p in (50, 99)}
        asked_of = None if size == "small" else MOST_MILLISECONDS
        for percent, target in ((50, None), (99, asked_of)):
            value = float(np.percentile(beyond, percent))
            yield Row("score", f"p{percent} of {what}", (value,), "at most", target, unit="ms", details=percentiles)
        loops = bare_loops(float(np.percentile(beyond, 50)), shapes.calls)
        yield Row(
            "score",
            f"p99 of a bare loop as long as the p50 of {what}",
            (float(np.percentile(loops, 99)),),
            unit="ms",
            details={"p50": float(np.percentile(loops, 50)), "longest": float(loops.max())},
        )


def single_requests(
    loaded: Recommender, asked: Asked, shapes: Shapes, *, device: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Time requests one by one, and the user encoder alone on the same histories, in turns; milliseconds."""
    recommender, generator = fresh(loaded), np.random.default_rng(2)
    ids = loaded.vectors.ids(loaded.assembly.all_rows)
    model, items = loaded.assembly.model, loaded.catalogue_tensor
    whole, alone = np.empty(shapes.calls), np.empty(shapes.calls)
    for call in range(-3, shapes.calls):  # the first three warm up
        rows = asked.histories[call % len(asked.histories)]
        candidates = [ids[row] for row in generator.integers(0, len(ids), shapes.candidates)]
        history = [ids[row] for row in rows]
        start = time.perf_counter()
        recommender.score(history=history, candidates=candidates)
        middle = time.perf_counter()
        users = ordered_users(rows, np.array([len(rows)])).to(torch.device(device))
        ready = time.perf_counter()
        with evaluating(model):
            model.encode_users(users, items)
        wait(device)
        end = time.perf_counter()
        if call >= 0:
            whole[call], alone[call] = 1e3 * (middle - start), 1e3 * (end - ready)
    return whole - alone, whole


def bare_loops(milliseconds: float, calls: int) -> npt.NDArray[np.float64]:
    """Time a loop that only adds numbers, each time as many as take about so long at best; milliseconds."""

    def add(numbers: int) -> float:
        start, total = time.perf_counter(), 0
        for number in range(numbers):
            total += number
        return 1e3 * (time.perf_counter() - start)

    numbers = round(ADDED * milliseconds / min(add(ADDED) for _ in range(5)))
    return np.array([add(numbers) for _ in range(calls)])
