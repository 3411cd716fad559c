"""Config and prepared feed in, run folder out."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import accelerate
import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

import mmrec
from mmrec.assembly import Assembly, assemble, choose_device, split_fingerprint
from mmrec.build import save_preprocessors
from mmrec.build_training import build_loader, build_loss, build_optimizer, build_settings, build_trackers
from mmrec.commands.encoding_work import WorkLog
from mmrec.commands.profiling import COLLATION, OnProfile, profiled, watch_reader
from mmrec.commands.validation import VALUE_LOSSES, Validation, check_metric, validation_cases
from mmrec.config import Config
from mmrec.config_file import dump_config, load_config
from mmrec.encoders.base import BlockEncoder
from mmrec.errors import ArtifactError, ConfigError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.ids import Ids
from mmrec.feed.splits import Cases, Split
from mmrec.feed.trends import popularity_trends
from mmrec.inference.device_contents import device_room, keep_on_device
from mmrec.model.recommender import RecommenderModel
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.run_folder import RunFolder
from mmrec.storage import atomic_file
from mmrec.training.accelerator import open_accelerator
from mmrec.training.compilation import check_compiler, compile_blocks
from mmrec.training.contract import OnValidation, StepReport, TrainResult
from mmrec.training.loop import train
from mmrec.training.profiler import Profiler
from mmrec.training.ranks import Ranks
from mmrec.training.sharding import shard_blocks

CALIBRATION_ITEMS = 512


def train_run(
    config: Config,
    *,
    feed: Path,
    out: Path,
    resume: bool = False,
    device: str = "auto",
    notify: Notify = ignore,
    meter: Meter = silent_meter,
    on_validation: OnValidation | None = None,
    on_profile: OnProfile | None = None,
) -> dict[str, object]:
    """Train a recommender and return a summary of the run.

    Started by a launcher (torchrun) in several processes, these train one model together; the first
    writes the run and tells of it.

    Args:
        config: what to train.
        feed: prepared feed.
        out: run folder; new, or one to resume.
        resume: go on from the newest whole checkpoint.
        device: cpu, cuda, ... or auto.
        notify: told what is about to be done.
        meter: shows progress.
        on_validation: told the metric after each evaluation; may ask to stop.
        on_profile: told where the time went, after training and where Ctrl-C stops it; None times nothing.

    Raises:
        ArtifactError: the run exists and ``resume`` is off, or it was started with another config or feed.
        ConfigError: a setting that does not fit the feed, or ``train.compile`` without a compiler.
    """
    accelerator = open_accelerator(choose_device(device))
    ranks = Ranks.of(accelerator)
    if not ranks.is_first:
        notify, meter, on_profile = ignore, silent_meter, None
    run = RunFolder(out)
    split = check_settings(config, feed)
    if config.train.compile:
        check_compiler(accelerator.device)
    cases = validation_cases(config, split)
    ids = training_ids(feed, split, trend_days=config.model.trend_days)
    if ranks.is_first:
        check_run(run, config, feed=feed, split=split, resume=resume)
    # Trunks are cached once: by the first process, and by the first of each machine that does not see its files.
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        assembly = assemble(config, feed, ids, device=accelerator.device, notify=notify, meter=meter)
    if ranks.is_first:
        begin_run(run, config, feed=feed, split=split)
        save_parts(run, assembly, ids)
    negatives = split.trainable_items(assembly.histories, assembly.catalogue.first_seen)
    _calibrate(assembly, negatives)
    ranks.agree(assembly.model.state_dict().values())
    bases = assembly.bases
    if config.train.shard_encoders and ranks.count > 1:
        _shard_encoders(assembly.model, ranks)
    if config.train.compile:
        compile_blocks(assembly.model)
    room = device_room(assembly.device, share=config.train.device_contents)
    assembly = replace(assembly, reader=keep_on_device(assembly.reader, assembly.device, room=room, notify=notify))
    work = WorkLog(assembly.encoders)
    with profiled(on_profile, assembly, work, run.profile) as profiler:
        result = _train(
            assembly,
            ids,
            split,
            cases,
            run,
            accelerator,
            work,
            negatives=negatives,
            bases=bases,
            profiler=profiler,
            resume=resume,
            notify=notify,
            meter=meter,
            on_validation=on_validation,
        )
    if result.best_metric is None:
        raise ConfigError("at least one evaluation", got="none", where="train.evaluate_every")
    return {
        "run": str(out),
        "best " + config.train.metric + " (validation)": result.best_metric,
        "best checkpoint": result.best_checkpoint.name,
        "epochs": result.epochs,
        "steps": result.steps,
        "stopped early": result.stopped_early,
        "seconds": round(result.seconds, 1),
        "device": str(accelerator.device),
        **({"processes": ranks.count} if ranks.count > 1 else {}),
        **work.summary(),
    }


def check_settings(config: Config, feed: Path) -> Split:
    """Return the split that a configuration trains on, after refusing what does not fit the feed.

    Raises:
        ConfigError: no validation cases, an unknown metric, or an objective that the feed has no values for.
    """
    split = Split.load(feed, config.feed.split)
    validation_cases(config, split)
    check_metric(config.train.metric)
    _check_objective(config, Histories.load(feed))
    return split


def training_ids(feed: Path, split: Split, *, trend_days: int) -> Ids:
    """Return every item of a feed, how often the split's training events show it, and how that changed of late."""
    catalogue, histories = Catalogue.load(feed), Histories.load(feed)
    rows = histories.item_rows[np.flatnonzero(split.train_events)]
    trends = popularity_trends(histories, split.train_events, num_items=len(catalogue), days=trend_days)
    return Ids(catalogue.item_ids, np.bincount(rows, minlength=len(catalogue)), trends)


