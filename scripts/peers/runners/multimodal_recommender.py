"""Models of ``multimodal-recommender`` (PyPI), whose import package bears the same name as the library measured against it.

BM3 answers only users it was fitted on: its learning rate is chosen on validation, and the model that answers the test
cases is fitted again on events that hold validation's targets too.  MultiModalItemKNN learns nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pandas as pd

from peers.runners.plain import Data, Events, Floats, Integers, Questions, Score, Task, read_task

# By name, so that nothing takes it for the other package.
CONFIG, DATA, MODELS = (importlib.import_module(f"mmrec.{name}") for name in ("config", "data", "models"))
COLUMNS = CONFIG.ColumnConfig("user_id", "item_id", "timestamp", None)
RATES = (0.01, 0.001)
"""Learning rates tried; the first is the library's."""
BATCH = 16384
"""Pairs a step; every step propagates over the whole graph, so that the library's 4096 gets through fewer epochs."""
CHOOSING = 0.4
"""Share of the time for choosing; the rest is for the last fit."""
CHOSEN_BY = 2000


def main() -> None:
    """Run the variant asked for."""
    task = read_task()
    if task.variant == "bm3":
        run_bm3(task)
    else:
        run_knn(task)


def run_bm3(task: Task) -> None:
    """Choose the rate, fit again, score."""
    data = task.data
    questions = data.choice(CHOSEN_BY)
    tried: list[dict[str, float]] = []
    for rate in RATES:
        model = bm3(data, data.train, rate, seconds=CHOOSING * task.clock.limit / len(RATES), seed=task.seed)
        tried.append({"rate": rate, "ndcg@10": data.ndcg(questions, scorer(model, questions, data))})
        print(tried[-1], flush=True)
    rate = max(tried, key=lambda entry: entry["ndcg@10"])["rate"]
    model = bm3(data, data.final(), rate, seconds=(1 - CHOOSING) * task.clock.limit, seed=task.seed)
    task.finish(
        scorer(model, data.test, data),
        fit_seconds=task.clock.seconds,
        ended="limit" if model.early_stopped else "epochs",
        settings={"learning_rate": rate, "tried": list(RATES), "batch_size": BATCH, "factors": model.factors},
        packages=("multimodal-recommender", "torch", "pandas"),
        validation=tried,
    )


def run_knn(task: Task) -> None:
    """Compare the mean of each history with every item."""
    data = task.data
    model = MODELS.MultiModalItemKNNModel(COLUMNS)
    model.fit(table(data.train), bundle(data, data.train))
    task.finish(
        scorer(model, data.test, data),
        fit_seconds=task.clock.seconds,
        ended="counts",
        settings={},
        packages=("multimodal-recommender", "pandas"),
    )


def bm3(data: Data, events: Events, rate: float, *, seconds: float, seed: int) -> Any:  # noqa: ANN401
    """Return a fitted model."""
    model = MODELS.BM3Model(
        COLUMNS, learning_rate=rate, batch_size=BATCH, time_limit=seconds, random_state=seed, device="cpu"
    )
    return model.fit(table(events), bundle(data, events))


def table(events: Events) -> pd.DataFrame:
    """Return events as the library takes them."""
    when = pd.to_datetime(events.timestamps, unit="ms")
    return pd.DataFrame({"user_id": events.users, "item_id": events.items, "timestamp": when})


def bundle(data: Data, events: Events) -> Any:  # noqa: ANN401
    """Return events and items with their vectors, one column a modality."""
    contents = data.contents()
    items = pd.DataFrame({"item_id": np.arange(data.num_items)} | {name: list(rows) for name, rows in contents.items()})
    modalities = {"item": {"embedding": list(contents)}}
    return DATA.DatasetBundle(table(events), None, items, modalities, {})


def scorer(model: Any, questions: Questions, data: Data) -> Score:  # noqa: ANN401
    """Return what scores every item for the users of some cases, by their histories where the model looks at them."""
    assert model.items == list(range(data.num_items))

    def score(cases: Integers) -> Floats:
        part = questions.take(cases)
        histories = {
            int(user): set(part.items[low:high].tolist())
            for user, low, high in zip(part.users, part.offsets, part.offsets[1:], strict=False)
        }
        scores = model.score_all_users(part.users.tolist(), histories)
        assert scores is not None, "a user whom the model does not know"
        return np.asarray(scores, dtype=np.float32)

    return score


if __name__ == "__main__":
    main()
