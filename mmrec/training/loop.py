"""The training loop: batches to gradients to steps, with checkpoints from which it goes on exactly where it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from mmrec.batch import ModelOutput
from mmrec.errors import ConfigError, MmrecError, near_names
from mmrec.training.checkpoint import checkpoint_name
from mmrec.training.clock import Clock
from mmrec.training.contract import (
    BatchLoader,
    Loss,
    OnValidation,
    StepReport,
    TrainResult,
    TrainSettings,
    WorkCounter,
)
from mmrec.training.interrupt import Interrupt, interruptible
from mmrec.training.keeper import Keeper
from mmrec.training.optimizer import set_rates, warmup_cosine
from mmrec.training.precision import fit_attention, is_narrow, mixed_precision
from mmrec.training.profiler import (
    BANK,
    CHECKPOINT,
    GRADIENTS,
    LOG,
    OBJECTIVE,
    OPTIMISER,
    TRANSFER,
    VALIDATION,
    WAITING,
    NoProfiler,
    Profiler,
)
from mmrec.training.progress import Progress
from mmrec.training.ranks import Ranks
from mmrec.training.sharding import clip_gradients, put_away, sharded_blocks
from mmrec.training.tracking import Tracker
from mmrec.training.transfer import SentBatch, send_ahead


def train(
    *,
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    loader: BatchLoader,
    settings: TrainSettings,
    folder: Path,
    accelerator: Accelerator,
    validate: Callable[[], Mapping[str, float]] | None = None,
    refresh_bank: Callable[[], Tensor] | None = None,
    work: WorkCounter | None = None,
    trackers: Sequence[Tracker] = (),
    files: Mapping[str, bytes] | None = None,
    base: Mapping[str, str] | None = None,
    resume: bool = False,
    progress: Callable[[StepReport], None] | None = None,
    on_validation: OnValidation | None = None,
    profiler: Profiler | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> TrainResult:
    """Train ``model`` in place; it ends in the last state, not the best.

    A training that was killed and is started again with ``resume`` ends, on a CPU, in the same bits as one that was
    not.  For that ``model`` must be built with the same initial weights, on ``accelerator.device``, each time.

    Several processes, started by a launcher, train one model: each calls this with its share of every batch, and with a
    model of the same weights.  Only the first writes checkpoints, into a folder that all of them must see to resume.

    Args:
        model: takes a :class:`HistoryBatch` and gives a :class:`ModelOutput`.
        loss: output, batch and bank to loss terms, this process's summand of them.
        optimizer: over :func:`mmrec.training.optimizer.parameter_groups`.
        loader: batches by (epoch, index).
        settings: of this loop.
        folder: where the checkpoints go.
        accelerator: device and processes.
        validate: evaluates the model, which is in evaluation mode, and gives metrics by name.
        refresh_bank: encodes the catalogue in evaluation mode, shape (catalogue, width).
        work: counts the encoding work of batches for the log.
        trackers: take loss terms, rates, speeds and metrics; none but in the first process.
        files: written into every checkpoint as they are (configuration, id map).
        base: fingerprint of each frozen base, by modality; a checkpoint of another base is refused.
        resume: go on from the newest whole checkpoint; from the beginning where there is none.
        progress: called after every step.
        on_validation: called after the checkpoint of an evaluated epoch; where it asks to stop, training ends there, and
            a resumed one goes on.
        profiler: told which section of a step runs; None times nothing.
        warn: takes one sentence for each damaged checkpoint that is passed over.

    Raises:
        ArtifactError: ``folder`` holds a run and ``resume`` is off; a checkpoint does not fit or cannot be written.
        ConfigError: the metric is unknown, or the loader is empty.
        MmrecError: the loss, the gradient or the metric is not finite.
        KeyboardInterrupt: after a checkpoint of the last whole batch.
    """
    if len(loader) == 0:
        raise ConfigError("at least one batch in an epoch", got="none", fix="Check the split: has it training users?")
    ranks = Ranks.of(accelerator)
    keeper = Keeper(
        ranks=ranks,
        folder=folder,
        model=model,
        optimizer=optimizer,
        metric=settings.metric,
        keep=settings.keep_checkpoints,
        files=files or {},
        base=base or {},
    )
    with interruptible(ranks.any if ranks.count > 1 else None) as interrupt:
        training = _Training(
            model=model,
            loss=loss,
            optimizer=optimizer,
            loader=loader,
            settings=settings,
            keeper=keeper,
            accelerator=accelerator,
            ranks=ranks,
            validate=validate,
            refresh_bank=refresh_bank,
            work=work,
            trackers=trackers,
            report=progress,
            on_validation=on_validation,
            interrupt=interrupt,
            profiler=profiler or NoProfiler(),
            progress=Progress(batches_per_epoch=len(loader)),
            sharded=sharded_blocks(model),
        )
        training.begin(resume=resume, warn=warn)
        try:
            while not training.finished:
                training.run_epoch()
        except KeyboardInterrupt:
            if not interrupt.held:
                training.save()
            raise
        finally:
            for tracker in trackers:
                tracker.close()
    return training.result()


@dataclass
class _Training:
    """One call of :func:`train`: what it was given, and what changes as it goes."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    loader: BatchLoader
    settings: TrainSettings
    keeper: Keeper
    accelerator: Accelerator
    ranks: Ranks
    validate: Callable[[], Mapping[str, float]] | None
    refresh_bank: Callable[[], Tensor] | None
    work: WorkCounter | None
    trackers: Sequence[Tracker]
    report: Callable[[StepReport], None] | None
    on_validation: OnValidation | None
    interrupt: Interrupt
    profiler: Profiler
    progress: Progress
    sharded: Sequence[FSDPModule]
    bank: Tensor | None = None
    asked_to_stop: bool = False
    clock: Clock = field(default_factory=Clock)

    def begin(self, *, resume: bool, warn: Callable[[str], None]) -> None:
        # Where a run goes on with more processes, a new one has no random numbers to go on with.
        torch.manual_seed(self.settings.seed + self.ranks.rank)
        restored = self.keeper.begin(resume=resume, num_batches=len(self.loader), warn=warn)
        if restored is not None:
            self.progress, bank = restored.progress, restored.bank
            self.bank = None if bank is None else bank.to(self.accelerator.device)
        for tracker in self.trackers:
            tracker.start(step=self.progress.step, records=self.progress.records)

    @property
    def finished(self) -> bool:
        out_of_patience = self.progress.evaluations_since_best >= self.settings.patience
        return self.asked_to_stop or out_of_patience or self.progress.epoch >= self.settings.epochs

    def run_epoch(self) -> None:
        self.model.train()
        self.clock.restart()
        if self.progress.batch < len(self.loader):
            batches = self.loader.batches(epoch=self.progress.epoch, start=self.progress.batch)
            self._run_batches(send_ahead(batches, self.accelerator.device))
        self._finish_epoch()

    def save(self) -> None:
        self.progress.seconds += self.clock.lap()
        if self.progress.group_targets:
            self.ranks.add_gradients(self.model.parameters())
        with self.profiler.section(CHECKPOINT, whole=True):
            self.keeper.save(self.progress, bank=self.bank)

    def result(self) -> TrainResult:
        state = self.progress
        return TrainResult(
            best_metric=state.best,
            best_checkpoint=self.keeper.folder / (state.best_checkpoint or self.keeper.saved),
            last_checkpoint=self.keeper.folder / self.keeper.saved,
            epochs=state.epoch,
            steps=state.step,
            stopped_early=state.epoch < self.settings.epochs,
            skipped_batches=state.skipped_batches,
            seconds=state.seconds,
            history=list(state.history),
        )

    def _run_batches(self, batches: Iterator[SentBatch]) -> None:
        while self.progress.batch < len(self.loader):
            with self.clock.waiting(), self.profiler.section(WAITING):
                batch = next(batches)
            if self.progress.batch % self.settings.accumulate == 0:
                self._refresh_bank_when_due()
            with self.interrupt.hold():
                stepped = self._run_batch(batch)
            if stepped is not None and self.report is not None:
                self.report(stepped)

    def _refresh_bank_when_due(self) -> None:
        step = self.progress.step
        if self.refresh_bank is None or self.progress.bank_step == step:
            return
        if self.bank is None or step % self.settings.bank_refresh == 0:
            with self._aside(), self.profiler.section(BANK, whole=True):
                bank = self.refresh_bank()
            # A tensor made in inference mode cannot take part in autograd; its copy can.
            self.bank = bank.clone() if bank.is_inference() else bank.detach()
            self.progress.bank_step = step

    def _run_batch(self, sent: SentBatch) -> StepReport | None:
        """Add one batch's gradient; at the end of its group take a step, log and save as is due."""
        state, settings, batch = self.progress, self.settings, sent.host
        if self.work is not None:
            self.work.count(batch)
        if self.ranks.count > 1 and (batch.share is None or len(batch.share.sizes) != self.ranks.count):
            raise ConfigError(
                f"batches shared out among {self.ranks.count} processes",
                got="whole ones" if batch.share is None else f"among {len(batch.share.sizes)}",
                where="the loader",
                fix="Give it this process's rank and their number, or start one process.",
            )
        if batch.num_targets == 0 or not self._accumulate(sent):
            state.skipped_batches += 1
        put_away(self.sharded)
        state.batch += 1
        if state.batch % settings.accumulate and state.batch < len(self.loader):
            return None
        with self.profiler.section(OPTIMISER):
            norm = self._step()
        terms = state.finish_group()
        if state.step % settings.log_steps == 0:
            self._log_step(terms, norm=norm)
        if settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0:
            self.save()
        return StepReport(state.epoch, state.step, self._total_steps, terms.get("loss", math.nan))

    def _accumulate(self, sent: SentBatch) -> bool:
        """Add the gradient of one batch to those of its group; return False where the loss finds no target."""
        device = self.accelerator.device
        narrow = is_narrow(self.settings.precision, device)
        with self.profiler.section(TRANSFER):
            batch = sent.receive(device)
        with self.profiler.batch(targets=len(batch.targets)), fit_attention(device, narrow=narrow):
            with mixed_precision(device, enabled=narrow):
                output = self.model(batch)
            with self.profiler.section(OBJECTIVE):
                terms = self.loss(_in_float32(output), batch, self.bank)
            if terms.num_targets == 0:
                return False
            # Weighted by targets and divided by their sum before the step, unequal batches give the mean over all.
            weight = terms.num_targets if self.settings.accumulate > 1 else 1
            with self.profiler.backward(terms.total):
                self.accelerator.backward(terms.total * weight)
        values = self._read({"loss": terms.total} | {f"loss/{name}": part for name, part in terms.parts.items()})
        if not math.isfinite(values["loss"]):
            self._refuse("a finite loss", ", ".join(f"{name} = {value:g}" for name, value in values.items()))
        self.progress.add_batch(values, targets=terms.num_targets)
        self.clock.targets += terms.num_targets
        return True

    def _step(self) -> float:
        """Take an optimiser step unless the group had no target; return the gradient's norm before clipping."""
        state, settings, norm = self.progress, self.settings, math.nan
        factor = warmup_cosine(state.step, total=self._total_steps, warmup_share=settings.warmup_share)
        set_rates(self.optimizer, factor=factor)
        if state.group_targets:
            if self.ranks.count > 1:
                with self.profiler.section(GRADIENTS):
                    self.ranks.add_gradients(self.model.parameters())
            parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
            if settings.accumulate > 1:
                for parameter in parameters:
                    assert parameter.grad is not None
                    parameter.grad.div_(state.group_targets)
            norm = clip_gradients(parameters, settings.clip_norm)
            if not math.isfinite(norm):
                self._refuse("a finite gradient", f"norm {norm:g}")
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _read(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Bring scalars, added up over the ranks, to the host in one transfer."""
        values: list[float] = self.ranks.sum(torch.stack([term.detach().float() for term in terms.values()])).tolist()
        return dict(zip(terms, values, strict=True))

    def _log_step(self, terms: Mapping[str, float], *, norm: float) -> None:
        values = {**terms, "learning_rate": max(group["lr"] for group in self.optimizer.param_groups)}
        values |= {"gradient_norm": norm, "skipped_batches": float(self.progress.skipped_batches)}
        values |= self.clock.speeds()
        if self.work is not None:
            values |= {f"work/{name}": float(value) for name, value in self.work.read().items()}
        self._log(values)

    def _finish_epoch(self) -> None:
        state, settings = self.progress, self.settings
        epoch = state.epoch + 1
        metrics: dict[str, float] = {}
        if self.validate is not None and (epoch % settings.evaluate_every == 0 or epoch == settings.epochs):
            with self._aside(), self.profiler.section(VALIDATION, whole=True):
                metrics = {name: float(value) for name, value in self.validate().items()}
        with self.interrupt.hold():
            if metrics:
                name = checkpoint_name(epoch=epoch, batch=0)
                state.judge(self._metric(metrics), checkpoint=name, higher_is_better=settings.higher_is_better)
            state.finish_epoch(metrics)
            record = state.history[-1]
            values = {f"validation/{name}": value for name, value in metrics.items()}
            self._log({"epoch": float(epoch), "epoch/loss": record["loss"], **values})
            self.save()
        if metrics and self.on_validation is not None:
            self.asked_to_stop = self.on_validation(epoch, self._metric(metrics))

    def _metric(self, metrics: Mapping[str, float]) -> float:
        name = self.settings.metric
        if name not in metrics:
            raise ConfigError(
                "a validation metric", got=repr(name), where="train.metric", fix=near_names(name, metrics)
            )
        if not math.isfinite(metrics[name]):
            self._refuse(f"a finite {name}", f"{metrics[name]:g}")
        return metrics[name]

    def _log(self, values: Mapping[str, float]) -> None:
        with self.profiler.section(LOG, whole=True):
            for tracker in self.trackers:
                tracker.log(self.progress.step, values)
        self.progress.records += 1

    @property
    def _total_steps(self) -> int:
        return self.settings.epochs * math.ceil(len(self.loader) / self.settings.accumulate)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients, with random numbers that training does not miss."""
        device = self.accelerator.device
        devices = [torch.cuda.current_device()] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()

    def _refuse(self, expected: str, got: str) -> None:
        raise MmrecError(
            expected,
            got=got,
            where=f"step {self.progress.step + 1} of epoch {self.progress.epoch + 1}",
            fix="Lower train.learning_rate, or train with train.precision=float32.",
        )


def _in_float32(output: ModelOutput) -> ModelOutput:
    """Widen what autocast has narrowed: the softmax over a catalogue needs all its digits."""
    return replace(
        output,
        item_embeddings=output.item_embeddings.float(),
        target_vectors=output.target_vectors.float(),
        views={name: view.float() for name, view in output.views.items()},
    )
