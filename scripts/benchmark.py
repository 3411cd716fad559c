"""Measure mmrec against a floor (the same arithmetic done bare) and against how the field does it, in one process.

    python scripts/benchmark.py softmax evaluate --json out.json
    python scripts/benchmark.py all --size small              # a minute or two: shows that everything runs
    python scripts/benchmark.py train --device cuda --size gpu
    python scripts/benchmark.py serve --run runs/hm --vectors vectors/hm --minutes 10

Both sides of a ratio take turns after a warm-up; the median ratio and its range over the rounds are printed.  Wall
times on a machine with other work are worth little, ratios a little more.  Of several parts each runs in a process of its
own: none begins with the memory that another left behind, and one that dies takes no other with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

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
    names = list(PARTS) if "all" in arguments.parts else list(dict.fromkeys(arguments.parts))
    machine = describe_machine(arguments.device)
    print(machine, flush=True)
    return _one_by_one(names, arguments, machine) if len(names) > 1 else _measure(names[0], arguments, machine)


def _measure(name: str, arguments: argparse.Namespace, machine: str) -> int:
    """Run a part here; return 1 where a row misses what it must reach."""
    given = {"run": arguments.run, "vectors": arguments.vectors, "minutes": arguments.minutes}
    parts: dict[str, Part] = {**PARTS, "serve": functools.partial(serve, **given)}
    rows: list[Row] = []
    for row in parts[name](size=arguments.size, device=arguments.device, rounds=arguments.rounds):
        print(row, flush=True)
        rows.append(row)
        if arguments.json is not None:
            _write(arguments.json, machine, arguments.size, [row.as_dict() for row in rows], {})
    return int(any(row.met is False for row in rows))


def _one_by_one(names: Sequence[str], arguments: argparse.Namespace, machine: str) -> int:
    """Run parts in processes of their own; return 1 where one of them did not end, or misses something."""
    options = ["--size", arguments.size, "--device", arguments.device, "--rounds", str(arguments.rounds)]
    for option in ("run", "vectors", "minutes"):
        if (value := getattr(arguments, option)) is not None:
            options += [f"--{option}", str(value)]
    rows: list[Mapping[str, object]] = []
    failed: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        for name in names:
            found = Path(folder) / f"{name}.json"
            code = _run([name, *options, "--json", str(found)], without=machine)
            if found.exists():
                rows += json.loads(found.read_text(encoding="utf-8"))["rows"]
            if code not in (0, 1) or not found.exists():
                print(f"{name:9} ended with {code} before it was over", flush=True)
                failed[name] = code
            if arguments.json is not None:
                _write(arguments.json, machine, arguments.size, rows, failed)
    return int(bool(failed) or any(row["met"] is False for row in rows))


def _run(words: Sequence[str], *, without: str) -> int:
    """Run this program, show what it prints but for one line, and return its exit code."""
    with subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip("\n") != without:
                print(line, end="", flush=True)
    return process.returncode


def _write(
    path: Path, machine: str, size: str, rows: Sequence[Mapping[str, object]], failed: Mapping[str, int]
) -> None:
    with atomic_file(path) as partial:
        document = {"machine": machine, "size": size, "rows": rows, "failed": failed}
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
