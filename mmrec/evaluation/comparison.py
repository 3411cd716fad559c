"""Two runs on the same cases: the paired difference, its interval and its p-value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mmrec.errors import ArtifactError
from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.significance import BOOTSTRAP, Bootstrap, Difference, differences
from mmrec.storage import read_json

REPORT_JSON = "report.json"


@dataclass(frozen=True)
class Compared:
    """One metric of two runs: both means and the paired difference first - second."""

    first: float
    second: float
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Two evaluations: setting to metric to figures."""

    settings: Mapping[str, Mapping[str, Compared]]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def compare(first: Path, second: Path, *, bootstrap: Bootstrap = BOOTSTRAP) -> Comparison:
    """Compare two evaluation folders, users resampled in pairs.

    Raises:
        ArtifactError: a folder holds no evaluation, or the two did not answer the same cases.
    """
    _same(first, second, {key: str(read_json(first / REPORT_JSON).get(key)) for key in ("split", "part")})
    one, other = CaseTable.load(first), CaseTable.load(second)
    found = {}
    for setting in [name for name in one.settings if name in other.settings]:
        if not one.questions(setting).equals(other.questions(setting)):
            raise _different(first, second, f"cases that differ under {setting!r}")
        (places, users), (against, _) = one.places(setting), other.places(setting)
        a, b = case_metrics(places), case_metrics(against)
        gaps = differences(a, b, users, bootstrap=bootstrap)
        found[setting] = {name: Compared(float(a[name].mean()), float(b[name].mean()), gaps[name]) for name in a}
    if not found:
        raise _different(first, second, "no setting in common")
    return Comparison(found)


def _same(first: Path, second: Path, about: Mapping[str, str]) -> None:
    other = read_json(second / REPORT_JSON)
    for key, value in about.items():
        if str(other.get(key)) != value:
            raise _different(first, second, f"{key} {value!r} and {key} {str(other.get(key))!r}")


def _different(first: Path, second: Path, got: str) -> ArtifactError:
    return ArtifactError(
        "two evaluations of the same cases",
        got=got,
        where=f"{first} and {second}",
        fix="Evaluate both runs on the same feed, split and part.",
    )
