"""The study: optuna's journal of trials in the tune's folder, shared by all workers, and who may go next.

The journal is a file of JSON lines.  No sampler is stored: each trial gets a sampler of its own, seeded by
``train.seed`` and the trial's number.  On a CPU a tune of one worker that is never cut off therefore ends the same
every time.  With several workers it depends on who ends first which results a draw can build on, and a trial that was
cut off takes a number of its own, so that later draws differ from those of an uninterrupted tune.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

import numpy as np

from mmrec.config import Config
from mmrec.config_file import dump_config
from mmrec.errors import MissingExtraError
from mmrec.storage import atomic_file, write_json
from mmrec.tuning.folder import TuneFolder
from mmrec.tuning.journal_lock import JournalLock
from mmrec.tuning.results import LEAST_FOR_IMPORTANCE, State, TrialRecord, TuneResult
from mmrec.tuning.space import ChoiceKnob, Knob, Value, own_values, with_values

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
    from optuna.trial import Trial as ClaimedTrial
except ImportError as error:
    raise MissingExtraError("optuna", "tune") from error

__all__ = ["ClaimedTrial", "Study", "mend_journal"]

NAME = "tune"
LEAST_FOR_PRUNING = 5
"""Complete trials before a trial may be stopped: a median of fewer says little."""
MOST_ATTEMPTS = 3
"""Settings under which the process dies (not: is interrupted) so often are given up."""
MESSAGE, INTERRUPTED, ATTEMPT, AGAIN, OWN = "message", "interrupted", "attempt", "again", "own"
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Study:
    """One process's view of the study.

    Args:
        folder: where it is kept.
        config: what trials vary.
        knobs: what they draw.
        study: optuna's.
    """

    folder: TuneFolder
    config: Config
    knobs: tuple[Knob, ...]
    study: optuna.Study

    @classmethod
    def open(cls, folder: TuneFolder) -> Study:
        """Open the study of a folder that has a plan, making it if there is none."""
        plan = folder.read()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Its lock is a link to this path: a relative one would lead nowhere, and a stale lock never be found stale.
        journal = str(folder.journal.resolve())
        storage = JournalStorage(JournalFileBackend(journal, JournalLock(journal)))
        # The median needs no budget to be fixed beforehand and works from a handful of trials on; Hyperband splits them
        # into brackets that each need as many.  A rate that warms up says nothing at first, hence the epochs of grace.
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=LEAST_FOR_PRUNING, n_warmup_steps=1 + plan.config.train.epochs // 5
        )
        study = optuna.create_study(
            study_name=NAME, storage=storage, pruner=pruner, direction="maximize", load_if_exists=True
        )
        return cls(folder, plan.config, plan.knobs, study)

    @property
    def records(self) -> list[TrialRecord]:
        """All trials, in order."""
        return [_record(trial) for trial in self.study.get_trials(deepcopy=False)]

    @property
    def num_done(self) -> int:
        """Trials that need no further work."""
        return sum(record.state in ("complete", "pruned", "failed") for record in self.records)

    def recover(self) -> None:
        """Put right what a killed tune left; only for a process that holds the folder alone."""
        trials = self.study.get_trials(deepcopy=False)
        if not trials:
            own = own_values(self.config, self.knobs)
            if own is not None:
                # What one would have trained without a tune is what its best must beat.
                self.study.enqueue_trial(own, user_attrs={OWN: True})
            return
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        tried_again = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            if _record(trial).state != "cut off" or trial.number in tried_again:
                continue
            self.folder.strip(trial.number)
            attributes = trial.user_attrs
            attempt = int(attributes.get(ATTEMPT, 1)) + (INTERRUPTED not in attributes)
            # A trial killed before it drew anything has nothing to try again; the next draw takes its place.
            if params := cast("dict[str, object]", trial.system_attrs.get("fixed_params") or trial.params):
                self.study.enqueue_trial(
                    params, user_attrs={AGAIN: trial.number, ATTEMPT: attempt, OWN: bool(attributes.get(OWN))}
                )

    def claim(self, trials: int) -> ClaimedTrial | None:
        """Return the next trial to run, its settings drawn; None where that many are done or being run."""
        with self.folder.turn():
            records = self.records
            if sum(record.state not in ("cut off", "waiting") for record in records) >= trials:
                return None
            number = next((record.number for record in records if record.state == "waiting"), len(records))
            self.study.sampler = _sampler(self.config.train.seed, number)
            return self.study.ask({knob.key: _distribution(knob) for knob in self.knobs})

    def complete(self, trial: ClaimedTrial) -> None:
        """Note that a trial has run to its end: its value is the best that it reported."""
        values = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values.values()
        self.study.tell(trial, max(values))
        self._settle()

    def prune(self, trial: ClaimedTrial) -> None:
        """Note that a trial was stopped because it fell behind."""
        self.study.tell(trial, state=TrialState.PRUNED)
        self._settle()

    def fail(self, trial: ClaimedTrial, message: str) -> None:
        """Note that settings cannot be trained, and why."""
        trial.set_user_attr(MESSAGE, message)
        self.study.tell(trial, state=TrialState.FAIL)
        self._settle()

    def interrupt(self, trial: ClaimedTrial) -> None:
        """Note that a trial was stopped from outside, to be tried again."""
        trial.set_user_attr(INTERRUPTED, True)
        self.study.tell(trial, state=TrialState.FAIL)

    def result(self) -> TuneResult:
        """Return what the tune has come to so far."""
        return TuneResult(self.config.train.metric, self.records, self._importance())

    def write(self) -> TuneResult:
        """Write all results, and the configuration of the best trial."""
        result = self.result()
        write_json(self.folder.results, result.to_dict())
        if result.best is not None:
            best = with_values(self.config, result.best.params, where=f"trial {result.best.number}")
            with atomic_file(self.folder.best) as partial:
                partial.write_text(dump_config(best), encoding="utf-8")
        return result

    def _settle(self) -> None:
        with self.folder.turn():
            result = self.write()
            for record in result.records:
                if record.state in ("complete", "pruned", "failed") and record is not result.best:
                    self.folder.strip(record.number)

    def _importance(self) -> dict[str, float] | None:
        if sum(record.state == "complete" for record in self.records) < LEAST_FOR_IMPORTANCE:
            return None
        with warnings.catch_warnings():
            # Where values are equal it warns and calls all settings equally important, which is no finding.
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("ignore", ExperimentalWarning)
            evaluator = PedAnovaImportanceEvaluator()
            try:
                found = get_param_importances(self.study, evaluator=evaluator, params=[knob.key for knob in self.knobs])
            except UserWarning:
                return None
        return {key: float(share) for key, share in found.items()}


def mend_journal(journal: Path) -> None:
    """Cut off the half-written last line of a killed process; only while no other process writes."""
    if not journal.is_file():
        return
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)


def _sampler(seed: int, number: int) -> optuna.samplers.TPESampler:
    state = int(np.random.SeedSequence([seed % 2**32, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        # Settings depend on each other (rate and dropout), and workers must not draw twice the same: both are
        # optuna's own defaults from version 5 on, and experimental before.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=state, multivariate=True, constant_liar=True)


def _distribution(knob: Knob) -> BaseDistribution:
    if isinstance(knob, ChoiceKnob):
        return CategoricalDistribution(knob.choices)
    if isinstance(knob.low, int) and isinstance(knob.high, int):
        return IntDistribution(knob.low, knob.high, log=knob.log, step=int(knob.step or 1))
    return FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    message = str(attributes.get(MESSAGE, ""))
    gave_up = int(attributes.get(ATTEMPT, 1)) >= MOST_ATTEMPTS and INTERRUPTED not in attributes
    if trial.state == TrialState.FAIL and not message and gave_up:
        message = f"the process died {MOST_ATTEMPTS} times with these settings"
    state = _STATES.get(trial.state, "failed" if message else "cut off")
    params = cast("dict[str, Value]", trial.params)
    own = bool(attributes.get(OWN))
    return TrialRecord(trial.number, state, params, trial.intermediate_values, _seconds(trial), message, own)


def _seconds(trial: FrozenTrial) -> float | None:
    start: datetime | None = trial.datetime_start
    end: datetime | None = trial.datetime_complete
    return None if start is None or end is None else round((end - start).total_seconds(), 1)
