"""VBPR of Cornac: matrix factorisation with items' content beside their ids, trained by pairs (He and McAuley, AAAI 2016).

It answers only users it was fitted on.  So the number of epochs is chosen on validation, and the model that answers the
test cases is fitted again, for as long, on events that hold validation's targets too.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from cornac.data import Dataset, ImageModality
from cornac.models import VBPR

from peers.runners.plain import Clock, Data, Events, Floats, Integers, Questions, Score, read_task

RATES = (0.005, 0.001)
"""Learning rates tried; the first is the library's."""
COMMON = {"k": 64, "k2": 64, "batch_size": 1024, "lambda_w": 0.01, "lambda_b": 0.01, "lambda_e": 0.0}
SLICE = 2
"""Epochs between two looks at validation."""
MOST_EPOCHS = 60
PATIENCE = 2
"""Slices without an improvement."""
CHOSEN_BY = 2000
CHOOSING = 0.6
"""Share of the time for choosing; the rest is for the last fit."""


def main() -> None:
    """Choose rate and epochs on validation, fit again, then score."""
    task = read_task()
    data = task.data
    warnings.filterwarnings("ignore")
    features = data.side_by_side()
    questions = data.choice(CHOSEN_BY)
    train = dataset(data.train, data, features, seed=task.seed)
    tried: list[dict[str, float]] = []
    for number, rate in enumerate(RATES, start=1):
        model, best, since = None, -1.0, 0
        for epochs in range(SLICE, MOST_EPOCHS + 1, SLICE):
            model = further(model, train, rate, epochs=SLICE, seed=task.seed)
            value = data.ndcg(questions, scorer(model, questions))
            tried.append({"rate": rate, "epoch": epochs, "ndcg@10": value, "seconds": task.clock.seconds})
            print(tried[-1], flush=True)
            best, since = (value, 0) if value > best else (best, since + 1)
            if since >= PATIENCE or task.clock.seconds > CHOOSING * task.clock.limit * number / len(RATES):
                break
    chosen = max(tried, key=lambda entry: entry["ndcg@10"])
    last, done = dataset(data.final(), data, features, seed=task.seed), 0
    model, clock = None, Clock(task.clock.limit * (1 - CHOOSING))
    while done < chosen["epoch"] and not clock.over:
        model = further(model, last, chosen["rate"], epochs=SLICE, seed=task.seed)
        done += SLICE
    assert model is not None
    last_looked = [entry["epoch"] for entry in tried if entry["rate"] == chosen["rate"]][-1]
    whole = done >= chosen["epoch"] and last_looked > chosen["epoch"]
    task.finish(
        scorer(model, data.test),
        fit_seconds=task.clock.seconds,
        ended="validation" if whole else "limit",
        settings=COMMON | {"learning_rate": chosen["rate"], "epochs": done, "tried": list(RATES)},
        packages=("cornac", "torch"),
        validation=tried,
    )


def dataset(events: Events, data: Data, features: Floats, *, seed: int) -> Dataset:
    """Return events as Cornac takes them, with every item of the catalogue, those without an event too."""
    users = OrderedDict((user, user) for user in range(data.num_users))
    items = OrderedDict((item, item) for item in range(data.num_items))
    triplets = zip(events.users.tolist(), events.items.tolist(), np.ones(len(events.users)), strict=True)
    built = Dataset.build(triplets, global_uid_map=users, global_iid_map=items, seed=seed)
    built.add_modalities(item_image=ImageModality(features=features, normalized=False))
    return built


def further(model: VBPR | None, events: Dataset, rate: float, *, epochs: int, seed: int) -> VBPR:
    """Return a model trained for some more epochs; None starts anew."""
    start: Mapping[str, Floats] = {}
    if model is not None:
        start = {
            "Bi": model.beta_item,
            "Gu": model.gamma_user,
            "Gi": model.gamma_item,
            "Tu": model.theta_user,
            "E": model.emb_matrix,
            "Bp": model.beta_prime,
        }
    made = VBPR(**COMMON, learning_rate=rate, n_epochs=epochs, init_params=start, verbose=False, seed=seed)
    return made.fit(events)


def scorer(model: VBPR, questions: Questions) -> Score:
    """Return what asks the model user by user."""

    def score(cases: Integers) -> Floats:
        return np.stack([model.score(int(user)) for user in questions.users[cases]]).astype(np.float32)

    return score


if __name__ == "__main__":
    main()
