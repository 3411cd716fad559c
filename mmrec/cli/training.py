"""Train one recommender, or look for its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmrec.cli.shared import DeviceOption, JsonOption, app, notify
from mmrec.console import print_json, print_table, print_text, progress

if TYPE_CHECKING:
    from mmrec.training.profile import Profile


@app.command(epilog="Example: mmrec train configs/minilm_effnet.yaml --feed work/hm --out runs/hm --set train.epochs=3")
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration; see configs/.", metavar="CONFIG")],
    feed: Annotated[Path, typer.Option("--feed", help="Prepared feed (mmrec-data prepare).", metavar="FEED")],
    out: Annotated[Path, typer.Option(help="Folder of the run.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, dotted keys, repeatable.", metavar="KEY=VALUE")
    ] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of a step goes; also written to RUN/profile.json.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a recommender on a prepared feed."""
    from mmrec.config_file import load_config
    from mmrec.process import keep_freed_memory, launched_rank

    settings = load_config(config, overrides=overrides or [])
    keep_freed_memory()
    from mmrec.commands.train import train_run

    profiles: list[Profile] = []
    on_profile = (profiles.append if as_json else _print_profile) if profile else None
    summary = train_run(
        settings,
        feed=feed,
        out=out,
        resume=resume,
        device=device,
        notify=notify,
        meter=progress,
        on_profile=on_profile,
    )
    if launched_rank():
        return
    if as_json:
        print_json(summary | ({"profile": profiles[0].to_dict()} if profiles else {}))
        return
    print_table("Training", ["what", "value"], [[key, value] for key, value in summary.items()])
    print_text(f"Next: mmrec evaluate {out} --split test")


@app.command(
    epilog="Example: mmrec tune configs/minilm_effnet.yaml --feed work/hm --space configs/space/small.yaml "
    "--out runs/tune-hm --trials 20.  The same command goes on where it was stopped; more --trials add to them."
)
def tune(
    config: Annotated[Path, typer.Argument(help="YAML configuration that trials vary.", metavar="CONFIG")],
    feed: Annotated[Path, typer.Option("--feed", help="Prepared feed (mmrec-data prepare).", metavar="FEED")],
    space: Annotated[Path, typer.Option(help="YAML file of settings and values; see configs/space/.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Folder of the tune; new, or one to go on with.", metavar="DIR")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier ones included.")] = 20,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for all trials, repeatable.", metavar="KEY=VALUE")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share the threads or GPUs.")] = 1,
    device: DeviceOption = "auto",
    *,
    as_json: JsonOption = False,
) -> None:
    """Search a space of settings for the best validation metric; needs mmrec[tune].

    Writes best.yaml (for mmrec train), tune.json and every trial's metrics; never opens the test split.
    """
    from mmrec.config_file import load_config
    from mmrec.process import keep_freed_memory

    settings = load_config(config, overrides=overrides or [])
    keep_freed_memory()
    from mmrec.commands.tune import refuse_without_value, tune_run

    result = tune_run(
        settings,
        feed=feed,
        space=space,
        out=out,
        trials=trials,
        workers=workers,
        device=device,
        notify=notify,
        meter=progress,
    )
    if as_json:
        print_json(result.to_dict())
    else:
        print_table("Trials (validation)", *result.table())
        if failures := result.failures():
            print_table("Why trials failed", ["trials", "message"], failures)
        if result.importance is not None:
            print_table("What matters", ["setting", "share"], [[key, x] for key, x in result.importance.items()])
        for note in result.notes():
            print_text(note)
    refuse_without_value(result)
    if not as_json:
        print_text(f"Next: mmrec train {out / 'best.yaml'} --feed {feed} --out RUN")


def _print_profile(profile: Profile) -> None:
    from mmrec.commands.profiling import figure_rows

    print_table("Where the time of a step goes", *profile.table())
    if profile.loader_rows:
        print_table("Beside it, in the loader's thread", *profile.loader_table())
    print_table("Profile", ["what", "value"], figure_rows(profile))
