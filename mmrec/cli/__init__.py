"""The command line ``mmrec``: parse, call, print.  Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

# The order of the commands in the help.
from mmrec.cli import training, scoring, vectors, serving, weights  # isort: skip
from mmrec.cli.shared import app
from mmrec.console import run_app

__all__ = ["app", "main", "scoring", "serving", "training", "vectors", "weights"]


def main() -> None:
    """Run the command line."""
    run_app(app, name="mmrec")
