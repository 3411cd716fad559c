"""The command ``mmrec-data``: prepare a feed, divide it, look at it, audit it, make one up.

Imports of the work itself happen inside the commands, so that ``--help`` answers at once.  Defaults are repeated
there to be seen in ``--help``; a test holds them equal to those of the work.
"""

from __future__ import annotations

# The order of the commands in the help.
from data_tools.cli import preparing, splitting, looking, sources  # isort: skip
from data_tools.cli.shared import app
from mmrec.console import run_app

__all__ = ["app", "looking", "main", "preparing", "sources", "splitting"]


def main() -> None:
    """Entry point of ``mmrec-data``."""
    run_app(app, name="mmrec-data")
