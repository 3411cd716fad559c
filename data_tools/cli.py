"""The command ``mmrec-data``: prepare a feed, divide it, look at it, audit it, make one up.

Imports of the work itself happen inside the commands, so that ``--help`` answers at once.  Defaults are repeated
here to be seen in ``--help``; a test holds them equal to those of the work.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmrec.console import FAILED, print_json, print_table, progress, run_app, stages
from mmrec.errors import FeedError

app = typer.Typer(
    name="mmrec-data",
    help="From raw tables and pictures to a prepared feed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class WindowTargets(StrEnum):
    """What a window of time is asked for."""

    FIRST = "first"
    SUCCESSIVE = "successive"


class Kind(StrEnum):
    """Kinds of split."""

    GLOBAL_TIME = "global_time"
    LAST_DAY = "last_day"
    LEAVE_LAST_OUT = "leave_last_out"
    COLD_ITEMS = "cold_items"


class TimestampUnit(StrEnum):
    """Units of the raw table's timestamps."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO = "iso"
    ORDER = "order"


class OnDuplicate(StrEnum):
    """What to do with one item_id of two contents."""

    ERROR = "error"
    LAST = "last"


class SortIds(StrEnum):
    """How ids are compared before cold items are drawn."""

    TEXT = "text"
    INTEGER = "integer"


def parse_time(text: str) -> int:
    """Return milliseconds since 1970 of an ISO date or time (UTC where it names no zone), or of milliseconds."""
    if text.lstrip("-").isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected an ISO time such as 2020-09-15 or milliseconds, got {text!r}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def read_ids(path: Path | None) -> tuple[str, ...] | None:
    """Return the ids of a text file, one a line; None for no file."""
    if path is None:
        return None
    try:
        ids = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise FeedError("a UTF-8 text file with one id a line", got=str(error), where=str(path)) from error
    if not ids:
        raise FeedError("a text file with one id a line", got="no ids", where=str(path))
    return ids


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Prepared = Annotated[Path, typer.Argument(metavar="FOLDER", help="A prepared feed.")]
Out = Annotated[Path, typer.Option(help="Folder to write; whole or absent.")]
Columns = Annotated[str | None, typer.Option(help="Caption columns, with commas between. Default: caption.")]
Validation = Annotated[float, typer.Option(min=0, max=1, help="global_time: share of events in the validation window.")]
Test = Annotated[float, typer.Option(min=0, max=1, help="global_time: share of events in the test window.")]
ValidationFrom = Annotated[int | None, typer.Option(parser=parse_time, metavar="TIME", help="global_time: its start.")]
TestFrom = Annotated[int | None, typer.Option(parser=parse_time, metavar="TIME", help="global_time: its start.")]
Targets = Annotated[
    WindowTargets,
    typer.Option(help="global_time: ask for a user's first event of a window, or for each one after the other."),
]
ColdShare = Annotated[float, typer.Option(min=0, max=1, help="cold_items: share of items tested on.")]
ColdCount = Annotated[int | None, typer.Option(min=1, help="cold_items: number of them, instead of the share.")]
ValidationCold = Annotated[float, typer.Option(min=0, max=1, help="cold_items: share of items selected on.")]
ValidationColdCount = Annotated[int | None, typer.Option(min=0, help="cold_items: number of them instead.")]
WarmShare = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="cold_items: share of users whose last warm items are held out and asked about too, a third of them for calibration.",
    ),
]
ColdSeed = Annotated[int, typer.Option(min=0, help="cold_items: seed of the draw of test items.")]
ValidationSeed = Annotated[int, typer.Option(min=0, help="cold_items: seed of the draw of validation items.")]
ColdList = Annotated[Path | None, typer.Option(help="cold_items: file with the test items, one id a line.")]
ValidationList = Annotated[Path | None, typer.Option(help="cold_items: file with the validation items.")]
Sorting = Annotated[
    SortIds | None, typer.Option(help="cold_items: order of ids before the draw. Default: as they are.")
]
Minimum = Annotated[int, typer.Option(min=1, help="Items that the history of a case must hold at least.")]
Existing = Annotated[
    bool | None,
    typer.Option(
        "--existing-only/--all-candidates", help="Whether items are candidates only once they exist. Default: by kind."
    ),
]


