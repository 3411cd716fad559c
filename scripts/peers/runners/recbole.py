"""GRU4Rec of RecBole: a recurrent network over every prefix of every history, full softmax.

RecBole splits feeds by rules of its own; here it is given the training events alone, and asked, one epoch at a time,
about the histories of the cases.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import GRU4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from peers.runners.plain import Data, Floats, Integers, Questions, Score, Task, read_task

COMMON: dict[str, object] = {
    "embedding_size": 128,
    "hidden_size": 128,
    "num_layers": 1,
    "dropout_prob": 0.3,
    "loss_type": "CE",
    "learning_rate": 1e-3,
    "train_batch_size": 512,
    "train_neg_sample_args": None,
}
LONGEST = 50
"""RecBole's own."""
PATIENCE = 5
MOST_EPOCHS = 200
CHOSEN_BY = 1000
NAME = "feed"


def main() -> None:
    """Train until validation stops improving or the time is up, then score."""
    task = read_task()
    data = task.data
    warnings.filterwarnings("ignore")
    length = int(np.clip(np.quantile(np.diff(data.test.offsets), 0.95), 20, LONGEST))
    config = settings(task, length)
    init_seed(task.seed, reproducibility=True)
    write_events(data, task)
    feed = create_dataset(config)
    items = item_rows(feed, data)
    train = TrainDataLoader(config, feed.build()[0], None, shuffle=True)
    model = GRU4Rec(config, feed)
    # One epoch a call: the trainer keeps its optimiser from call to call.
    trainer = Trainer(config, model)
    questions = data.choice(CHOSEN_BY)
    found: list[dict[str, float]] = []
    best, weights, ended = -1.0, None, "epochs"
    for epoch in range(1, MOST_EPOCHS + 1):
        trainer.fit(train, saved=False, verbose=False)
        value = data.ndcg(questions, scorer(model, items, questions, length))
        found.append({"epoch": epoch, "ndcg@10": value, "seconds": task.clock.seconds})
        print(found[-1], flush=True)
        if value > best:
            best, weights = value, copy.deepcopy(model.state_dict())
        since = epoch - max(found, key=lambda entry: entry["ndcg@10"])["epoch"]
        if since >= PATIENCE or task.clock.over:
            ended = "validation" if since >= PATIENCE else "limit"
            break
    assert weights is not None
    model.load_state_dict(weights)
    task.finish(
        scorer(model, items, data.test, length),
        fit_seconds=task.clock.seconds,
        ended=ended,
        settings=COMMON | {"length": length, "validation_cases": len(questions), "patience": PATIENCE},
        packages=("recbole", "torch", "pandas", "scipy"),
        validation=found,
    )


def settings(task: Task, length: int) -> Config:
    """Return RecBole's configuration: all events are for training."""
    given = COMMON | {
        "data_path": str(task.out),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": length,
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": None, "mode": "full"},
        "epochs": 1,
        "seed": task.seed,
        "use_gpu": False,
        "show_progress": False,
        "checkpoint_dir": str(task.out / "saved"),
    }
    return Config(model="GRU4Rec", dataset=NAME, config_dict=given)


def write_events(data: Data, task: Task) -> None:
    """Write the training events as RecBole reads them; the position stands for the time, so that no tie is reordered."""
    folder = task.out / NAME
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame(
        {
            "user_id:token": data.train.users,
            "item_id:token": data.train.items,
            "timestamp:float": np.arange(len(data.train.users)),
        }
    )
    table.to_csv(folder / f"{NAME}.inter", sep="\t", index=False)


def item_rows(feed: Any, data: Data) -> Integers:  # noqa: ANN401
    """Return RecBole's number of every item, shape (items,), 0 where training lacks it."""
    numbers = feed.field2token_id["item_id"]
    return np.array([numbers.get(str(row), 0) for row in range(data.num_items)])


def scorer(model: GRU4Rec, items: Integers, questions: Questions, length: int) -> Score:
    """Return what scores the whole catalogue by the last items of each history."""

    @torch.no_grad()
    def score(cases: Integers) -> Floats:
        part = questions.take(cases)
        shown, lengths = np.zeros((len(part), length), np.int64), np.ones(len(part), np.int64)
        for case, (low, high) in enumerate(zip(part.offsets, part.offsets[1:], strict=False)):
            known = items[part.items[low:high]]
            known = known[known > 0][-length:]
            shown[case, : len(known)] = known
            lengths[case] = max(1, len(known))
        model.eval()
        asked = Interaction({"item_id_list": torch.from_numpy(shown), "item_length": torch.from_numpy(lengths)})
        found = model.full_sort_predict(asked).numpy()
        return np.where(items > 0, found[:, items], np.finfo(np.float32).min).astype(np.float32)

    return score


if __name__ == "__main__":
    main()
