"""``python -m mmrec.cli``: the command line where its script is not on the path, as under a launcher."""

from __future__ import annotations

from mmrec.cli import main

main()
