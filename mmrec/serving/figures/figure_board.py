"""Figures of several processes on one page: each writes its own to a folder, whoever is asked adds those of the others."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmrec.errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry, Metric, generate_latest
except ImportError as error:
    raise MissingExtraError("prometheus_client", "serve") from error

_SECONDS = 1.0
"""Between two writings."""


class FigureBoard:
    """A folder in which each process has a file; its figures bear the label ``worker``.

    Args:
        folder: of all processes of the service.
        worker: number of this one.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder, self._worker, self._next = folder, str(worker), 0.0

    def put(self, registry: CollectorRegistry) -> None:
        """Write the figures of this process, once a second at most."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS
        families = [
            [family.name, family.documentation, family.type, [[s.name, s.labels, s.value] for s in family.samples]]
            for family in registry.collect()
        ]
        partial = self._folder / f"{self._worker}.partial"
        partial.write_text(json.dumps(families), encoding="utf-8")
        partial.replace(self._folder / f"{self._worker}.json")

    def page(self, registry: CollectorRegistry) -> bytes:
        """Return this process's figures as they are, and those of the others as they were a moment ago."""
        together: dict[str, Metric] = {}
        for family in registry.collect():
            _add(together, family, self._worker)
        for path in sorted(self._folder.glob("*.json")):
            if path.stem != self._worker:
                for family in _read(path):
                    _add(together, family, path.stem)
        whole = CollectorRegistry()
        whole.register(_Page(together.values()))
        return generate_latest(whole)


class _Page:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _add(together: dict[str, Metric], family: Metric, worker: str) -> None:
    into = together.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    for sample in family.samples:
        into.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)


def _read(path: Path) -> Iterator[Metric]:
    for name, documentation, kind, samples in json.loads(path.read_text(encoding="utf-8")):
        family = Metric(name, documentation, kind)
        for sample in samples:
            family.add_sample(*sample)
        yield family
