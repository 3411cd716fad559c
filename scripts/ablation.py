"""Train variants of a configuration over several seeds, evaluate all on the same cases, and compare them in pairs.

    python scripts/ablation.py configs/minilm_effnet.yaml --feed work/hm --variants configs/ablation/hm.yaml \\
        --out work/ablation/hm --seeds 0 1 2 --jobs 4

Every run is a folder of its own; what is there is not done again, so a killed ablation is started once more with the
same words.  Validation cases are asked unless ``--part test`` says otherwise, which is for the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.significance import Difference, Estimate, differences, estimates
from mmrec.run_folder import RunFolder
from mmrec.storage import atomic_file, read_json, write_json

BASE = "base"
METRICS = ("hr@10", "ndcg@10")


@dataclass(frozen=True)
class Job:
    """One run: a variant with a seed.

    Args:
        variant: its name.
        seed: of everything drawn.
        settings: ``KEY=VALUE`` beyond the configuration.
        folder: of the run.
    """

    variant: str
    seed: int
    settings: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Args:
        config: configuration file.
        feed: prepared feed.
        part: cases asked.
        device: where to train and evaluate.
    """

    config: Path
    feed: Path
    part: str
    device: str

    def run(self, job: Job) -> None:
        """Train and evaluate, whatever of it is not done yet; the log lies beside the run.

        Raises:
            subprocess.CalledProcessError: a command failed.
        """
        shared = ["--device", self.device]
        chosen = [word for setting in (*job.settings, f"train.seed={job.seed}") for word in ("--set", setting)]
        about = RunFolder(job.folder)
        train = ["train", str(self.config), "--feed", str(self.feed), "--out", str(job.folder), *chosen, *shared]
        if about.about.is_file():
            train.append("--resume")
        done = job.folder / "trained.json"
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
            if not done.is_file():
                start = time.perf_counter()
                _mmrec(train, log)
                write_json(done, {"seconds": round(time.perf_counter() - start, 1)})
            if not about.evaluation(self.part).joinpath("cases.parquet").is_file():
                _mmrec(["evaluate", str(job.folder), "--split", self.part, "--no-knockout", *shared], log)


def _mmrec(words: Sequence[str], log: object) -> None:
    subprocess.run([sys.executable, "-m", "mmrec.cli", *words], check=True, stdout=log, stderr=log)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Answers:
    """What the runs of one variant answered, as a mean over its seeds.

    Args:
        metrics: name to shape (cases,).
        users: shape (cases,), whose case it is.
    """

    metrics: Mapping[str, npt.NDArray[np.float64]]
    users: npt.NDArray[np.int64]


def answers(folders: Sequence[Path], part: str, setting: str) -> Answers:
    """Read the evaluations of one variant."""
    values, users = [], np.zeros(0, np.int64)
    for folder in folders:
        places, users = CaseTable.load(RunFolder(folder).evaluation(part)).places(setting)
        values.append(case_metrics(places))
    return Answers({name: np.mean([found[name] for found in values], axis=0) for name in METRICS}, users)


def read_variants(path: Path) -> dict[str, list[str]]:
    """Return the settings of every variant; ``base`` has none of its own.

    Raises:
        SystemExit: the file is no mapping of names to lists of ``KEY=VALUE``.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    good = isinstance(values, dict) and all(
        isinstance(entry, list) and all(isinstance(word, str) and "=" in word for word in entry)
        for entry in values.values()
    )
    if not good:
        raise SystemExit(f"{path}: expected names, each with a list of KEY=VALUE")
    return {BASE: [], **values}


def rows(jobs: Sequence[Job], part: str) -> Iterator[dict[str, object]]:
    """Yield a line for every variant and setting of the evaluation: its figures, and how far it is from the base."""
    folders: dict[str, list[Path]] = {}
    for job in jobs:
        folders.setdefault(job.variant, []).append(job.folder)
    for setting in CaseTable.load(RunFolder(jobs[0].folder).evaluation(part)).settings:
        base = answers(folders[BASE], part, setting)
        for variant, own in folders.items():
            found = answers(own, part, setting)
            yield {
                "setting": setting,
                "variant": variant,
                "seeds": len(own),
                "seconds": [float(str(read_json(folder / "trained.json")["seconds"])) for folder in own],
                "figures": {name: vars(value) for name, value in estimates(found.metrics, found.users).items()},
                "minus base": None
                if variant == BASE
                else {name: vars(gap) for name, gap in differences(found.metrics, base.metrics, base.users).items()},
            }


def as_table(found: Sequence[Mapping[str, object]]) -> str:
    """Lay the lines out as Markdown, the settings one below the other."""
    lines = [
        "| setting | variant | HR@10 | NDCG@10 | NDCG@10 minus base |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        figures = {name: Estimate(**value) for name, value in row["figures"].items()}  # type: ignore[attr-defined]
        gap = "" if row["minus base"] is None else _interval(Difference(**row["minus base"]["ndcg@10"]))  # type: ignore[index]
        shown = [f"{figures[name].mean:.4f} [{figures[name].low:.3f}, {figures[name].high:.3f}]" for name in METRICS]
        lines.append(f"| {row['setting']} | {row['variant']} | {' | '.join(shown)} | {gap} |")
    return "\n".join(lines)


def _interval(gap: Difference) -> str:
    return f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"


def run_all(jobs: Sequence[Job], run: Callable[[Job], None], *, at_once: int) -> list[str]:
    """Run the jobs, some at a time; return the names of those that failed."""

    def tried(job: Job) -> str | None:
        try:
            run(job)
        except subprocess.CalledProcessError:
            print(f"{job.folder.name} failed: see {job.folder.with_suffix('.log')}", flush=True)
            return job.folder.name
        print(f"{job.folder.name} done", flush=True)
        return None

    with ThreadPoolExecutor(at_once) as pool:
        return [name for name in pool.map(tried, jobs) if name is not None]


def main() -> int:
    """Run the ablation; exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration that the variants change")
    parser.add_argument("--feed", type=Path, required=True, help="prepared feed")
    parser.add_argument("--variants", type=Path, required=True, help="YAML: name to list of KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of each variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--part", choices=["validation", "test", "warm", "calibration"], default="validation", help="cases asked"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU where there is one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every variant")
    arguments = parser.parse_args()
    plan = Plan(arguments.config, arguments.feed, arguments.part, arguments.device)
    jobs = [
        Job(name, seed, (*arguments.set, *settings), arguments.out / f"{name.replace(' ', '_')}-{seed}")
        for seed in arguments.seeds
        for name, settings in read_variants(arguments.variants).items()
    ]
    # The first run fills the caches of the trunks that most of the others read.
    failed = run_all(jobs[:1], plan.run, at_once=1) or run_all(jobs[1:], plan.run, at_once=arguments.jobs)
    left = [job for job in jobs if RunFolder(job.folder).evaluation(plan.part).joinpath("cases.parquet").is_file()]
    if not any(job.variant == BASE for job in left):
        return 1
    found = list(rows(left, plan.part))
    table = as_table(found)
    print(table)
    for name, text in (("table.md", table), ("table.json", json.dumps(found, indent=2))):
        with atomic_file(arguments.out / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
