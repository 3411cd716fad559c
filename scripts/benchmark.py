"""Measure mmrec against a floor (the same arithmetic done bare) and against how the field does it, in one process.

    python scripts/benchmark.py softmax evaluate --json out.json
    python scripts/benchmark.py all --size small              # a minute or two: shows that everything runs
    python scripts/benchmark.py train --device cuda --size gpu
    python scripts/benchmark.py serve --run runs/hm --vectors vectors/hm --minutes 10

Both sides of a ratio take turns after a warm-up; the median ratio and its range over the rounds are printed.  Wall
times on a machine with other work are worth little, ratios a little more.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

from benchmarks.measure import Row, describe_machine
from benchmarks.parts import PARTS, Part
from benchmarks.serve import serve

from mmrec.process import keep_freed_memory
from mmrec.storage import atomic_file


def main() -> int:
    """Run the parts asked for; exit code 1 where a row misses what it must reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["all", *PARTS], metavar="PART", help=f"all, {', '.join(PARTS)}")
    parser.add_argument(
        "--size", choices=["small", "cpu", "gpu"], default="cpu", help="shapes; small only shows that it runs"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--json", type=Path, help="write all rows to this file as well")
    parser.add_argument("--run", type=Path, help="serve: run to serve, in place of a made one")
    parser.add_argument("--vectors", type=Path, help="serve: its export")
    parser.add_argument("--minutes", type=float, help="serve: length of the mixed load")
    arguments = parser.parse_args()
    given = {"run": arguments.run, "vectors": arguments.vectors, "minutes": arguments.minutes}
    parts: dict[str, Part] = {**PARTS, "serve": functools.partial(serve, **given)}
    machine = describe_machine(arguments.device)
    print(machine, flush=True)
    rows: list[Row] = []
    for name in PARTS if "all" in arguments.parts else dict.fromkeys(arguments.parts):
        for row in parts[name](size=arguments.size, device=arguments.device, rounds=arguments.rounds):
            print(row, flush=True)
            rows.append(row)
        if arguments.json is not None:
            # After every part: all of them take an hour and more.
            document = {"machine": machine, "size": arguments.size, "rows": [row.as_dict() for row in rows]}
            with atomic_file(arguments.json) as partial:
                partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
