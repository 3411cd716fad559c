"""Trains in forked processes that kill themselves at a chosen place, then resumes them.

``python -m tests.training.crash_runs FOLDER`` writes one folder a scenario; test_resume.py compares them.  It is a
process of its own so that torch is imported once and nothing but one thread is forked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mmrec.batch import HistoryBatch, ModelOutput
from mmrec.training import checkpoint
from mmrec.training.keeper import Keeper
from mmrec.training.loop import train
from mmrec.training.loss import LossTerms
from mmrec.training.tracking import JsonLinesTracker
from tests.training.tiny import TinyTraining, settings, tiny_loss

Sabotage = Callable[["Job"], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, function: Callable[..., object], *, act: Callable[..., None]) -> Callable[..., object]:
    """Return ``function``, but run ``act`` with its arguments before its ``number``-th call (from 1)."""
    calls = 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            act(*args, **kwargs)
        return function(*args, **kwargs)

    return counted


class Job:
    """One process's training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tiny = TinyTraining(folder)
        self.validate = self.tiny.validate
        self.refresh_bank = self.tiny.refresh_bank
        self.loss: Callable[..., LossTerms] = tiny_loss

    def run(self, *, resume: bool) -> None:
        warnings: list[str] = []
        result = train(
            model=self.tiny.model,
            loss=self.loss,
            optimizer=self.tiny.optimizer,
            loader=self.tiny.loader,
            settings=settings(),
            folder=self.folder / "checkpoints",
            accelerator=self.tiny.accelerator,
            validate=self.validate,
            refresh_bank=self.refresh_bank,
            trackers=[JsonLinesTracker(self.folder / "metrics.jsonl")],
            files={"config.yaml": b"epochs: 4\n"},
            base={"image": "a1b2"},
            resume=resume,
            warn=warnings.append,
        )
        summary = {
            "best": result.best_metric,
            "best_checkpoint": result.best_checkpoint.name,
            "last_checkpoint": result.last_checkpoint.name,
            "steps": result.steps,
            "skipped": result.skipped_batches,
            "history": result.history,
            "warnings": warnings,
        }
        (self.folder / "result.json").write_text(json.dumps(summary))


def kill_in_loss(number: int) -> Sabotage:
    def sabotage(job: Job) -> None:
        job.loss = at_call(number, tiny_loss, act=lambda *_: die())  # type: ignore[assignment]

    return sabotage


def kill_before_first_step(job: Job) -> None:
    optimizer = job.tiny.optimizer
    optimizer.step = at_call(1, optimizer.step, act=lambda: die())  # type: ignore[method-assign, assignment]


def kill_after_step_before_checkpoint(job: Job) -> None:
    Keeper.save = at_call(5, Keeper.save, act=lambda *_, **__: die())  # type: ignore[method-assign, assignment]


def kill_in_half_a_tensor_file(job: Job) -> None:
    whole = checkpoint.save_file

    def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        whole(tensors, path)
        os.truncate(path, path.stat().st_size // 2)
        die()

    checkpoint.save_file = at_call(10, whole, act=half)  # type: ignore[attr-defined, assignment]


def kill_before_rename(job: Job) -> None:
    replace, calls = Path.replace, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += self.name.startswith("epoch-")
        if calls == 4:
            die()
        return replace(self, target)

    Path.replace = counted  # type: ignore[method-assign, assignment]


def kill_before_best_pointer(job: Job) -> None:
    checkpoint.write_best = at_call(3, checkpoint.write_best, act=lambda *_, **__: die())  # type: ignore[assignment]


def kill_between_pointer_and_pruning(job: Job) -> None:
    prune = checkpoint.prune_checkpoints
    checkpoint.prune_checkpoints = at_call(6, prune, act=lambda *_, **__: die())  # type: ignore[assignment]


def kill_in_the_middle_of_pruning(job: Job) -> None:
    whole = shutil.rmtree

    def half(path: Path, *, ignore_errors: bool = False) -> None:
        if path.name == "epoch-0001-batch-000004":
            (path / "state.json").unlink()
            die()
        whole(path, ignore_errors=ignore_errors)

    shutil.rmtree = half  # type: ignore[assignment]


def kill_in_validation(job: Job) -> None:
    job.validate = at_call(2, job.validate, act=die)  # type: ignore[assignment]


def kill_in_bank_refresh(job: Job) -> None:
    job.refresh_bank = at_call(3, job.refresh_bank, act=die)  # type: ignore[assignment]


def interrupt_in_half_a_group(job: Job) -> None:
    """Ctrl-C in the first batch of a group: the gradient of that batch must be in the checkpoint."""

    def loss(output: ModelOutput, batch: HistoryBatch, bank: torch.Tensor | None) -> LossTerms:
        return tiny_loss(output, batch, bank)

    # Batch 2 of each epoch has no target: the 10th loss is batch 4 of epoch 1, the first of its group.
    job.loss = at_call(10, loss, act=lambda *_: os.kill(os.getpid(), signal.SIGINT))  # type: ignore[assignment]


def interrupt_in_validation(job: Job) -> None:
    job.validate = at_call(3, job.validate, act=lambda: os.kill(os.getpid(), signal.SIGINT))  # type: ignore[assignment]


SCENARIOS: dict[str, list[Sabotage]] = {
    "uninterrupted": [],
    "before_first_step": [kill_before_first_step],
    "in_forward_half_a_group": [kill_in_loss(11)],
    "after_step_before_checkpoint": [kill_after_step_before_checkpoint],
    "in_half_a_tensor_file": [kill_in_half_a_tensor_file],
    "before_rename": [kill_before_rename],
    "before_best_pointer": [kill_before_best_pointer],
    "between_pointer_and_pruning": [kill_between_pointer_and_pruning],
    "in_the_middle_of_pruning": [kill_in_the_middle_of_pruning],
    "in_validation": [kill_in_validation],
    "in_bank_refresh": [kill_in_bank_refresh],
    "interrupt_in_half_a_group": [interrupt_in_half_a_group],
    "interrupt_in_validation": [interrupt_in_validation],
    "again_and_again": [kill_in_loss(6)] * 3 + [kill_in_validation, kill_in_half_a_tensor_file],
}


def in_child(folder: Path, sabotage: Sabotage | None, *, resume: bool) -> str:
    """Train in a forked process; return how it ended: a signal's name, ``interrupted`` or ``finished``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            job = Job(folder)
            if sabotage is not None:
                sabotage(job)
            job.run(resume=resume)
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "finished", 130: "interrupted"}.get(os.WEXITSTATUS(status), "failed")


def run_scenario(folder: Path, sabotages: list[Sabotage]) -> None:
    """Train until done; note how each session ended and the newest checkpoint it left."""
    folder.mkdir(parents=True)
    endings, left = [], []
    for index, sabotage in enumerate([*sabotages, None]):
        endings.append(in_child(folder, sabotage, resume=index > 0))
        left.append([path.name for path in checkpoint.checkpoints(folder / "checkpoints")][-1:])
    (folder / "endings.json").write_text(json.dumps(endings))
    (folder / "left.json").write_text(json.dumps(left))


def main(root: Path) -> None:
    """Run all scenarios at once."""
    torch.set_num_threads(1)
    # What a killed process has written stays written; fsync matters to a power cut only, and is slow.
    os.fsync = lambda handle: None
    Job(root)  # Imports everything before the forks.
    children = []
    for name, sabotages in SCENARIOS.items():
        child = os.fork()
        if child == 0:
            try:
                run_scenario(root / name, sabotages)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
