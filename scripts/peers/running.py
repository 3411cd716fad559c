"""One peer on one data folder: its process, its scores, and what the judge says of them."""

from __future__ import annotations

import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from benchmarks.measure import describe_machine
from benchmarks.processes import watch

from mmrec.errors import ConfigError, FeedError, near_names
from mmrec.evaluation.baselines import standard_baselines
from mmrec.evaluation.ranking import CaseScorer
from mmrec.evaluation.results import EvaluationReport
from mmrec.storage import read_json, write_json
from peers.environments import interpreter, variables
from peers.judge import BLOCKS, PART, judge, load_split
from peers.listing import PEERS, Peer
from peers.runners.plain import RUN_JSON as FOUND
from peers.runners.plain import Data

RESULT = "result.json"
LOG = "log.txt"
PAUSE = 0.05
TAIL = 3000


@dataclass(frozen=True)
class Plan:
    """How a peer is to be run.

    Args:
        seed: of its chance.
        limit: seconds of the processor for fitting, after which it takes what it has.
        threads: threads it may use.
        environments: folder of the libraries' environments.
        keep_scores: keep what it scored after it was judged.
    """

    seed: int
    limit: float
    threads: int
    environments: Path
    keep_scores: bool = False


def find_peer(name: str) -> Peer:
    """Return a peer by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PEERS:
        raise ConfigError("the name of a peer", got=repr(name), where="PEER", fix=near_names(name, list(PEERS)))
    return PEERS[name]


def run_folder(data: Path, name: str, seed: int) -> Path:
    """Return where a peer's run lies."""
    return data / "runs" / f"{name}-seed{seed}"


def run_peer(name: str, data: Path, plan: Plan) -> EvaluationReport:
    """Run a peer, judge it, and write ``result.json`` into its run folder.

    Raises:
        RuntimeError: the library could not be installed, or the peer failed; the message is the end of what it said.
    """
    peer, out = find_peer(name), run_folder(data, name, plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob(BLOCKS), out / FOUND, out / RESULT]:
        path.unlink(missing_ok=True)
    title = f"{peer.title}, {data.name}"
    if peer.runner is None:
        start = time.process_time()
        scorer = _baseline(peer, data)
        about: dict[str, object] = {
            "fit_seconds": time.process_time() - start,
            "ended": "counts",
            "settings": {},
            "versions": {},
        }
        report, peak = judge(data, out, title=title, scorer=scorer), None
    else:
        peak = _run(peer, data, out, plan)
        about = read_json(out / FOUND)
        report = judge(data, out, title=title)
        if not plan.keep_scores:
            for path in out.glob(BLOCKS):
                path.unlink()
    machine = {"machine": describe_machine("cpu"), "threads": plan.threads, "peak_mb": peak}
    write_json(out / RESULT, {"peer": name, "seed": plan.seed} | asdict(peer) | about | machine)
    return report


def _run(peer: Peer, data: Path, out: Path, plan: Plan) -> float:
    """Run a peer's process to its end; return its peak memory in MB."""
    python = interpreter(str(peer.runner), peer.requirements, plan.environments)
    options = {"--data": data.resolve(), "--out": out.resolve(), "--seed": plan.seed, "--limit": plan.limit}
    command = [str(python), "-m", f"peers.runners.{peer.runner}", peer.variant]
    command += [str(word) for pair in options.items() for word in pair]
    with (out / LOG).open("w", encoding="utf-8") as log:
        # In its own folder: Python puts the working folder first on its path, and mmrec must not be found there.
        process = subprocess.Popen(
            command, env=variables(plan.threads), stdout=log, stderr=subprocess.STDOUT, cwd=out, text=True
        )
        try:
            peak = watch(process, pause=PAUSE)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        said = (out / LOG).read_text(encoding="utf-8", errors="replace")[-TAIL:]
        raise RuntimeError(f"{peer.title} ended with {process.returncode}: {said}")
    return peak / 1e6


def _baseline(peer: Peer, data: Path) -> CaseScorer:
    """Return one of mmrec's own baselines."""
    _, histories, split = load_split(data)
    contents = Data.load(data).contents() if peer.contents else {}
    if peer.contents and not contents:
        raise FeedError(
            "a data folder with contents", got="one without", where=str(data), fix="Export it with --config."
        )
    vectors = {name: torch.from_numpy(vectors) for name, vectors in contents.items()}
    present = {name: vector.abs().sum(1) > 0 for name, vector in vectors.items()}
    cases = split.part(PART)
    return standard_baselines(cases, histories, split.train_events, vectors=vectors, present=present)[peer.variant]
