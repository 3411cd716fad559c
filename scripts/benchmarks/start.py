"""How long a user waits for the first sign of life: imports, help, and the first score from a saved run.

Everything is measured in fresh processes, from the outside.  ``import transformers`` is lazy and imports no model:
the floor of the first score names the modules that a caption and a picture encoder live in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.made_run import TINY, MadeRun, make_run
from benchmarks.measure import Row, alternate
from benchmarks.processes import run_python

REPEATS = 5
HELP = "import sys; sys.argv = ['mmrec', '--help']; from mmrec.cli import main; main()"
"""What the installed command does."""
FLOORS = {
    "torch, transformers' BERT and timm": (
        "import torch, transformers.models.bert.modeling_bert, transformers.models.auto.modeling_auto, timm"
    ),
    "torch and transformers without any model": "import torch, transformers",
}
FIRST_SCORE = """
from mmrec import Post, Recommender
recommender = Recommender.load({run!r}, device={device!r})
table = recommender.score(history={history!r}, candidates=[*{candidates!r}, Post(caption="c1 c2 t0w1")])
assert table["error_message"].isna().all() and len(table) == 4, table
"""


def first_score(made: MadeRun, *, device: str) -> str:
    """Return the code that loads a run and scores three items and a new post."""
    ids = made.item_ids
    return FIRST_SCORE.format(run=str(made.run), device=device, history=ids[:2], candidates=ids[2:5])


def start(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Measure imports, help and the first score."""
    repeats = 1 if size == "small" else max(rounds, REPEATS)
    for what, code, target in (("import mmrec", "import mmrec", 0.3), ("mmrec --help", HELP, 0.5)):
        run_python(code)
        seconds = tuple(run_python(code).seconds for _ in range(repeats))
        yield Row("start", what, seconds, bound="at most", target=_asked(target, size), unit="s")
    with TemporaryDirectory() as folder:
        made = make_run(Path(folder), TINY, device=device)
        code = first_score(made, device=device)
        sides = {"first score": partial(run_python, code)} | {
            name: partial(run_python, c) for name, c in FLOORS.items()
        }
        timed = alternate(sides, rounds=repeats, warm_up=0 if size == "small" else 1)
    for floor, limit in zip(FLOORS, (1.0, None), strict=True):
        beyond = tuple(own - other for own, other in zip(timed["first score"], timed[floor], strict=True))
        details = {"process s": min(timed["first score"]), "imports s": min(timed[floor])}
        what = f"first score from a saved run, beyond the imports of {floor}"
        yield Row("start", what, beyond, bound="at most", target=_asked(limit, size), unit="s", details=details)


def _asked(target: float | None, size: str) -> float | None:
    return None if size == "small" else target
