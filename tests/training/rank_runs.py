"""Trains in pairs of forked processes that share one model, some of which are killed or interrupted.

``python -m tests.training.rank_runs FOLDER FEED CONFIG`` writes what test_ranks.py reads.  It is a process of its own so
that torch is imported once and nothing but one thread is forked.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from mmrec.assembly import Assembly, assemble, choose_device
from mmrec.batch import ItemBatch, Parts
from mmrec.build_training import build_loader, build_loss
from mmrec.commands import validation
from mmrec.commands.train import check_settings, train_run, training_ids
from mmrec.config import Config
from mmrec.config_file import load_config
from mmrec.encoders import buckets
from mmrec.feed.splits import Cases
from mmrec.model.item_encoder import ItemEncoder
from mmrec.training.accelerator import open_accelerator
from mmrec.training.loop import _Training
from mmrec.training.loss import LossTerms
from mmrec.training.ranks import ALONE, Ranks
from tests.tiny_run import changed

NO_DROPOUT = {
    "encoders": {"item_id": {"kind": "item_id", "dropout": 0.0}},
    "fusion": {"dropout": 0.0, "feature_dropout": 0.0, "modality_dropout": 0.0},
    "user": {"dropout": 0.0},
}
IMPORTED_LATE = (
    "PIL.ImageFile",
    "mmrec.encoders.timm_image",
    "mmrec.encoders.transformers_text",
    "transformers.models.bert.modeling_bert",
)
"""What a training imports when it first needs it: once here, or again in every fork (half of what a fork did)."""
RANKS = 2
PATIENCE = 100
"""Seconds after which a rank that waits for another dies (SIGALRM): it must not outlive the test."""
KILLED_AT = 4
STEP_USERS = 19
"""Of 20 users: a batch of 19, and one of a single user, whom only one of two ranks gets."""
STEP_CASES: dict[str, dict[str, dict[str, object]]] = {
    "full_softmax": {},
    "in_batch_softmax": {"objective": {"kind": "in_batch_softmax"}},
    "bpr": {"objective": {"kind": "bpr"}},
    "bce": {"objective": {"kind": "bce"}},
    "mse": {"objective": {"kind": "mse"}},
    "a slice of items at once, histories masked": {"train": {"items_at_once": 3}, "objective": {"mask_history": True}},
    "no negatives": {"objective": {"negatives": 0}},
}


class Pair:
    """Runs a function in two forked ranks; tells how each ended."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"

    def __call__(self, act: Callable[[], object], *, ranks: int = RANKS) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [self._fork(act, rank, ranks, port) for rank in range(ranks)]
        return [_ending(os.waitpid(child, 0)[1]) for child in children]

    def _fork(self, act: Callable[[], object], rank: int, ranks: int, port: int) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        signal.alarm(PATIENCE)
        try:
            if ranks > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                os.environ |= {name: str(value) for name, value in place.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            act()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:  # noqa: BLE001  (a forked child must not go on into its parent's code)
            with self.log.open("a") as log:
                log.write(f"rank {rank}\n{traceback.format_exc()}\n")
        finally:
            os._exit(code)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "finished", 130: "interrupted"}.get(os.WEXITSTATUS(status), "failed")


def no_dropout(config: Config) -> Config:
    model = config.model.model_dump(mode="json")
    model |= {name: model[name] | NO_DROPOUT[name] for name in ("fusion", "user")} | {"late_shares": [0.5]}
    # Every pair of a batch is compared, whoever draws.
    return changed(config, encoders=NO_DROPOUT["encoders"], model=model, objective={"contrastive_items": 1000})


def tuned(config: Config) -> Config:
    """Both encoders live: captions from their first block on, pictures above one frozen block."""
    encoders = config.model_dump(mode="json")["encoders"]
    encoders["text"]["tuning"] |= {"mode": "full", "blocks": 0}
    encoders["image"]["tuning"] |= {"mode": "top", "blocks": 1}
    return changed(config, encoders=encoders, train={"accumulate": 2})


