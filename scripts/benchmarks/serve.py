"""mmrec serve under load, against the same model behind a plain handler and against the bare call of the model.

Services run as processes of their own and so do their clients, all on this machine.  A given run and export are served
where there are some (--run, --vectors), else a made one.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.load_client import NUMBER, Answers, Ask, Plan
from benchmarks.made_run import RunShape, jpeg, make_run, picture
from benchmarks.measure import Row, ratios
from benchmarks.serve_long import publish_rows, soak_rows, swap_rows
from benchmarks.services import Service, load, percentile, service
from mmrec.commands.export import export_run
from mmrec.encoders.compute import ComputeDtype
from mmrec.feed.batches import ordered_users
from mmrec.inference.encoding import evaluating
from mmrec.inference.export import VectorFolder
from mmrec.inference.recommender import Recommender

CLIENTS = (1, 8, 32)
HISTORY, CANDIDATES, POSTS = 10, 100, 4
SHARED = 8
"""Users whose requests, one after the other, bring the same raw posts, as new posts of a feed are offered to many."""
PICTURES = 64
"""Distinct pictures; every raw post has a caption of its own, so that none is found in the cache."""


@dataclass(frozen=True)
class Shapes:
    """Sizes.

    Args:
        run: of the made run.
        seconds: of one measurement.
        minutes: of mixed load.
        side: of a picture that is sent, in pixels.
    """

    run: RunShape
    seconds: float
    minutes: float
    side: int


SHAPES = {
    "small": Shapes(RunShape(60, 40, 6, 6, 8.0, (32, 2, 2), "test_vit", 32, 16), 0.5, 0.05, 64),
    "cpu": Shapes(RunShape(1_000, 500, 10, 20, 12.0, (384, 6, 12), "efficientnet_lite0", 128, 128), 5.0, 10.0, 256),
    "gpu": Shapes(RunShape(1_000, 500, 10, 20, 12.0, (384, 6, 12), "efficientnet_lite0", 128, 128), 5.0, 10.0, 256),
}


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        run: run folder.
        vectors: its export.
        feed: prepared feed.
        item_ids: of the export.
        captions: of its items, without gaps.
        compute_dtype: number format in which encoders run, on both sides.
    """

    run: Path
    vectors: Path
    feed: Path
    item_ids: Sequence[str]
    captions: Sequence[str]
    compute_dtype: ComputeDtype

    @classmethod
    def read(cls, run: Path, vectors: Path) -> Served:
        """Read what an export says of itself."""
        folder = VectorFolder.open(vectors)
        table = folder.table()
        captions = [str(caption) for caption in table["caption"].dropna()]
        feed, ids = Path(str(folder.manifest["feed"])), [str(i) for i in table["item_id"]]
        return cls(run, vectors, feed, ids, captions, folder.compute_dtype)


def serve(
    *,
    size: str,
    device: str,
    rounds: int,
    run: Path | None = None,
    vectors: Path | None = None,
    minutes: float | None = None,
) -> Iterator[Row]:
    """Measure throughput and latency, both against the field and the floor, then swaps, publishing and endurance.

    Args:
        size: small, cpu or gpu.
        device: where the services compute.
        rounds: turns of each side.
        run: run to serve, in place of a made one.
        vectors: its export.
        minutes: of mixed load.
    """
    shapes = SHAPES[size]
    with TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        served = _served(folder, shapes, device, run, vectors)
        asks = questions(served, side=shapes.side)
        (folder / "models").mkdir()
        (folder / "models" / "run").symlink_to(served.run.resolve())
        (folder / "models" / "vectors").symlink_to(served.vectors.resolve())
        options = ["--vectors", served.vectors, "--models", folder / "models", "--data", folder / "data"]
        command = ["serve", served.run, *options, "--device", device]
        own = stack.enter_context(service("mmrec.cli", *command, log=folder / "own.log"))
        limit = None if size == "small" else 3.0
        yield from _load_rows(own, asks, shapes.seconds, rounds)
        yield _overhead_row(own, served, asks["score of 100 cached candidates"], device, shapes.seconds, limit)
        plain_command = [served.run, "--feed", served.feed, "--device", device, "--compute-dtype", served.compute_dtype]
        with service("field.serving", *plain_command, log=folder / "plain.log") as plain:
            for name, numbers in ((RAW, CLIENTS), (SHARED_RAW, CLIENTS[-1:])):
                yield from _field_rows(own, plain, name, asks[name], numbers, shapes.seconds, rounds, limit)
        strict = size != "small"
        yield from publish_rows(own, served.captions, strict=strict)
        yield from swap_rows(own, asks, strict=strict)
        yield from soak_rows(own, asks, minutes=shapes.minutes if minutes is None else minutes, strict=strict)


RAW = f"score of {POSTS} raw posts"
SHARED_RAW = f"score of {POSTS} raw posts for {SHARED} users"


def _served(folder: Path, shapes: Shapes, device: str, run: Path | None, vectors: Path | None) -> Served:
    if run is not None and vectors is not None:
        return Served.read(run, vectors)
    made = make_run(folder / "made", shapes.run, device=device)
    export_run(made.run, out=folder / "vectors", users=False, device=device)
    return Served.read(made.run, folder / "vectors")


