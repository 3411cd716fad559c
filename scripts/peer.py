"""Measure mmrec's peers on the very split files of a prepared feed, each in an environment of its own.

    python scripts/peer.py export --feed work/ml1m --split leave_last_out --out work/peers/ml1m
    python scripts/peer.py run rectools-sasrec --data work/peers/ml1m
    python scripts/peer.py all --data work/peers/ml1m work/peers/hm --out peers.md       # what has not run yet, then the table
    python scripts/peer.py table work/peers/ml1m work/peers/hm --against runs/ml1m runs/hm

A peer learns from plain files, never sees a test target, and scores the whole catalogue for every test case; mmrec's own
code ranks, so figures stand beside those of ``mmrec evaluate``, and ``mmrec evaluate RUN --split test --against
work/peers/ml1m/runs/rectools-sasrec-seed0`` compares case by case.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peers.export import export
from peers.listing import PEERS
from peers.running import RESULT, Plan, run_folder, run_peer
from peers.table import SHOWN, markdown

from mmrec.errors import MmrecError
from mmrec.evaluation.results import EvaluationReport
from mmrec.process import keep_freed_memory
from mmrec.storage import atomic_file

MARKER = "<!-- peers -->\n\n"
"""What a Markdown file holds above this line stays when the table is written anew."""


def main() -> int:
    """Do what was asked; exit code 1 where something failed."""
    asked = parse()
    try:
        return int(asked.call(asked) or 0)
    except (MmrecError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    write = commands.add_parser("export", help="write a feed and a split as plain files")
    write.add_argument("--feed", type=Path, required=True, help="prepared feed")
    write.add_argument("--split", help="its split; the feed's default where not given")
    write.add_argument("--out", type=Path, required=True, help="folder to write")
    write.add_argument(
        "--config",
        type=Path,
        default=Path("configs/minilm_effnet.yaml"),
        help="whose frozen encoders describe the items",
    )
    write.add_argument("--no-contents", action="store_true", help="leave the items' vectors out")
    write.set_defaults(call=_export)
    one = commands.add_parser("run", help="run one peer")
    one.add_argument("peer", choices=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    one.add_argument("--data", type=Path, required=True, help="folder that export wrote")
    one.set_defaults(call=_run)
    every = commands.add_parser("all", help="run every peer that has not run yet, then print the table")
    every.add_argument("--data", type=Path, nargs="+", required=True, help="folders that export wrote")
    every.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="PEER")
    every.set_defaults(call=_all)
    for command in (one, every):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--limit", type=float, default=900.0, help="seconds of the processor for fitting")
        command.add_argument("--threads", type=int, default=1, help="threads that a peer may use")
        command.add_argument("--environments", type=Path, default=Path("work/peers/environments"), metavar="DIR")
        command.add_argument("--keep-scores", action="store_true", help="keep the scores after judging")
    show = commands.add_parser("table", help="print the table of what has run")
    show.add_argument("data", type=Path, nargs="+", help="folders that export wrote")
    show.set_defaults(call=_table)
    for command in (every, show):
        command.add_argument(
            "--against", type=Path, nargs="*", default=[], metavar="RUN", help="evaluated runs of mmrec"
        )
        command.add_argument(
            "--out", type=Path, help="Markdown file to write as well; what it holds above the line <!-- peers --> stays"
        )
    return parser.parse_args(arguments)


def _export(asked: argparse.Namespace) -> None:
    config = None if asked.no_contents else asked.config
    done = export(asked.feed, asked.split, asked.out, config=config)
    print(
        f"{done.folder}: {done.train_events:,} events to learn from, {done.validation_cases:,} validation and "
        f"{done.test_cases:,} test cases, contents: {', '.join(done.contents) or 'none'}"
    )


def _run(asked: argparse.Namespace) -> None:
    report = run_peer(asked.peer, asked.data, _plan(asked))
    print(f"{asked.peer}, {asked.data.name}: {_figures(report)}")


def _all(asked: argparse.Namespace) -> int:
    """Run what has not run yet; a peer that fails does not keep the others from running."""
    failed = 0
    for data in asked.data:
        for name in asked.peers:
            if (run_folder(data, name, asked.seed) / RESULT).is_file():
                continue
            try:
                report = run_peer(name, data, _plan(asked))
                print(f"{name}, {data.name}: {_figures(report)}", flush=True)
            except (MmrecError, RuntimeError) as error:
                failed += 1
                print(f"{name}, {data.name}: {error}", file=sys.stderr, flush=True)
    _table(asked)
    return int(failed > 0)


def _table(asked: argparse.Namespace) -> None:
    text = "\n".join(markdown(data, asked.against) for data in asked.data)
    print(text)
    if asked.out is not None:
        written = asked.out.read_text(encoding="utf-8") if asked.out.is_file() else ""
        above, marker, _ = written.partition(MARKER)
        with atomic_file(asked.out) as partial:
            partial.write_text(above + marker + text if marker else text, encoding="utf-8")


def _plan(asked: argparse.Namespace) -> Plan:
    return Plan(
        seed=asked.seed,
        limit=asked.limit,
        threads=asked.threads,
        environments=asked.environments,
        keep_scores=asked.keep_scores,
    )


def _figures(report: EvaluationReport) -> str:
    row = report.headline.rows[0]
    return report.headline.name + ", " + ", ".join(f"{name} {row.metrics[name].mean:.4f}" for name in SHOWN)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
