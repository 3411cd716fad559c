"""The table of peers: every run of a data folder, all figures from the ranks of single cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.comparison import REPORT_JSON
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.significance import differences, estimates
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json
from peers.export import ABOUT
from peers.judge import PART
from peers.running import RESULT

SHOWN = ("hr@10", "ndcg@10", "recall@10")
COMPARED = "ndcg@10"
OWN = "mmrec"

Values = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Entry:
    """All runs of one model on one data folder, which differ in their seed alone.

    Args:
        title: the model.
        evaluations: folders with ``cases.parquet``.
        results: what is known of each run: seconds, memory, settings, versions.
    """

    title: str
    evaluations: Sequence[Path]
    results: Sequence[Mapping[str, object]]

    def values(self, setting: str) -> tuple[Values, npt.NDArray[np.int64]]:
        """Return metrics of every case, mean over the seeds, and whose case each is."""
        found, users = [], np.zeros(0, np.int64)
        for folder in self.evaluations:
            places, users = CaseTable.load(folder).places(setting)
            found.append(case_metrics(places, cutoffs=(10,)))
        return {name: np.mean([values[name] for values in found], axis=0) for name in SHOWN}, users


def entries(data: Path, own: Sequence[Path]) -> list[Entry]:
    """Return the peers that have run on a data folder and, first, mmrec's own runs on the same split."""
    grouped: dict[str, list[tuple[Path, Mapping[str, object]]]] = {}
    for path in sorted(data.glob(f"runs/*/{RESULT}")):
        result = read_json(path)
        grouped.setdefault(str(result["title"]), []).append((RunFolder(path.parent).evaluation(PART), result))
    found = [
        Entry(title, [path for path, _ in runs], [result for _, result in runs]) for title, runs in grouped.items()
    ]
    about = read_json(data / ABOUT)
    mine = [RunFolder(run).evaluation(PART) for run in own]
    mine = [folder for folder in mine if _asks(read_json(folder / REPORT_JSON), about)]
    return [*([Entry(OWN, mine, [])] if mine else []), *found]


def markdown(data: Path, own: Sequence[Path] = ()) -> str:
    """Return one table a setting, then what each peer was run with."""
    about, found = read_json(data / ABOUT), entries(data, own)
    lines = [f"## {data.name}: {about['split']}", ""]
    if not found:
        return "\n".join([*lines, "No peer has run here yet.", ""])
    for setting in CaseTable.load(found[0].evaluations[0]).settings:
        lines += [f"### {setting}", "", *_setting_table(found, setting), ""]
    return "\n".join([*lines, "### how they were run", "", *_how(found), ""])


def _setting_table(found: Sequence[Entry], setting: str) -> list[str]:
    compared = found[0].title == OWN
    header = ["model", "HR@10", "NDCG@10", "Recall@10", *([f"{OWN} ahead, NDCG@10"] if compared else [])]
    rows = []
    own, _ = found[0].values(setting)
    for entry in found:
        values, users = entry.values(setting)
        means = estimates(values, users)
        cells = [
            f"{_figure(means[name].mean)} [{_figure(means[name].low)}, {_figure(means[name].high)}]" for name in SHOWN
        ]
        if compared and entry.title != OWN:
            gap = differences({COMPARED: own[COMPARED]}, values, users)[COMPARED]
            cells.append(f"{_figure(gap.mean, sign='+')} [{_figure(gap.low, sign='+')}, {_figure(gap.high, sign='+')}]")
        elif compared:
            cells.append("")
        rows.append((means[COMPARED].mean, [entry.title, *cells]))
    rows.sort(key=lambda row: -row[0])
    return _table(header, [cells for _, cells in rows])


def _how(found: Sequence[Entry]) -> list[str]:
    rows = []
    for entry in found:
        if not entry.results:
            continue
        first = entry.results[0]
        seconds = np.mean([float(str(result["fit_seconds"])) for result in entry.results])
        peaks = [float(str(result["peak_mb"])) for result in entry.results if result["peak_mb"] is not None]
        ended = "; ".join(dict.fromkeys(_ending(result) for result in entry.results))
        rows.append(
            [
                entry.title,
                ", ".join(str(result["seed"]) for result in entry.results),
                f"{seconds:,.0f}",
                f"{max(peaks) / 1e3:.1f}" if peaks else "",
                ended,
                _pairs(first["settings"]),
                _pairs(first["versions"]),
            ]
        )
    machines = dict.fromkeys(
        f"{result['threads']} thread(s) allowed; {result['machine']}" for entry in found for result in entry.results
    )
    header = ["model", "seeds", "seconds of fitting", "peak GB", "ended by", "settings", "versions"]
    return [*_table(header, rows), "", *machines]


def _ending(result: Mapping[str, object]) -> str:
    """Say why fitting stopped, and after which epoch."""
    ended, steps = str(result["ended"]), result.get("validation")
    if ended == "limit":
        ended = f"limit of {float(str(result['limit_seconds'])):,.0f} s"
    epochs = [entry for entry in steps if "epoch" in entry] if isinstance(steps, list) else []
    refitted = ", validation's targets in the last fit" if result.get("refitted") else ""
    if not epochs:
        return ended + refitted
    best = max(epochs, key=lambda entry: entry[COMPARED])["epoch"]
    return f"{ended}, best after epoch {best} of {max(entry['epoch'] for entry in epochs)}{refitted}"


def _asks(report: Mapping[str, object], about: Mapping[str, object]) -> bool:
    return (report["feed_hash"], report["split"]) == (about["feed_hash"], about["split"])


def _pairs(values: object) -> str:
    assert isinstance(values, Mapping)
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(entry) for entry in value)
    return " ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)


def _figure(value: float, *, sign: str = "") -> str:
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
