"""What a service must bear: another model under load, posts that are found at once, and mixed load for minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.load_client import Ask, Plan
from benchmarks.measure import Row
from benchmarks.services import Clients, MemoryWatch, Service, percentile

SWAP_CLIENTS, SOAK_CLIENTS = 8, 8
PUBLISHED = 20
KEPT = 200
"""Posts that mixed load publishes again and again."""


def publish_rows(own: Service, captions: Sequence[str], *, strict: bool) -> Iterator[Row]:
    """Publish posts, and after each recommend and search until it is there."""
    seconds = []
    for number in range(PUBLISHED):
        item_id, caption = f"fresh-{number}", f"{captions[number % len(captions)]} {time.time_ns()}"
        start = time.perf_counter()
        own.ask("PUT", f"/v1/items/{item_id}", {"caption": caption})
        found = own.ask("POST", "/v1/search", {"text": caption, "k": 50})
        assert item_id in {entry["item_id"] for entry in found["results"]}  # type: ignore[attr-defined]
        offered = own.ask("POST", "/v1/recommend", {"history": [item_id], "k": 500})
        assert item_id in {entry["item_id"] for entry in offered["results"]}  # type: ignore[attr-defined]
        seconds.append(time.perf_counter() - start)
    yield Row(
        "serve",
        "publishing a post, and searching and recommending it",
        tuple(1000 * value for value in seconds),
        bound="at most",
        target=300.0 if strict else None,
        unit="ms",
        details={"slowest ms": 1000 * max(seconds)},
    )


def swap_rows(own: Service, asks: Mapping[str, Sequence[Ask]], *, strict: bool) -> Iterator[Row]:
    """Swap to the same pair under other names, and back, while clients ask everything."""
    mixed = [ask for some in asks.values() for ask in some[:25]]
    clients = Clients(Plan(own.port, SWAP_CLIENTS, 600.0, mixed, first=7_000_000_000))
    time.sleep(1.0)
    start = time.perf_counter()
    own.ask("POST", "/admin/model", {"run": "run", "vectors": "vectors"})
    there = time.perf_counter() - start
    own.ask("POST", "/admin/rollback", {})
    back = time.perf_counter() - start - there
    time.sleep(1.0)
    answers = clients.stop()
    failed = sum(count for status, count in answers.statuses.items() if status != "200")
    yield Row(
        "serve",
        f"failed requests of {SWAP_CLIENTS} clients while the model is swapped and rolled back",
        (float(failed),),
        bound="at most",
        target=0.0 if strict else None,
        unit="requests",
        details={
            "requests": float(len(answers.milliseconds)),
            "slowest ms": max(answers.milliseconds),
            "swap s": there,
            "rollback s": back,
        },
    )


def soak_rows(own: Service, asks: Mapping[str, Sequence[Ask]], *, minutes: float, strict: bool) -> Iterator[Row]:
    """Ask everything and write for minutes; what is sent comes again, so that caches are full after the warm-up."""
    reads = [Ask(ask.method, ask.path, ask.body.replace("@@", "")) for some in asks.values() for ask in some]
    writes = [
        Ask("PUT", f"/v1/items/kept-{number}", f'{{"caption": "kept post number {number}"}}') for number in range(KEPT)
    ]
    writes += [
        Ask("POST", "/v1/feedback", f'{{"events": [{{"user_id": "user-{n % 50}", "item_id": "kept-{n}"}}]}}')
        for n in range(KEPT)
    ]
    mixed = [*reads, *writes]
    np.random.default_rng(0).shuffle(mixed)
    watch = MemoryWatch(own)
    answers = Clients(Plan(own.port, SOAK_CLIENTS, 60 * minutes, mixed)).wait()
    watch.stop()
    errors = sum(count for status, count in answers.statuses.items() if not status.startswith(("2", "4")))
    warm = len(watch.minutes) // 3
    slope = float(np.polyfit(watch.minutes[warm:], watch.megabytes[warm:], 1)[0]) if len(watch.minutes) > 5 else 0.0
    yield Row(
        "serve",
        f"memory under mixed load of {SOAK_CLIENTS} clients for {minutes:g} minutes, after the first third",
        (slope,),
        bound="at most",
        target=1.0 if strict else None,
        unit="MB/min",
        details={
            "after the first third MB": watch.megabytes[warm] if watch.megabytes else 0.0,
            "at the end MB": watch.megabytes[-1] if watch.megabytes else 0.0,
        },
    )
    yield Row(
        "serve",
        f"server errors under mixed load for {minutes:g} minutes",
        (float(errors),),
        bound="at most",
        target=0.0 if strict else None,
        unit="requests",
        details={
            "requests": float(sum(answers.statuses.values())),
            "requests/s": len(answers.milliseconds) / answers.seconds,
            "p50 ms": percentile(answers.milliseconds, 0.5),
            "p99 ms": percentile(answers.milliseconds, 0.99),
        },
    )