def check_run(run: RunFolder, config: Config, *, feed: Path, split: Split, resume: bool) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed and is still the same.

    Raises:
        ArtifactError: there is a run already, or the one to resume is another.
    """
    if not run.about.is_file():
        return
    about = run.read_about()
    if not resume:
        raise ArtifactError(
            "a new run folder",
            got="one that holds a run",
            where=str(run.path),
            fix="Continue it with --resume, or choose another --out.",
        )
    changed = [
        name
        for name, same in (
            ("configuration", load_config(run.config) == config),
            ("feed", about["feed_hash"] == Catalogue.load(feed).feed_hash),
            ("split", about.get("split_hash") == split_fingerprint(split)),
        )
        if not same
    ]
    if changed:
        raise ArtifactError(
            "the configuration, feed and split that the run was started with",
            got=f"another {' and another '.join(changed)}",
            where=str(run.path),
            fix="Resume with the same settings, or start a new run.",
        )


def begin_run(run: RunFolder, config: Config, *, feed: Path, split: Split) -> None:
    """Write what the run is made of, unless it is there."""
    if run.about.is_file():
        return
    with atomic_file(run.config) as partial:
        partial.write_text(dump_config(config), encoding="utf-8")
    versions = {"mmrec": mmrec.__version__, "torch": str(torch.__version__), "accelerate": accelerate.__version__}
    catalogue = Catalogue.load(feed)
    run.write_about(
        {
            "feed": str(feed.resolve()),
            "feed_hash": catalogue.feed_hash,
            "split": split.name,
            "split_hash": split_fingerprint(split),
            "event_names": catalogue.manifest.get("event_names", []),
            "image_side": catalogue.manifest.get("image_side"),
            "versions": versions | {"python": platform.python_version()},
        }
    )


def save_parts(run: RunFolder, assembly: Assembly, ids: Ids) -> None:
    """Write the id map and the preprocessors, so that the run can be used without a hub."""
    ids.save(run.ids)
    save_preprocessors(assembly.encoders, run.preprocessing)


def _calibrate(assembly: Assembly, negatives: npt.NDArray[np.bool_]) -> None:
    """Let the model measure its features on some items that training may see."""
    trainable = np.flatnonzero(negatives)
    generator = np.random.default_rng(assembly.config.train.seed)
    sample = np.sort(generator.choice(trainable, min(CALIBRATION_ITEMS, len(trainable)), replace=False))
    assembly.model.item_encoder.calibrate(assembly.reader.read(sample).to(assembly.device))


def _train(
    assembly: Assembly,
    ids: Ids,
    split: Split,
    cases: Cases,
    run: RunFolder,
    accelerator: Accelerator,
    work: WorkLog,
    *,
    negatives: npt.NDArray[np.bool_],
    bases: Mapping[str, str],
    profiler: Profiler,
    resume: bool,
    notify: Notify,
    meter: Meter,
    on_validation: OnValidation | None,
) -> TrainResult:
    config, model, histories = assembly.config, assembly.model, assembly.histories
    reader, watch = watch_reader(assembly.reader, profiler), partial(profiler.loading, COLLATION)
    ranks = Ranks.of(accelerator)
    loader = build_loader(config, histories, split, reader, negatives=negatives, ranks=ranks, watch=watch)
    loss = build_loss(
        config,
        histories,
        split,
        num_windows=loader.num_windows,
        negatives=negatives,
        first_seen=assembly.catalogue.first_seen,
        ranks=ranks,
    )
    validation = Validation(assembly, ids, split, cases, ranks, notify)
    needs_bank = config.objective.kind == "full_softmax"
    settings = build_settings(config)
    with meter("training steps") as advance:

        def report(step: StepReport) -> None:
            advance.at(step.step, step.total_steps)

        return train(
            model=model,
            loss=loss.to(assembly.device),
            optimizer=build_optimizer(config, model, assembly.encoders),
            loader=loader,
            settings=settings,
            folder=run.checkpoints,
            accelerator=accelerator,
            validate=validation,
            refresh_bank=(lambda: validation.encode_catalogue().to(assembly.device)) if needs_bank else None,
            work=work,
            trackers=build_trackers(config, run) if ranks.is_first else (),
            base=bases,
            resume=resume,
            progress=report,
            on_validation=on_validation,
            profiler=profiler,
            warn=notify,
        )


def _shard_encoders(model: RecommenderModel, ranks: Ranks) -> None:
    """Share out the live blocks of the encoders, which all ranks then run in step."""
    encoders = {name: model.item_encoder.encoder(name) for name in model.item_encoder.modalities}
    blocks = {name: encoder.live_blocks() for name, encoder in encoders.items() if isinstance(encoder, BlockEncoder)}
    model.item_encoder.in_step = tuple(name for name, live in blocks.items() if live)
    for live in blocks.values():
        shard_blocks(live, ranks)


def _check_objective(config: Config, histories: Histories) -> None:
    """Refuse an objective of values on a feed that has none, before any work."""
    if config.objective.kind in VALUE_LOSSES and histories.values is None:
        raise ConfigError(
            "interactions with a value",
            got="a feed without any",
            where=f"objective.kind: {config.objective.kind}",
            fix="Prepare the feed with a value column, or choose another objective.kind.",
        )