def compare_steps(config: Config, feed: Path, out: Path) -> None:
    """Write by how much loss and gradients of two ranks differ from those of one process, batch by batch."""
    ranks = Ranks.of(open_accelerator(choose_device("cpu")))
    found: dict[str, list[dict[str, float]]] = {}
    for name, groups in STEP_CASES.items():
        chosen = changed(config, **groups | {"train": {"batch_users": STEP_USERS, **groups.get("train", {})}})
        split = check_settings(chosen, feed)
        torch.manual_seed(0)
        ids = training_ids(feed, split, trend_days=chosen.model.trend_days)
        assembly = assemble(chosen, feed, ids, device=torch.device("cpu"))
        assembly.model.double().train()
        num_batches = len(_loader(chosen, assembly, feed, ALONE))
        rows = []
        for index in range(num_batches):
            alone = _step(chosen, assembly, feed, ALONE, index)
            shared = _step(chosen, assembly, feed, ranks, index)
            ranks.add_gradients(assembly.model.parameters())
            own, items = shared[0].num_targets, shared[1]
            together = {k: p.grad for k, p in assembly.model.named_parameters() if p.grad is not None}
            parts = {key: float(ranks.sum(part)) for key, part in shared[0].parts.items()}
            rows.append(
                {
                    "loss": abs(float(ranks.sum(shared[0].total)) - float(alone[0].total)),
                    "parts": max(abs(parts[key] - float(part)) for key, part in alone[0].parts.items()),
                    "gradient": max(float((together[key] - grad).abs().max()) for key, grad in alone[2].items()),
                    "size": max(float(grad.abs().max()) for grad in alone[2].values()),
                    "same_names": float(alone[2].keys() == together.keys()),
                    "targets": float(own - alone[0].num_targets),
                    "contrastive": float(alone[0].parts.get("contrastive", torch.zeros(()))),
                    "items": float(alone[1]),
                    "items_of_ranks": float(ranks.sum(torch.tensor(items))),
                    "own_items": float(items),
                    "own_users": float(shared[3]),
                }
            )
        found[name] = rows
    (out / f"steps-{ranks.rank}.json").write_text(json.dumps(found))


def _loader(config: Config, assembly: Assembly, feed: Path, ranks: Ranks):  # type: ignore[no-untyped-def]  # noqa: ANN202
    split = check_settings(config, feed)
    negatives = split.trainable_items(assembly.histories, assembly.catalogue.first_seen)
    return build_loader(config, assembly.histories, split, assembly.reader, negatives=negatives, ranks=ranks)


