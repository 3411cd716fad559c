"""Config, prepared feed and space in; trials, the best configuration and a table out.  Only validation cases are used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mmrec.assembly import assemble, choose_device, split_fingerprint
from mmrec.commands.train import check_settings, training_ids
from mmrec.commands.tune_trials import run_trials
from mmrec.config import Config
from mmrec.errors import ArtifactError, ConfigError
from mmrec.feed.catalogue import Catalogue
from mmrec.notices import Advance, Meter, Notify, ignore, silent_meter
from mmrec.process import launched_processes, thread_share
from mmrec.tuning.folder import Plan, TuneFolder
from mmrec.tuning.results import TrialRecord, TuneResult, cell, short_names, shortened
from mmrec.tuning.space import own_values, parse_space, read_space
from mmrec.tuning.study import Study, mend_journal

POLL_SECONDS = 1.0
STOP_SECONDS = 120.0
"""How long a worker may take to save where it is."""


def tune_run(
    config: Config,
    *,
    feed: Path,
    space: Path,
    out: Path,
    trials: int,
    workers: int = 1,
    device: str = "auto",
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> TuneResult:
    """Try settings drawn from a space until there are ``trials`` trials, and return them all.

    Called again with the same settings it goes on where it stopped.  A trial that was cut off is tried again under
    another number.

    Args:
        config: what trials vary; it must train as it is.
        feed: prepared feed.
        space: YAML file of settings and their values.
        out: folder of the tune; new, or one to go on with.
        trials: trials in all, those of earlier calls included.
        workers: processes that run them.
        device: cpu, cuda, ... or auto.
        notify: told what becomes of each trial.
        meter: shows progress.

    Raises:
        ConfigError: the space, or a setting that does not fit the feed.
        ArtifactError: the folder holds something else, another tune, or one that is running.
        ArtifactError: or worker processes ended before their time.
        KeyboardInterrupt: stopped from outside; the same call goes on.
    """
    entries = read_space(space, config)
    where = choose_device(device)
    if launched_processes() > 1:
        raise ConfigError(
            "one process that starts its own workers",
            got=f"{launched_processes()} under a launcher",
            where="mmrec tune",
            fix="Start it without torchrun, with --workers.",
        )
    split = check_settings(config, feed)
    folder = TuneFolder(out)
    with folder.alone() as lock:
        plan = Plan(config, entries, Catalogue.load(feed).feed_hash, split_fingerprint(split))
        if folder.is_new(plan):
            # Once, for all trials: encodes what is frozen, and finds out whether the configuration can be built.
            ids = training_ids(feed, split, trend_days=config.model.trend_days)
            assemble(config, feed, ids, device=where, notify=notify, meter=meter)
            folder.begin(plan)
        mend_journal(folder.journal)
        study = Study.open(folder)
        if own_values(config, parse_space(entries, config, where=str(space))) is None:
            notify("the configuration's own values lie outside the space: no trial shows what they are worth")
        study.recover()
        watcher = _Watcher(study, notify)
        if study.num_done < trials:
            with meter("trials") as advance:
                show = partial(watcher.show, advance, trials)
                if workers == 1:
                    run_trials(study, feed=feed, trials=trials, device=device, check=show)
                else:
                    _wait_for(_start_workers(folder, workers, feed=feed, trials=trials, device=device, lock=lock), show)
        result = study.write()
        if study.num_done < trials:
            raise ArtifactError(
                f"{trials} trials to be done",
                got=f"{study.num_done}, and no worker left",
                where=str(folder.log(0).parent),
                fix="Read the workers' logs, then run the same command again to go on.",
            )
    return result


def refuse_without_value(result: TuneResult) -> None:
    """Raise where no trial could be trained to its end.

    Raises:
        ConfigError: with what the first failed trial said.
    """
    if result.best is not None:
        return
    first = next((record for record in result.records if record.message), None)
    raise ConfigError(
        "at least one trial that trains",
        got=f"{len(result.records)} that failed" + ("" if first is None else f", the first with: {first.message}"),
        fix="Correct the space or the configuration, and choose another --out.",
    )


@dataclass
class _Watcher:
    """Tells what is new in the study.

    Args:
        study: read only.
        notify: told of each evaluation and each end.
        told: evaluations of which it has told.
        ended: trials of whose end it has told.
    """

    study: Study
    notify: Notify
    told: set[tuple[int, int]] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for record in self.study.records:
            self._take(record)

    def show(self, advance: Advance, trials: int) -> None:
        """Tell what has happened since the call before."""
        for record in self.study.records:
            for line in self._take(record):
                self.notify(line)
        advance.at(self.study.num_done, trials)

    def _take(self, record: TrialRecord) -> list[str]:
        lines = []
        metric = self.study.config.train.metric
        for epoch, value in sorted(record.values.items()):
            if (record.number, epoch) not in self.told:
                self.told.add((record.number, epoch))
                lines.append(f"trial {record.number} epoch {epoch}: {metric} {value:.4f}")
        if record.state not in ("running", "waiting") and record.number not in self.ended:
            self.ended.add(record.number)
            best = "" if record.value is None else f", {metric} {record.value:.4f}"
            params = ", ".join(
                f"{name}={cell(record.params[key])}" for key, name in short_names(list(record.params)).items()
            )
            reason = f": {shortened(record.message)}" if record.message else ""
            lines.append(f"trial {record.number} {record.state}{best} ({params}){reason}")
        return lines


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], show: Callable[[], None]) -> None:
    """Show what happens until all worker processes have ended; pass a Ctrl-C on to them."""
    try:
        waiting = list(processes)
        while waiting:
            with suppress(subprocess.TimeoutExpired):
                waiting[0].wait(POLL_SECONDS)
            waiting = [process for process in waiting if process.poll() is None]
            show()
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()


def _start_workers(
    folder: TuneFolder, workers: int, *, feed: Path, trials: int, device: str, lock: int
) -> list[subprocess.Popen[bytes]]:
    """Start worker processes, each with its share of the threads and a log of its own."""
    environment = os.environ | thread_share(workers)
    folder.log(0).parent.mkdir(exist_ok=True)
    processes = []
    for worker in range(workers):
        command = [sys.executable, "-m", "mmrec.commands.tune_trials", str(folder.path), "--feed", str(feed)]
        command += ["--trials", str(trials), "--device", device]
        command += ["--worker", str(worker), "--parent", str(os.getpid())]
        with folder.log(worker).open("ab") as log:
            # In a session of their own they do not get the terminal's Ctrl-C beside the one that is passed on; the
            # lock they inherit keeps the folder from a second tune until the last of them has ended.
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
            )
    return processes
