"""What the commands share: the application, options, arguments."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mmrec-data",
    help="From raw tables and pictures to a prepared feed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class TimestampUnit(StrEnum):
    """Units of the raw table's timestamps."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO = "iso"
    ORDER = "order"


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Prepared = Annotated[Path, typer.Argument(metavar="FOLDER", help="A prepared feed.")]
Out = Annotated[Path, typer.Option(help="Folder to write; whole or absent.")]
