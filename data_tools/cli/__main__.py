"""``python -m data_tools.cli``: the command line where its script is not on the path."""

from __future__ import annotations

from data_tools.cli import main

main()
