"""The files that a peer reads and writes, with numpy alone.

A data folder, made by ``python scripts/peer.py export``, holds

    about.json        num_users, num_items, has_time, and how validation is measured (filter_seen, pool)
    train.npz         users, items, timestamps: what may be learnt from, user after user, oldest first
    final.npz         likewise, with the events of the test histories: for a library that only answers whom it was fitted on
    validation.npz    users, times, history_offsets, history_items, history_timestamps, target_offsets, target_items
    test.npz          likewise, without the targets: a peer never sees them
    items.npz         text, image (items, dim), text_present, image_present (items,), roles (items,)

Users and items are row numbers; case ``c`` owns ``history_items[history_offsets[c]:history_offsets[c + 1]]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RUN_JSON = "peer.json"
CUTOFF = 10
BLOCK = 512
"""Cases scored at once."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Score = Callable[[Integers], Floats]
"""Takes positions of cases; returns scores of the whole catalogue, shape (cases, items), higher is better."""


@dataclass(frozen=True)
class Events:
    """What happened, user after user, oldest first; each array of shape (events,)."""

    users: Integers
    items: Integers
    timestamps: Integers

    @classmethod
    def load(cls, path: Path) -> Events:
        """Read ``train.npz`` or ``final.npz``."""
        with np.load(path) as held:
            return cls(held["users"], held["items"], held["timestamps"])


@dataclass(frozen=True)
class Questions:
    """Cases: a history each and, for validation, the targets.

    Args:
        users: shape (cases,).
        times: shape (cases,), when it is asked.
        offsets: shape (cases + 1,), where each history starts.
        items: shape (events,), histories end to end, oldest first.
        timestamps: shape (events,).
        target_offsets: shape (cases + 1,); all zero where the targets are not given away.
        target_items: shape (targets,).
    """

    users: Integers
    times: Integers
    offsets: Integers
    items: Integers
    timestamps: Integers
    target_offsets: Integers
    target_items: Integers

    @classmethod
    def load(cls, path: Path) -> Questions:
        """Read ``validation.npz`` or ``test.npz``."""
        with np.load(path) as held:
            known = "target_items" in held
            return cls(
                held["users"],
                held["times"],
                held["history_offsets"],
                held["history_items"],
                held["history_timestamps"],
                held["target_offsets"] if known else np.zeros(len(held["users"]) + 1, np.int64),
                held["target_items"] if known else np.zeros(0, np.int64),
            )

    def __len__(self) -> int:
        return len(self.users)

    def take(self, cases: Integers) -> Questions:
        """Return some of the cases, in the order given."""
        index, offsets = _slots(self.offsets, cases)
        targets, target_offsets = _slots(self.target_offsets, cases)
        return Questions(
            self.users[cases],
            self.times[cases],
            offsets,
            self.items[index],
            self.timestamps[index],
            target_offsets,
            self.target_items[targets],
        )

    @property
    def owners(self) -> Integers:
        """Case of every event of the histories, shape (events,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def seen(self, num_items: int) -> npt.NDArray[np.bool_]:
        """Return which items each history holds, shape (cases, items)."""
        mask = np.zeros((len(self), num_items), bool)
        mask[self.owners, self.items] = True
        return mask


@dataclass(frozen=True)
class Data:
    """A data folder."""

    folder: Path
    about: Mapping[str, Any]
    train: Events
    validation: Questions
    test: Questions

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Read a data folder, without what only some peers need."""
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        parts = (Questions.load(folder / f"{name}.npz") for name in ("validation", "test"))
        return cls(folder, about, Events.load(folder / "train.npz"), *parts)

    @property
    def num_users(self) -> int:
        """Users of the feed; rows count from 0."""
        return int(self.about["num_users"])

    @property
    def num_items(self) -> int:
        """Items of the catalogue; rows count from 0."""
        return int(self.about["num_items"])

    def final(self) -> Events:
        """Return the training events together with those of the test histories."""
        return Events.load(self.folder / "final.npz")

    def contents(self) -> dict[str, Floats]:
        """Return the items' vectors by modality, each row of length 1, zero where an item lacks the modality."""
        with np.load(self.folder / "items.npz") as held:
            names = [name for name in ("text", "image") if name in held]
            return {name: _unit(held[name]) * held[f"{name}_present"][:, None] for name in names}

    def side_by_side(self) -> Floats:
        """Return the vectors of all modalities side by side, rows of length 1, shape (items, dims)."""
        return _unit(np.concatenate(list(self.contents().values()), axis=1))

    def pool(self) -> npt.NDArray[np.bool_]:
        """Return the candidates of validation, shape (items,)."""
        if self.about["validation"]["pool"] == "all":
            return np.ones(self.num_items, bool)
        with np.load(self.folder / "items.npz") as held:
            return np.asarray(held["roles"] == self.about["validation"]["role"])

    def choice(self, most: int, *, seed: int = 0) -> Questions:
        """Return the validation cases, or that many of them chosen at random: what settings and epochs are chosen by."""
        if len(self.validation) <= most:
            return self.validation
        chosen = np.random.default_rng(seed).choice(len(self.validation), most, replace=False)
        return self.validation.take(np.sort(chosen))

    def ndcg(self, questions: Questions, score: Score) -> float:
        """Return the mean NDCG@10 of validation cases: binary gains, ties count against the peer."""
        pool, filtered = self.pool(), bool(self.about["validation"]["filter_seen"])
        gains: list[float] = []
        for chunk in blocks(len(questions)):
            part, scores = questions.take(chunk), score(chunk)
            offered = np.broadcast_to(pool, scores.shape) & ~(part.seen(self.num_items) & filtered)
            for case in range(len(part)):
                targets = np.unique(part.target_items[part.target_offsets[case] : part.target_offsets[case + 1]])
                targets = targets[offered[case, targets]]
                if len(targets):
                    others = scores[case][offered[case]]
                    ranks = (others[None, :] >= scores[case, targets][:, None]).sum(1)
                    gains.append(_gain(ranks[ranks <= CUTOFF]) / _gain(np.arange(min(len(targets), CUTOFF)) + 1))
        return float(np.mean(gains)) if gains else 0.0