def questions(served: Served, *, side: int) -> dict[str, list[Ask]]:
    """Return what is asked, by name."""
    generator = np.random.default_rng(0)
    pictures = [base64.b64encode(jpeg(picture(number, generator, side=side))).decode() for number in range(PICTURES)]

    def some(count: int) -> list[str]:
        return [str(i) for i in generator.choice(served.item_ids, min(count, len(served.item_ids)), replace=False)]

    def post(number: int) -> dict[str, object]:
        caption = f"{served.captions[number % len(served.captions)]} {NUMBER} {number}"
        return {"caption": caption, "image": {"base64": pictures[number % PICTURES]}}

    def ask(path: str, *, shared: int = 1, **body: object) -> Ask:
        return Ask("POST", path, json.dumps(body), shared)

    def raw(number: int, shared: int = 1) -> Ask:
        posts = [post(POSTS * number + place) for place in range(POSTS)]
        return ask("/v1/score", shared=shared, history=some(HISTORY), candidates=posts)

    return {
        "score of 100 cached candidates": [
            ask("/v1/score", history=some(HISTORY), candidates=some(CANDIDATES)) for _ in range(100)
        ],
        "recommend": [ask("/v1/recommend", history=some(HISTORY), k=20) for _ in range(100)],
        "search": [ask("/v1/search", text=f"{caption} {NUMBER}", k=10) for caption in served.captions[:100]],
        RAW: [raw(number) for number in range(PICTURES)],
        SHARED_RAW: [raw(number // SHARED, SHARED) for number in range(PICTURES * SHARED)],
    }


def _load_rows(own: Service, asks: dict[str, list[Ask]], seconds: float, rounds: int) -> Iterator[Row]:
    first = 0
    for name, some in asks.items():
        for clients in CLIENTS:
            found = []
            for _ in range(rounds):
                found.append(load(Plan(own.port, clients, seconds, some, first=first, warm_up=2 * clients)))
                first += 1_000_000
            rates = tuple(len(answers.milliseconds) / answers.seconds for answers in found)
            yield Row("serve", f"{name}, {clients} clients", rates, unit="requests/s", details=_times(found))


def _times(found: Sequence[Answers]) -> dict[str, float]:
    """Return percentiles of all good answers, and how many were none."""
    times = [value for answers in found for value in answers.milliseconds]
    failed = sum(count for answers in found for status, count in answers.statuses.items() if status != "200")
    shares = {"p50 ms": 0.5, "p95 ms": 0.95, "p99 ms": 0.99}
    return {name: percentile(times, share) for name, share in shares.items()} | {"failures": float(failed)}


def _field_rows(
    own: Service,
    plain: Service,
    name: str,
    asks: Sequence[Ask],
    numbers: Sequence[int],
    seconds: float,
    rounds: int,
    limit: float | None,
) -> Iterator[Row]:
    """Score raw posts on both sides in turns, from so many clients."""
    for clients in numbers:
        rates: dict[str, list[float]] = {"own": [], "plain": []}
        found: dict[str, list[Answers]] = {"own": [], "plain": []}
        for number in range(rounds):
            for whose, side in (("own", own), ("plain", plain))[:: 1 if number % 2 == 0 else -1]:
                first = (1 + number) * 1_000_000_000 + clients * 1_000_000
                answers = load(Plan(side.port, clients, seconds, asks, first=first, warm_up=2 * clients))
                rates[whose].append(max(len(answers.milliseconds), 1) / answers.seconds)
                found[whose].append(answers)
        details = {f"{whose} {what}": value for whose in found for what, value in _times(found[whose]).items()}
        details |= {f"{whose} requests/s": float(np.median(values)) for whose, values in rates.items()}
        yield Row(
            "serve",
            f"{name} over a plain handler without batching, {clients} clients",
            ratios(rates["own"], rates["plain"]),
            target=limit if clients == max(CLIENTS) else None,
            details=details,
        )


def _overhead_row(
    own: Service, served: Served, asks: Sequence[Ask], device: str, seconds: float, limit: float | None
) -> Row:
    """Compare one client's time with that of the model's two calls alone, for the same histories and candidates."""
    recommender = Recommender.load(served.run, feed=served.feed, device=device, compute_dtype=served.compute_dtype)
    table, catalogue = recommender.item_embeddings(), recommender.assembly.catalogue
    model, floor = recommender.assembly.model, []
    for ask in asks:
        body = json.loads(ask.body)
        history, candidates = (
            torch.from_numpy(np.array(table[[catalogue.row(item_id) for item_id in body[name]]])).to(recommender.device)
            for name in ("history", "candidates")
        )
        users = ordered_users(np.arange(len(history)), np.array([len(history)])).to(recommender.device)
        start = time.perf_counter()
        with evaluating(model):
            vectors = model.encode_users(users, history).vectors
            model.scorer.compare(vectors, candidates).cpu()
        floor.append(1000 * (time.perf_counter() - start))
    answers = load(Plan(own.port, 1, seconds, asks, warm_up=20))
    whole, bare = percentile(answers.milliseconds, 0.5), percentile(floor, 0.5)
    return Row(
        "serve",
        "score of 100 cached candidates, 1 client, beyond the bare calls of the model",
        (whole - bare,),
        bound="at most",
        target=limit,
        unit="ms",
        details={"request p50 ms": whole, "model p50 ms": bare},
    )
