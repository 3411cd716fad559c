"""Parts of mmrec and of its data tools that run no encoder, one after the other on a feed of some size.

Left out are those that take long at a million items (indexes other than exact search) and those that ask one thing for
every user, whose cost is a product of users and items.

Runs in a process of its own; :mod:`benchmarks.grow` starts it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.evaluate import VectorScorer, random_cases
from benchmarks.made_captions import Language, item_id
from benchmarks.measure import extra_memory
from data_tools.audit import audit
from data_tools.describe import describe
from data_tools.prepare import PrepareOptions, prepare
from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from mmrec.evaluation.baselines import standard_baselines
from mmrec.evaluation.ranking import Setting, rank_cases
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import DAY_MS, Histories
from mmrec.feed.items import ItemReader, Modality, optional_links
from mmrec.feed.loader import HistoryLoader
from mmrec.feed.splits import Split
from mmrec.feed.trends import popularity_trends
from mmrec.inference.export import read_vectors, write_vectors
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.objectives.logsumexp import weighted_logsumexp
from mmrec.preprocessing.views import IdTable
from mmrec.search.index import ExactStore
from mmrec.search.where import where_mask

EVENTS_AN_ITEM = 2
EVENTS_A_USER = 10
DAYS = 100
TOPICS = 100
DIM = 64
CASES = 64
"""Cases that are answered, targets that are scored, questions that are asked: all of them would be a product with items."""
ROWS_AT_ONCE = 100_000
START = 1_700_000_000_000
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What a part took.

    Args:
        part: its name.
        seconds: of wall time.
        mb: resident memory at its peak above where it began.
    """

    part: str
    seconds: float
    mb: float