def _step(
    config: Config, assembly: Assembly, feed: Path, ranks: Ranks, index: int
) -> tuple[LossTerms, int, dict[str, torch.Tensor], int]:
    """Take the gradient of one batch; return its loss terms, the items that were encoded, gradients and users."""
    split = check_settings(config, feed)
    model, histories, first_seen = assembly.model, assembly.histories, assembly.catalogue.first_seen
    loader = _loader(config, assembly, feed, ranks)
    negatives = split.trainable_items(histories, first_seen)
    loss = build_loss(
        config,
        histories,
        split,
        num_windows=loader.num_windows,
        negatives=negatives,
        first_seen=first_seen,
        ranks=ranks,
    )
    batch = loader.batch(0, index)
    bank = torch.randn(len(negatives), model.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    terms = loss(model(batch), batch, bank if config.objective.kind == "full_softmax" else None)
    terms.total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return terms, len(batch.items), gradients, len(batch.users)


def caption_by_caption(out: Path) -> None:
    """Let the first rank run each caption by itself, the other all of a batch at once; write how many runs a batch took."""
    if rank_here() == 0:
        buckets.TOKENS_AT_ONCE = 1
    plan, runs = buckets.plan_buckets, []

    def counted(*args: object, **settings: object) -> object:
        runs.append(len(planned := plan(*args, **settings)))  # type: ignore[arg-type]
        (out / f"runs-{rank_here()}.json").write_text(json.dumps(runs))
        return planned

    buckets.plan_buckets = counted  # type: ignore[assignment]


def hide_first_modality() -> None:
    """Let the items of the second rank's shares of batches lack the modality that is encoded first."""
    visible = ItemEncoder._visible_parts

    def hidden(self: ItemEncoder, items: ItemBatch) -> dict[str, Parts]:
        first = self.modalities[0]
        return {name: part for name, part in visible(self, items).items() if not self.training or name != first}

    if rank_here() == 1:
        ItemEncoder._visible_parts = hidden  # type: ignore[method-assign]


def count_questions(out: Path) -> None:
    """Write how many questions each rank answers in a validation."""
    values = validation.validation_values

    def counted(scorer: object, cases: Cases, *args: object, **settings: object) -> object:
        (out / f"questions-{rank_here()}.txt").write_text(str(len(cases)))
        return values(scorer, cases, *args, **settings)  # type: ignore[arg-type]

    validation.validation_values = counted  # type: ignore[assignment]


def rank_here() -> int:
    """Return this process's rank."""
    return int(os.environ["RANK"])


def at_batch(number: int, *, rank: int, act: Callable[[], None]) -> None:
    """Let one rank do something in the middle of its ``number``-th batch (from 1)."""
    accumulate, calls = _Training._accumulate, 0

    def counted(self: _Training, batch: object) -> bool:
        nonlocal calls
        calls += 1
        if self.ranks.rank == rank and calls == number:
            act()
        return accumulate(self, batch)  # type: ignore[arg-type]

    _Training._accumulate = counted  # type: ignore[method-assign, assignment]


def main(folder: Path, feed: Path, config: Config) -> None:
    """Run every scenario."""
    torch.set_num_threads(1)
    # What a killed process has written stays written; fsync matters to a power cut only, and is slow.
    os.fsync = lambda handle: None  # type: ignore[assignment]
    for name in IMPORTED_LATE:
        import_module(name)
    pair, plain = Pair(folder), no_dropout(config)
    endings: dict[str, list[list[str]]] = {}

    def training(out: str, settings: Config, *, resume: bool = False) -> Callable[[], object]:
        return lambda: train_run(settings, feed=feed, out=folder / out, resume=resume, device="cpu")

    def prepared(out: str, prepare: Callable[[], None], *, settings: Config) -> Callable[[], object]:
        def start() -> None:
            prepare()
            training(out, settings)()

        return start

    def sabotaged(out: str, act: Callable[[], None], *, rank: int, settings: Config = config) -> Callable[[], object]:
        return prepared(out, lambda: at_batch(KILLED_AT, rank=rank, act=act), settings=settings)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    # First, so that both ranks fill the caches of the trunks at once.
    endings["steps"] = [pair(lambda: compare_steps(plain, feed, folder))]
    endings["one"] = [pair(training("one", plain), ranks=1)]
    endings["two"] = [pair(prepared("two", lambda: count_questions(folder), settings=plain))]
    endings["dropout"] = [pair(training("dropout", config))]
    for name, act, rank in (("killed", die, 1), ("first_killed", die, 0), ("interrupted", press, 1)):
        endings[name] = [pair(sabotaged(name, act, rank=rank)), pair(training(name, config, resume=True))]
    live = tuned(plain)
    shared = changed(live, train={"shard_encoders": True})
    endings["live"] = [pair(training("live", live), ranks=1)]
    # A checkpoint puts all shares together: only who goes on from one needs those of every other step.
    at_the_end = changed(shared, train={"checkpoint_steps": 1000})
    endings["sharded"] = [pair(training("sharded", at_the_end))]
    endings["sharded_interrupted"] = [
        pair(sabotaged("sharded_interrupted", press, rank=1, settings=shared)),
        pair(training("sharded_interrupted", shared, resume=True)),
    ]
    endings["caption_by_caption"] = [
        pair(prepared("caption_by_caption", lambda: caption_by_caption(folder), settings=at_the_end))
    ]
    for name, settings in (("hidden", live), ("hidden_sharded", at_the_end)):
        # One question leaves the second rank none.
        brief = changed(settings, train={"epochs": 1, "validation_cases": 1})
        endings[name] = [pair(prepared(name, hide_first_modality, settings=brief))]
    endings["fewer"] = [
        pair(sabotaged("fewer", press, rank=0, settings=plain)),
        pair(training("fewer", plain, resume=True), ranks=1),
    ]
    (folder / "endings.json").write_text(json.dumps(endings))


if __name__ == "__main__":
    np.seterr(all="raise")
    main(Path(sys.argv[1]), Path(sys.argv[2]), load_config(Path(sys.argv[3])))