@app.command()
def prepare(
    feed: Annotated[Path, typer.Argument(help="Folder with items.*, interactions.* and images/.")],
    out: Out,
    caption: Columns = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures. Default: FEED/images.")] = None,
    image_side: Annotated[int, typer.Option(min=1, help="Longest side of a stored picture.")] = 224,
    timestamp_unit: Annotated[TimestampUnit | None, typer.Option(help="Where detection cannot be sure.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Largest share of bad rows; more is an error.")] = 0.05,
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Keep posts without caption and picture.")] = False,
    on_duplicate: Annotated[OnDuplicate, typer.Option(help="One item_id, two contents.")] = OnDuplicate.ERROR,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger pictures are refused.")] = 25_000_000,
    max_caption_bytes: Annotated[int | None, typer.Option(min=4, help="Longer captions are cut, and counted.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode. Default: one a core.")] = None,
    split: Annotated[Kind | None, typer.Option(help="Default: global_time, or leave_last_out without times.")] = None,
    split_name: Annotated[str | None, typer.Option(help="Name of the split. Default: its kind.")] = None,
    no_split: Annotated[bool, typer.Option("--no-split", help="Write no split: mmrec-data split can later.")] = False,
    validation_share: Validation = 0.1,
    test_share: Test = 0.1,
    targets: Targets = WindowTargets.FIRST,
    cold_share: ColdShare = 0.2,
    cold_count: ColdCount = None,
    validation_cold_share: ValidationCold = 0.1,
    validation_cold_count: ValidationColdCount = None,
    warm_share: WarmShare = 0.0,
    cold_list: ColdList = None,
    minimum_history: Minimum = 1,
    existing_only: Existing = None,
    as_json: Json = False,
) -> None:
    """Validate, decode and divide a raw feed; run again, it goes on where it stopped, or does nothing.

    Example: mmrec-data prepare FEED --out work/hm --caption title,description
    """
    from data_tools.prepare import PrepareOptions, SplitPlan
    from data_tools.prepare import prepare as work
    from data_tools.splits import SplitChoices

    choices = SplitChoices(
        validation_share=validation_share,
        test_share=test_share,
        window_targets=targets.value,
        cold_share=cold_share,
        cold_count=cold_count,
        validation_cold_share=validation_cold_share,
        validation_cold_count=validation_cold_count,
        warm_share=warm_share,
        cold_ids=read_ids(cold_list),
        minimum_history=minimum_history,
        existing_only=existing_only,
    )
    options = PrepareOptions(
        caption=None if caption is None else tuple(name.strip() for name in caption.split(",")),
        images=images,
        image_side=image_side,
        timestamp_unit=timestamp_unit.value if timestamp_unit else None,
        max_bad=max_bad,
        keep_empty=keep_empty,
        on_duplicate=on_duplicate.value,
        max_pixels=max_pixels,
        max_caption_bytes=max_caption_bytes,
        workers=workers,
        split=None if no_split else SplitPlan(kind=split.value if split else None, name=split_name, choices=choices),
    )
    with stages() as report_stage:
        report = work(feed, out, options=options, progress=report_stage)
    show_prepared(report.record(), out, unchanged=report.unchanged, as_json=as_json)


def show_prepared(record: dict[str, object], out: Path, *, unchanged: bool, as_json: bool) -> None:
    """Print what preparing kept and refused."""
    from data_tools.render import report_rows

    if as_json:
        print_json({"folder": str(out), "unchanged": unchanged, **record})
        return
    title = f"{out}: unchanged, nothing to do" if unchanged else f"{out}: prepared"
    print_table(title, ["row or picture", "count"], report_rows(record))


@app.command()
def split(
    folder: Prepared,
    kind: Annotated[Kind, typer.Option(help="How to divide.")],
    name: Annotated[str | None, typer.Option(help="Name of the split. Default: its kind.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Make it the split that is read by default.")] = False,
    validation_share: Validation = 0.1,
    test_share: Test = 0.1,
    validation_from: ValidationFrom = None,
    test_from: TestFrom = None,
    targets: Targets = WindowTargets.FIRST,
    cold_share: ColdShare = 0.2,
    cold_count: ColdCount = None,
    validation_cold_share: ValidationCold = 0.1,
    validation_cold_count: ValidationColdCount = None,
    warm_share: WarmShare = 0.0,
    cold_seed: ColdSeed = 7,
    validation_seed: ValidationSeed = 8,
    cold_list: ColdList = None,
    validation_cold_list: ValidationList = None,
    sort_ids: Sorting = None,
    minimum_history: Minimum = 1,
    existing_only: Existing = None,
    as_json: Json = False,
) -> None:
    """Divide a prepared feed once more; a split of that name is replaced.

    Example: mmrec-data split work/hm --kind last_day --name hm-last-day
    """
    from data_tools.render import show_split
    from data_tools.splits import SplitChoices, set_default, write_split

    choices = SplitChoices(
        validation_share=validation_share,
        test_share=test_share,
        validation_from=validation_from,
        test_from=test_from,
        window_targets=targets.value,
        cold_share=cold_share,
        cold_count=cold_count,
        validation_cold_share=validation_cold_share,
        validation_cold_count=validation_cold_count,
        warm_share=warm_share,
        cold_seed=cold_seed,
        validation_seed=validation_seed,
        cold_ids=read_ids(cold_list),
        validation_cold_ids=read_ids(validation_cold_list),
        sort_ids=sort_ids.value if sort_ids else None,
        minimum_history=minimum_history,
        existing_only=existing_only,
    )
    with progress("dividing"):
        made = write_split(folder, name=name or kind.value, kind=kind.value, choices=choices)
        if default:
            set_default(folder, made.name)
    show_split(made, as_json=as_json)


@app.command()
def describe(folder: Prepared, as_json: Json = False) -> None:
    """Say what is in a prepared feed, what was refused and why.

    Example: mmrec-data describe work/hm
    """
    from data_tools.describe import describe as work
    from data_tools.render import show_description

    with progress("reading"):
        description = work(folder)
    if as_json:
        print_json(description.to_json())
    else:
        show_description(description)


@app.command()
def audit(
    folder: Prepared,
    split: Annotated[list[str] | None, typer.Option(help="Name of a split, may be repeated. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Look for leaks, near-duplicates, cold shares and ceilings; exit code 1 where figures would be wrong.

    Example: mmrec-data audit work/hm --json > audit.json
    """
    from data_tools.audit import audit as work
    from data_tools.render import show_audit

    with progress("comparing captions and pictures") as meter:
        report = work(folder, splits=split or None, progress=meter.at)
    if as_json:
        print_json(report.to_json())
    else:
        show_audit(report)
    if report.failed:
        sys.exit(FAILED)


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


def main() -> None:
    """Entry point of ``mmrec-data``."""
    run_app(app, name="mmrec-data")


if __name__ == "__main__":
    main()
