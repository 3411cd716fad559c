"""Raw feeds that are not there yet: made up, or fetched from a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli.shared import Json, Out, TimestampUnit, app
from mmrec.console import print_json, print_table, progress, stages


@app.command()
def synthesize(
    out: Out,
    items: Annotated[int, typer.Option(min=16, help="Posts.")] = 1200,
    users: Annotated[int, typer.Option(min=1, help="Users.")] = 1500,
    events: Annotated[float, typer.Option(min=4, max=30, help="Clicks of a user on average.")] = 14.0,
    days: Annotated[int, typer.Option(min=2, help="Length of the feed in days.")] = 90,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives one feed, byte for byte.")] = 0,
    side: Annotated[int, typer.Option(min=16, max=1024, help="Pixels a side of a picture.")] = 96,
    subjects: Annotated[int, typer.Option(min=2, max=10, help="Subjects, which captions name.")] = 8,
    looks: Annotated[int, typer.Option(min=2, max=10, help="Looks, which pictures show.")] = 8,
    noise: Annotated[float | None, typer.Option(min=0, max=1, help="Share of clicks that have no reason.")] = None,
    drift: Annotated[float | None, typer.Option(min=0, max=1, help="How often tastes change, a click.")] = None,
    popularity: Annotated[float | None, typer.Option(min=0, max=3, help="Exponent of the posts' appeal.")] = None,
    difficulty: Annotated[float | None, typer.Option(min=0, max=1, help="From plain to hard pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Make up a raw feed of drawn pictures and captions whose best possible figures are known.

    Example: mmrec-data synthesize --out work/demo
    """
    from data_tools.render import show_synthesis
    from data_tools.synthesize import SynthesizeOptions
    from data_tools.synthesize import synthesize as work

    usual = SynthesizeOptions()
    options = SynthesizeOptions(
        items=items,
        users=users,
        events=events,
        days=days,
        seed=seed,
        side=side,
        subjects=subjects,
        looks=looks,
        noise=usual.noise if noise is None else noise,
        drift=usual.drift if drift is None else drift,
        popularity=usual.popularity if popularity is None else popularity,
        difficulty=usual.difficulty if difficulty is None else difficulty,
    )
    with progress("drawing posts") as meter:
        report = work(out, options=options, progress=meter.at)
    show_synthesis(report, as_json=as_json)


@app.command()
def pull(
    source: Annotated[str, typer.Option("--from", help="A mmrec serve, or its store.", envvar="MMREC_STORE")],
    out: Annotated[Path, typer.Option(help="Folder of the pulled feed; a pull into it goes on behind the last.")],
    feed: Annotated[
        Path | None, typer.Option(help="Raw feed that the service was trained on, whose rows come first.")
    ] = None,
    caption: Annotated[str, typer.Option(help="With --feed: its column that captions go to.")] = "caption",
    timestamp_unit: Annotated[
        TimestampUnit | None, typer.Option(help="With --feed: where detection is unsure.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with a key of scope admin. Default: the variable MMREC_KEY.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what a service took in and showed, as tables that prepare reads.

    Example: mmrec-data pull --from http://localhost:8000 --feed FEED --out pulled && mmrec-data prepare pulled --out work/new
    """
    from data_tools.pull import pull as work
    from data_tools.pull import read_key
    from data_tools.pulled_tables import RawFeed
    from data_tools.store_log import open_log, source_name

    raw = None if feed is None else RawFeed(feed, caption, timestamp_unit.value if timestamp_unit else None)
    with open_log(source, read_key(key_file), raw) as log, stages() as report_stage:
        report = work(log, out, source=source_name(source), feed=raw, progress=report_stage)
    if as_json:
        print_json({"folder": str(out), **report.record()})
    else:
        print_table(f"{out}: pulled", ["what", "count"], [[name, count] for name, count in report.record().items()])
