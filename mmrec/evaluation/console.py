"""Rows of text for a terminal; the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrec.evaluation.comparison import Comparison
from mmrec.evaluation.crossmodal import CUTOFFS, FROZEN, MIN_UNSEEN, CrossModal
from mmrec.evaluation.results import EvaluationReport, SettingResult
from mmrec.evaluation.settings import WARM_ITEMS
from mmrec.evaluation.significance import Difference, Estimate

HEADLINE_METRICS = ("hr@10", "ndcg@10", "mrr@10", "recall@10")
INTERVAL_METRICS = ("hr@10", "ndcg@10")
"""Those that a terminal has the width to show with their intervals."""
COMPARED_METRIC = "ndcg@10"
CROSSMODAL_METRIC = "recall@10"


@dataclass(frozen=True)
class TextTable:
    """A title, a row of column names, rows of cells, and sentences to print below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def text_tables(report: EvaluationReport, *, metrics: Sequence[str] = HEADLINE_METRICS) -> list[TextTable]:
    """Return one table a setting, then the knock-outs, then captions against pictures, as text."""
    tables = [_setting(report, setting, metrics) for setting in report.settings]
    if report.knockouts:
        rows = []
        for entry in report.knockouts:
            rows.append([entry.name, *(_gap(entry.losses[metric]) for metric in metrics)])
        tables.append(TextTable("what each knock-out costs", ["knock-out", *metrics], rows))
    if report.crossmodal is not None:
        tables.append(_crossmodal(report.crossmodal))
    return tables


def comparison_tables(
    comparison: Comparison, *, first: str, second: str, metrics: Sequence[str] = HEADLINE_METRICS
) -> list[TextTable]:
    """Return one table a setting: both means, the paired difference, its interval and p-value."""
    tables = []
    for setting, found in comparison.settings.items():
        rows = []
        for metric in metrics:
            entry = found[metric]
            gap = entry.difference
            rows.append([metric, _figure(entry.first), _figure(entry.second), _gap(gap), f"{gap.p_value:.3f}"])
        tables.append(TextTable(setting, ["metric", first, second, "difference", "p"], rows))
    return tables


def _setting(report: EvaluationReport, setting: SettingResult, metrics: Sequence[str]) -> TextTable:
    rows = []
    for row in setting.rows:
        cells = [
            _interval(row.metrics[metric]) if metric in INTERVAL_METRICS else _figure(row.metrics[metric].mean)
            for metric in metrics
        ]
        ahead = _gap(row.ahead[COMPARED_METRIC]) if row.ahead else ""
        rows.append([row.scorer, *cells, ahead, f"{row.coverage:.1%}", f"{row.gini:.2f}"])
    rows.append(["chance", *(_figure(setting.chance[metric]) for metric in metrics), "", "", ""])
    length = setting.list_length
    header = [
        "scorer",
        *metrics,
        f"{report.model} ahead ({COMPARED_METRIC})",
        f"coverage@{length}",
        f"gini@{length}",
    ]
    return TextTable(f"{report.split} {report.part}: {setting.name}", header, rows, setting_notes(report, setting))


def _crossmodal(found: CrossModal) -> TextTable:
    names = [f"recall@{cutoff}" for cutoff in CUTOFFS]
    rows, notes = [], crossmodal_notes(found)
    for table in found.tables:
        for row in table.rows:
            cells = [_interval(row.recall[name]) for name in names]
            rows.append([table.direction, row.scorer, *cells, f"{row.median_rank:,.0f}"])
            if row.ahead:
                gap = row.ahead[CROSSMODAL_METRIC]
                notes.append(
                    f"{CROSSMODAL_METRIC}, {table.direction}: {table.rows[0].scorer} minus {row.scorer} "
                    f"{_gap(gap)}, p {gap.p_value:.3f}."
                )
        chance = [_figure(table.chance[name]) for name in names]
        rows.append([table.direction, "chance", *chance, f"{table.chance_median_rank:,.0f}"])
    header = ["direction", "scorer", *names, "median rank"]
    return TextTable("a caption finds its own picture", header, rows, notes)


def _figure(value: float, *, sign: str = "") -> str:
    """Return four digits without the zero before the point, which says nothing and costs a column its width."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def _interval(value: Estimate) -> str:
    return f"{_figure(value.mean)} [{_figure(value.low)}, {_figure(value.high)}]"


def _gap(value: Difference) -> str:
    mean, low, high = (_figure(figure, sign="+") for figure in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def crossmodal_notes(found: CrossModal) -> list[str]:
    """Return what a reader has to know before believing how captions and pictures find each other."""
    new = (
        "Training saw none of them."
        if found.unseen
        else f"Fewer than {MIN_UNSEEN} posts are new to training, so the model may have learnt from these."
    )
    return [
        f"{found.questions:,} posts are asked about: the caption alone of each against the pictures alone of "
        f"{found.candidates:,} (these same posts), and the other way round. {new}",
        "recall@k is the share of questions with a right answer among the first k. Posts with the very same caption or "
        "picture are equally right; of equal scores the right one comes last. Intervals resample what is asked with.",
        f"{FROZEN}: the encoders as they were before training, and a common space that a ridge regression learnt "
        f"from {found.others:,} other posts.",
    ]


def setting_notes(report: EvaluationReport, setting: SettingResult) -> list[str]:
    """Return what a reader has to know before believing a table."""
    notes = [
        f"{setting.cases:,} cases, {setting.targets:,} targets, {setting.candidates:,.0f} candidates on average"
        + (", only items that existed at the time" if setting.existing_only else "")
        + ".",
        f"HR ceiling {setting.ceiling:.4f}; for a model of ids alone {setting.id_ceiling:.4f}.",
    ]
    if setting is report.headline:
        notes.append(
            f"{report.cold_share:.1%} of the targets are cold (never in training); "
            f"{report.repeat_share:.1%} repeat an item of the history."
        )
    if setting.name == WARM_ITEMS:
        for metric in INTERVAL_METRICS:
            loss, alone = report.cold_cost[metric], setting.rows[0].metrics[metric].mean
            notes.append(
                f"{report.model}: cold posts among the candidates cost warm ones {_gap(loss)} {metric}, "
                f"{loss.mean / max(alone, 1e-12):.1%} of {_figure(alone)}."
            )
    if setting.filter_seen:
        notes.append(
            f"The history is filtered: {setting.dropped_targets:,} repeated targets and "
            f"{setting.dropped_cases:,} cases without another target are left out."
        )
    return notes
