"""Trials, one after another, until there are no more to claim: in the command itself, or in a worker process.

A worker is ``python -m mmrec.commands.tune_trials OUT --feed FEED --trials N --device D --worker I --parent PID``.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mmrec.commands.train import train_run
from mmrec.console import STOPPED
from mmrec.errors import MmrecError
from mmrec.tuning.folder import TuneFolder
from mmrec.tuning.space import with_values
from mmrec.tuning.study import ClaimedTrial, Study


def run_trials(study: Study, *, feed: Path, trials: int, device: str, check: Callable[[], None]) -> None:
    """Run trials until ``trials`` of them are done or being run by others.

    Args:
        study: where they come from and are noted.
        feed: prepared feed.
        trials: how many there are to be in all.
        device: where to train.
        check: called before each trial and after each evaluation; raises KeyboardInterrupt to end it all.

    Raises:
        KeyboardInterrupt: after noting that the trial is to be tried again.
    """
    check()
    while (trial := study.claim(trials)) is not None:
        _run_trial(study, trial, feed=feed, device=device, check=check)
        if torch.cuda.is_available():
            # A model holds itself in cycles: the next one is not to find the GPU's memory taken.
            gc.collect()
        check()


def _run_trial(study: Study, trial: ClaimedTrial, *, feed: Path, device: str, check: Callable[[], None]) -> None:
    pruned = False

    def on_validation(epoch: int, value: float) -> bool:
        nonlocal pruned
        trial.report(value, epoch)
        check()
        # At the last epoch there is nothing left to save.
        pruned = epoch < config.train.epochs and bool(trial.should_prune())
        return pruned

    try:
        config = with_values(study.config, trial.params, where=f"trial {trial.number}")
        out = study.folder.trial(trial.number).path
        train_run(config, feed=feed, out=out, device=device, on_validation=on_validation)
    except KeyboardInterrupt:
        study.interrupt(trial)
        raise
    except (MmrecError, torch.OutOfMemoryError) as error:
        study.fail(trial, str(error))
        return
    if pruned:
        study.prune(trial)
    else:
        study.complete(trial)


def spread(device: str, worker: int) -> str:
    """Return the device of a worker: GPUs are dealt out in turn where none is named."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{worker % count}" if count > 1 and device in ("auto", "cuda") else device


def main() -> None:
    """Run a worker process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--feed", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args()

    def check() -> None:
        # Whoever killed the command wants no more of it, and nobody would read what came of it.
        if os.getppid() != given.parent:
            raise KeyboardInterrupt

    device = spread(given.device, given.worker)
    try:
        run_trials(Study.open(TuneFolder(given.out)), feed=given.feed, trials=given.trials, device=device, check=check)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
