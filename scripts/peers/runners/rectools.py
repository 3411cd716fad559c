"""Sequence models of RecTools: SASRec, HSTU, and eSASRec's recipe (LiGR layers, sampled softmax).

One epoch at a time through ``fit_partial``; the weights of the epoch that validation likes best answer the test cases.
A case is one user of the data set that is recommended for, so its history is exactly the one that was asked about.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pandas as pd
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.ligr import LiGRLayers

from peers.runners.plain import Data, Floats, Integers, Questions, Score, read_task

SETTINGS: dict[str, dict[str, object]] = {
    "sasrec": {"loss": "softmax"},
    # With its own temperature of 1, a cosine's softmax is nearly flat, whatever is learnt.
    "hstu": {
        "loss": "softmax",
        "similarity_module_kwargs": {"distance": "cosine"},
        "lightning_module_kwargs": {"logits_t": 0.05},
    },
    "esasrec": {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers},
}
COMMON: dict[str, object] = {
    "n_blocks": 2,
    "n_heads": 2,
    "n_factors": 128,
    "dropout_rate": 0.2,
    "batch_size": 32,
    "lr": 1e-3,
}
SHORTEST, LONGEST = 20, 100
PATIENCE = 5
MOST_EPOCHS = 200
CHOSEN_BY = 1000


def main() -> None:
    """Train until validation stops improving or the time is up, then score."""
    task = read_task()
    data, clock = task.data, task.clock
    warnings.filterwarnings("ignore")
    seed_everything(task.seed)
    length = session_length(data)
    timed = bool(data.about["has_time"])
    model = build(task.variant, length, timed=timed)
    train = dataset(data.train.users, data.train.items, data.train.timestamps, timed=timed)
    questions = data.choice(CHOSEN_BY)
    found: list[dict[str, float]] = []
    best, weights, ended = -1.0, None, "epochs"
    for epoch in range(1, MOST_EPOCHS + 1):
        model.fit_partial(train, min_epochs=1, max_epochs=1)
        value = data.ndcg(questions, scorer(model, questions, data, timed=timed))
        found.append({"epoch": epoch, "ndcg@10": value, "seconds": clock.seconds})
        print(found[-1], flush=True)
        if value > best:
            best, weights = value, copy.deepcopy(model.torch_model.state_dict())
        since = epoch - max(found, key=lambda entry: entry["ndcg@10"])["epoch"]
        if since >= PATIENCE or clock.over:
            ended = "validation" if since >= PATIENCE else "limit"
            break
    assert weights is not None
    model.torch_model.load_state_dict(weights)
    plain = {name: getattr(value, "__name__", value) for name, value in (COMMON | SETTINGS[task.variant]).items()}
    task.finish(
        scorer(model, data.test, data, timed=timed),
        fit_seconds=clock.seconds,
        ended=ended,
        settings=plain | {"session_max_len": length, "validation_cases": len(questions), "patience": PATIENCE},
        packages=("rectools", "torch", "pytorch-lightning", "pandas"),
        validation=found,
    )


def session_length(data: Data) -> int:
    """Return the window: nearly every history in full, between ``SHORTEST`` and ``LONGEST``."""
    usual = float(np.quantile(np.diff(data.test.offsets), 0.95))
    return int(np.clip(usual, SHORTEST, LONGEST))


def build(variant: str, length: int, *, timed: bool) -> SASRecModel | HSTUModel:
    """Return a model without weights."""
    given = (
        COMMON
        | SETTINGS[variant]
        | {
            "session_max_len": length,
            "item_net_block_types": (IdEmbeddingsItemNet,),
            "recommend_batch_size": 256,
        }
    )
    if variant == "hstu":
        # Times between events mean nothing where only their order is known.
        return HSTUModel(**given, relative_time_attention=timed)
    return SASRecModel(**given)


def dataset(users: Integers, items: Integers, timestamps: Integers, *, timed: bool) -> Dataset:
    """Return interactions as RecTools takes them."""
    table = {Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: _when(timestamps, timed)}
    return Dataset.construct(pd.DataFrame(table))


def scorer(model: SASRecModel | HSTUModel, questions: Questions, data: Data, *, timed: bool) -> Score:
    """Return what recommends the whole catalogue and puts the scores back in the catalogue's order.

    An item that training lacks gets the lowest score there is.
    """

    def score(cases: Integers) -> Floats:
        part = questions.take(cases)
        known = dataset(part.owners, part.items, part.timestamps, timed=timed)
        context = None
        if model.require_recommend_context:
            users = np.arange(len(part))
            context = pd.DataFrame(
                {Columns.User: users, Columns.Datetime: _when(part.times, timed), Columns.Weight: 1.0}
            )
        table = model.recommend(
            users=np.unique(part.owners),
            dataset=known,
            k=data.num_items,
            filter_viewed=False,
            add_rank_col=False,
            on_unsupported_targets="ignore",
            context=context,
        )
        scores = np.full((len(part), data.num_items), np.finfo(np.float32).min, np.float32)
        scores[table[Columns.User].to_numpy(), table[Columns.Item].to_numpy()] = table[Columns.Score].to_numpy()
        return scores

    return score


def _when(timestamps: Integers, timed: bool) -> pd.Series:
    """Return times as dates; a rank becomes so many seconds."""
    return pd.Series(pd.to_datetime(timestamps, unit="ms" if timed else "s"))


if __name__ == "__main__":
    main()