class Clock:
    """Counts seconds of the processor, and knows when they are used up: other work on the machine costs a peer nothing."""

    def __init__(self, limit: float) -> None:
        self._start, self.limit = time.process_time(), limit

    @property
    def seconds(self) -> float:
        """Seconds that all threads of this process took since the start."""
        return time.process_time() - self._start

    @property
    def over(self) -> bool:
        """Whether the limit is used up."""
        return self.seconds > self.limit


@dataclass(frozen=True)
class Task:
    """What a runner was asked to do."""

    data: Data
    out: Path
    variant: str
    seed: int
    clock: Clock

    def finish(
        self,
        score: Score,
        *,
        fit_seconds: float,
        ended: str,
        settings: Mapping[str, object],
        packages: Sequence[str] = (),
        validation: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Score the test cases into ``scores-*.npy`` and say in ``peer.json`` how that came about.

        Args:
            score: scores the test cases.
            fit_seconds: what fitting took, its own validation included.
            ended: ``closed form``, ``validation`` (no better for a while), ``limit`` (seconds) or ``epochs`` (all that were asked).
            settings: what was chosen, and among which.
            packages: distributions whose versions matter.
            validation: NDCG@10 after each epoch, or of each setting tried.
        """
        started = time.perf_counter()
        for number, chunk in enumerate(blocks(len(self.data.test))):
            scores = np.ascontiguousarray(score(chunk), dtype=np.float32)
            assert scores.shape == (len(chunk), self.data.num_items), scores.shape
            np.save(self.out / f"scores-{number:05d}.npy", scores)
        names = ("numpy", *packages)
        about = {
            "variant": self.variant,
            "seed": self.seed,
            "ended": ended,
            "limit_seconds": self.clock.limit,
            "fit_seconds": fit_seconds,
            "score_seconds": time.perf_counter() - started,
            "settings": dict(settings),
            "validation": list(validation),
            "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in names},
        }
        (self.out / RUN_JSON).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_task() -> Task:
    """Read the command line that every runner has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of the processor for fitting")
    asked = parser.parse_args()
    return Task(Data.load(asked.data), asked.out, asked.variant, asked.seed, Clock(asked.limit))


def blocks(number: int) -> Iterator[Integers]:
    """Divide the positions from 0 to ``number`` into blocks of neighbours."""
    for start in range(0, number, BLOCK):
        yield np.arange(start, min(start + BLOCK, number))


def _slots(offsets: Integers, cases: Integers) -> tuple[Integers, Integers]:
    """Return where the entries of some cases lie, and where each case starts among them."""
    lengths = np.diff(offsets)[cases]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(starts[-1]) + np.repeat(offsets[cases] - starts[:-1], lengths), starts


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _gain(ranks: Integers) -> float:
    return float((1 / np.log2(ranks + 1)).sum())
