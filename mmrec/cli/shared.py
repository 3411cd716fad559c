"""What all commands of ``mmrec`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrec.console import print_json, print_table

app = typer.Typer(
    help="Train a recommender on posts with a caption and a picture; score new posts; export vectors for search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[Path, typer.Argument(help="Folder of a trained run.", metavar="RUN")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")]
ComputeOption = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        help="Number format in which transformers run: bfloat16 took less than half the time on a processor with AMX (a GPU "
        "has not been timed), and vectors differ in the third digit.  What trunks gave in float32 is not taken from the "
        "cache then."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")]
FeedOption = Annotated[
    Path | None,
    typer.Option("--feed", help="Prepared feed; by default the one the run was trained on.", metavar="FEED"),
]
IndexOption = Annotated[
    Literal["flat", "hnsw", "ivfpq"] | None, typer.Option("--index", help="Kind of FAISS index; by default hnsw.")
]


def notify(message: str) -> None:
    """Say something beside the results."""
    typer.echo(message, err=True)


def print_summary(title: str, summary: dict[str, object], *, as_json: bool) -> None:
    """Print what a command came to, as a table or as JSON."""
    if as_json:
        print_json(summary)
    else:
        print_table(title, ["what", "value"], [[key, value] for key, value in summary.items()])
