"""From raw tables and pictures to a prepared feed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli.shared import Json, Out, TimestampUnit, app
from data_tools.cli.splitting import (
    ColdCount,
    ColdList,
    ColdShare,
    Existing,
    Kind,
    Minimum,
    Targets,
    Test,
    Validation,
    ValidationCold,
    ValidationColdCount,
    WarmShare,
    WindowTargets,
    read_ids,
)
from mmrec.console import print_json, print_table, stages


class OnDuplicate(StrEnum):
    """What to do with one item_id of two contents."""

    ERROR = "error"
    LAST = "last"


Columns = Annotated[str | None, typer.Option(help="Caption columns, with commas between. Default: caption.")]


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
    from data_tools.split_choices import SplitChoices

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
