"""Looking at a prepared feed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from data_tools.cli.shared import Json, Prepared, app
from mmrec.console import FAILED, print_json, progress


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