def write_raw(folder: Path, items: int) -> None:
    """Write items with a caption, and users who choose popular ones of their topics at random times."""
    folder.mkdir(parents=True)
    generator, language = np.random.default_rng(0), Language(TOPICS, 8.0)
    writer: pq.ParquetWriter | None = None
    for start in range(0, items, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, items))
        captions = language.captions(rows % TOPICS, generator)
        prices = generator.integers(0, 1000, len(rows))
        table = pa.table({"item_id": [item_id(row) for row in rows.tolist()], "caption": captions, "price": prices})
        writer = writer or pq.ParquetWriter(folder / "items.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    events = EVENTS_AN_ITEM * items
    chosen = (items * generator.random(events) ** 2).astype(np.int64)
    columns = {
        "user_id": np.char.add("u", (np.arange(events) // EVENTS_A_USER).astype("U")),
        "item_id": np.char.add("p", np.char.zfill(chosen.astype("U"), 7)),
        "timestamp": START + generator.integers(0, DAYS * DAY_MS, events),
    }
    pd.DataFrame(columns).to_parquet(folder / "interactions.parquet")


class Parts:
    """The parts, in an order in which each finds what it needs.

    Args:
        folder: holds ``raw``.
    """

    def __init__(self, folder: Path) -> None:
        self._raw, self._feed, self._vectors = folder / "raw", folder / "feed", folder / "items.parquet"

    @property
    def by_name(self) -> dict[str, Callable[[], object]]:
        """Each part by its name."""
        return {
            "prepare, captions only": self.prepare,
            "split by time": lambda: write_split(
                self._feed, name="timed", kind="global_time", choices=SplitChoices(window_targets="successive")
            ),
            "split by cold items": lambda: write_split(
                self._feed, name="cold", kind="cold_items", choices=SplitChoices()
            ),
            "load, look every id up": self.load,
            "training batches of an epoch": self.batches,
            f"baselines, {CASES} cases": self.baselines,
            f"softmax over all items, {CASES} targets": self.softmax,
            f"ranking, {CASES} cases": self.ranking,
            "vectors written, read, filtered": self.vectors,
            f"exact search, {CASES} questions": self.search,
            "describe": lambda: describe(self._feed),
            "audit": lambda: audit(self._feed, splits=["timed"]),
        }

    def prepare(self) -> None:
        """Make the prepared feed."""
        prepare(self._raw, self._feed, options=PrepareOptions(timestamp_unit="ms", workers=1, split=None))

    def load(self) -> None:
        """Open everything, and find the row of every item and user by id."""
        catalogue, histories, _ = (
            Catalogue.load(self._feed),
            Histories.load(self._feed),
            Split.load(self._feed, "timed"),
        )
        for number in catalogue.item_ids:
            catalogue.row(number)
        for user in histories.user_ids:
            histories.row(user)

    def batches(self) -> None:
        """Collate every batch of an epoch, of ids alone."""
        catalogue, histories = Catalogue.load(self._feed), Histories.load(self._feed)
        split = Split.load(self._feed, "timed")
        count = len(catalogue)
        counts = np.bincount(histories.item_rows[np.flatnonzero(split.train_events)], minlength=count)
        ids = IdTable(counts, popularity_trends(histories, split.train_events, num_items=count, days=7))
        loader = HistoryLoader(
            histories,
            split,
            ItemReader({"item_id": Modality(optional_links(ids.rows), ids)}),
            batch_users=256,
            history_length=50,
            negatives=split.trainable_items(histories, catalogue.first_seen),
            num_negatives=256,
            prefetch=0,
        )
        for _ in loader.batches(epoch=0):
            pass

    def baselines(self) -> None:
        """Make the baselines, and let each answer a few cases."""
        histories, split = Histories.load(self._feed), Split.load(self._feed, "timed")
        found = standard_baselines(split.test, histories, split.train_events, vectors={}, present={})
        for scorer in found.values():
            scorer.scores(np.arange(CASES))

    def softmax(self) -> None:
        """Take a step of the softmax over all items, which learn too."""
        items, targets = torch.randn(self._count, DIM, requires_grad=True), torch.randn(CASES, DIM, requires_grad=True)
        torch.autograd.backward(weighted_logsumexp(targets, items, chunk=8192).mean())

    def ranking(self) -> None:
        """Rank all items for a few cases."""
        cases, histories = random_cases(CASES, self._count)
        scorer = VectorScorer(torch.randn(CASES, DIM), torch.randn(self._count, DIM))
        rank_cases(scorer, cases, histories, Setting("filtered", filter_seen=True))

    def search(self) -> None:
        """Search all vectors exactly."""
        vectors = np.random.default_rng(0).standard_normal((self._count, DIM), dtype=np.float32)
        ExactStore(vectors).search(vectors[:CASES], k=10)

    @property
    def _count(self) -> int:
        return len(Catalogue.load(self._feed))

    def vectors(self) -> None:
        """Write vectors and attributes as an export does, read them again, filter."""
        attributes = Catalogue.load(self._feed).attributes
        vectors = WrittenVectors(np.zeros((len(attributes), DIM), np.float32), VectorFormat())
        ids = attributes["item_id"].tolist()
        extra = {"price": attributes["price"].tolist()}
        write_vectors(self._vectors, ids, vectors, id_column="item_id", extra=extra)
        read_vectors(self._vectors, id_column="item_id")
        where_mask(pd.read_parquet(self._vectors, columns=["price"]), "price<20")


def measure_parts(folder: Path, items: int) -> list[Cost]:
    """Write a feed of some size under ``folder`` and run every part on it, each in a fork of this process.

    What an earlier part freed would serve the next one, whose use would not show.  This process itself imports and does
    nothing else: it has no threads that a fork would lose.
    """
    _in_fork(lambda: write_raw(folder / "raw", items))
    return [_in_fork(partial(_measure, name, run)) for name, run in Parts(folder).by_name.items()]


def _measure(name: str, run: Callable[[], object]) -> Cost:
    with extra_memory("cpu") as memory:
        start = time.perf_counter()  # memory that is given back first is no part of it
        run()
        seconds = time.perf_counter() - start
    return Cost(name, seconds, memory["mb"])


def _in_fork(run: Callable[[], Result]) -> Result:
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(run()))
    process.start()
    sender.close()  # so that a child that dies is noticed
    found: Result = receiver.recv()
    process.join()
    return found


def main() -> None:
    """Take a folder and a number of items, print the costs as JSON."""
    torch.set_num_threads(1)  # to start threads takes longer than what they do at the smallest sizes
    print(json.dumps([vars(cost) for cost in measure_parts(Path(sys.argv[1]), int(sys.argv[2]))]))
