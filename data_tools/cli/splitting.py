"""Dividing a prepared feed."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli.shared import Json, Prepared, app
from mmrec.console import progress
from mmrec.errors import FeedError


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
    from data_tools.split_choices import SplitChoices
    from data_tools.splits import set_default, write_split

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
