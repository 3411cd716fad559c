"""What an evaluation found, as plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.crossmodal import CrossModal
from mmrec.evaluation.knockout import Knockout
from mmrec.evaluation.ranking import Ranks
from mmrec.evaluation.significance import Difference, Estimate


@dataclass(frozen=True)
class ScorerResult:
    """One row of a table.

    Args:
        scorer: its name.
        metrics: ``name@k`` to mean and interval, pessimistic ties.
        expected: ``name@k`` to mean over every order of equals.
        ahead: ``name@k`` to the model minus this scorer, paired; empty for the model itself.
        coverage: share of the candidates that anybody was recommended.
        gini: inequality of how often candidates were recommended.
    """

    scorer: str
    metrics: Mapping[str, Estimate]
    expected: Mapping[str, float]
    ahead: Mapping[str, Difference]
    coverage: float
    gini: float


@dataclass(frozen=True)
class SettingResult:
    """One table: every scorer under one setting.

    Args:
        name: name of the setting.
        pool: ``all`` or ``cold``.
        filter_seen: whether the history's items were taken out.
        existing_only: whether items not yet published were taken out.
        cases: cases with a target left.
        dropped_cases: cases that lost all their targets to the filter.
        targets: targets ranked.
        dropped_targets: targets that repeated an item of the history and were taken out.
        candidates: mean number of candidates.
        ceiling: share of cases that have a target among the candidates: the highest hit rate possible.
        id_ceiling: the same for a model that knows only items of the training events.
        chance: ``name@k`` to what a random order gets.
        list_length: length of the lists that coverage and Gini look at.
        rows: the model first.
    """

    name: str
    pool: str
    filter_seen: bool
    existing_only: bool
    cases: int
    dropped_cases: int
    targets: int
    dropped_targets: int
    candidates: float
    ceiling: float
    id_ceiling: float
    chance: Mapping[str, float]
    list_length: int
    rows: Sequence[ScorerResult]


@dataclass(frozen=True)
class SliceGroup:
    """One group of a slicing.

    Args:
        name: the group.
        cases: cases with a target in it.
        scores: scorer to metric to mean and interval, over those cases, with the group's targets alone as targets.
    """

    name: str
    cases: int
    scores: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class Slice:
    """One way to divide the targets, with its groups in reading order."""

    name: str
    groups: Sequence[SliceGroup]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything one evaluation found.

    Args:
        model: name of the scorer that the report is about.
        part: ``validation`` or ``test``.
        split: name of the split.
        split_kind: how it was made.
        feed_hash: hash of the prepared feed.
        users: users with a case.
        items: items in the catalogue.
        cold_share: share of the targets that training never saw.
        repeat_share: share of the targets that are in the history of their own case.
        median_history: median history length of a case.
        settings: the tables, the headline first.
        slices: of the headline setting.
        knockouts: of the headline setting.
        cold_cost: metric to what the cold candidates cost warm targets; empty unless such targets were asked about.
        crossmodal: captions against pictures; None where the model does not read both, or too few posts have both.
        case_table: the model's ranks of every target (kept in cases.parquet, not in report.json).
        ranks: the model's ranks by setting (not in report.json).
    """

    model: str
    part: str
    split: str
    split_kind: str
    feed_hash: str
    users: int
    items: int
    cold_share: float
    repeat_share: float
    median_history: float
    settings: Sequence[SettingResult]
    slices: Sequence[Slice]
    knockouts: Sequence[Knockout]
    cold_cost: Mapping[str, Difference]
    crossmodal: CrossModal | None
    case_table: CaseTable
    ranks: Mapping[str, Ranks]

    @property
    def headline(self) -> SettingResult:
        """The first table."""
        return self.settings[0]

    def to_dict(self) -> dict[str, object]:
        """Return everything that report.json holds, as plain values."""
        kept = {name: value for name, value in vars(self).items() if name not in ("case_table", "ranks")}
        return {name: _plain(value) for name, value in kept.items()}


def _plain(value: object) -> object:
    if isinstance(value, SettingResult | Slice | Knockout | CrossModal | Difference):
        return asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
