"""Ranks to tables: means with intervals, paired differences, ceilings, chance, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.metrics import (
    Places,
    case_metrics,
    coverage,
    gini,
    hr_ceiling,
    metric_names,
    recommendation_counts,
)
from mmrec.evaluation.ranking import Ranks, Setting, pool_mask
from mmrec.evaluation.results import ScorerResult, SettingResult, Slice, SliceGroup
from mmrec.evaluation.settings import WARM_ITEMS
from mmrec.evaluation.significance import BOOTSTRAP, Bootstrap, Difference, difference, differences, estimate
from mmrec.evaluation.slices import Slicing
from mmrec.feed.splits import Cases

SLICE_METRICS = ("hr@10", "ndcg@10")
SLICE_CUTOFF = 10

Columns = Mapping[str, npt.NDArray[np.float64]]


def setting_tables(
    settings: Sequence[Setting],
    ranked: Mapping[str, Mapping[str, Ranks]],
    *,
    cases: Cases,
    counts: npt.NDArray[np.int64],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> list[SettingResult]:
    """Make the tables of several settings from scorer to setting to ranks; see :func:`setting_table`."""
    return [
        setting_table(
            setting,
            {scorer: found[setting.name] for scorer, found in ranked.items()},
            pool=pool_mask(setting, cases),
            counts=counts,
            users=cases.user_rows,
            bootstrap=bootstrap,
        )
        for setting in settings
    ]


def setting_table(
    setting: Setting,
    ranked: Mapping[str, Ranks],
    *,
    pool: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
    users: npt.NDArray[np.int64],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> SettingResult:
    """Make the table of one setting.

    Args:
        ranked: scorer to ranks, the model first, all of the same cases.
        pool: shape (items,), the setting's candidates before anything that depends on the case.
        counts: shape (items,), training events.
        users: shape (cases,), of all cases, those without targets among them.
    """
    first = next(iter(ranked.values()))
    names = metric_names()
    values = np.stack([_matrix(case_metrics(found.places)) for found in ranked.values()], axis=1)
    draws = bootstrap.means(values.reshape(len(values), -1), users[first.cases])
    rows = _rows(ranked, names, values.mean(axis=0), draws.reshape(len(draws), *values.shape[1:]), pool)
    return SettingResult(
        name=setting.name,
        pool=setting.pool,
        filter_seen=setting.filter_seen,
        existing_only=setting.existing_only,
        cases=len(first.cases),
        dropped_cases=first.dropped_cases,
        targets=len(first.targets),
        dropped_targets=first.dropped_targets,
        candidates=float(first.num_candidates.mean()),
        ceiling=hr_ceiling(first.places),
        id_ceiling=hr_ceiling(first.places, counts[first.targets] > 0),
        chance=chance(first),
        list_length=first.top_items.shape[1],
        rows=rows,
    )


def cold_cost(
    ranked: Mapping[str, Ranks], *, headline: str, users: npt.NDArray[np.int64], bootstrap: Bootstrap = BOOTSTRAP
) -> dict[str, Difference]:
    """Return what candidates that training never saw cost targets that it did: metric to the paired loss.

    Args:
        ranked: setting to the model's ranks; empty is returned where warm targets were not ranked among themselves.
        headline: the setting with the cold candidates.
        users: shape (cases,), of all cases.
    """
    if WARM_ITEMS not in ranked:
        return {}
    alone, mixed = ranked[WARM_ITEMS], ranked[headline]
    return differences(case_metrics(alone.places), case_metrics(mixed.places), users[alone.cases], bootstrap=bootstrap)


def _matrix(metrics: Columns) -> npt.NDArray[np.float64]:
    return np.stack(list(metrics.values()), axis=1)


def _rows(
    ranked: Mapping[str, Ranks],
    names: Sequence[str],
    means: npt.NDArray[np.float64],
    draws: npt.NDArray[np.float64],
    pool: npt.NDArray[np.bool_],
) -> list[ScorerResult]:
    """One row a scorer from ``means`` (scorers, metrics) and ``draws`` (resamples, scorers, metrics)."""
    rows = []
    for at, (scorer, found) in enumerate(ranked.items()):
        shown = recommendation_counts(found.top_items, num_items=len(pool))[pool]
        expected = case_metrics(found.places, ties="expected")
        gaps, gap_draws = means[0] - means[at], draws[:, 0] - draws[:, at]
        rows.append(
            ScorerResult(
                scorer=scorer,
                metrics={name: estimate(float(means[at, i]), draws[:, at, i]) for i, name in enumerate(names)},
                expected={name: float(column.mean()) for name, column in expected.items()},
                ahead={name: difference(float(gaps[i]), gap_draws[:, i]) for i, name in enumerate(names)} if at else {},
                coverage=coverage(shown),
                gini=gini(shown),
            )
        )
    return rows


def chance(ranks: Ranks) -> dict[str, float]:
    """Return what a random order of each case's candidates gets: every candidate is tied with every other."""
    others = np.repeat(ranks.num_candidates, np.diff(ranks.places.offsets)) - 1
    reachable = ranks.places.reachable
    level = Places(ranks.places.offsets, np.where(reachable, 0, ranks.places.above), np.where(reachable, others, 0))
    return {name: float(column.mean()) for name, column in case_metrics(level, ties="expected").items()}


def slice_table(
    slicing: Slicing,
    ranked: Mapping[str, Ranks],
    *,
    users: npt.NDArray[np.int64],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Slice:
    """Make the figures of every group of a slicing that has a target.

    A group's figure is over the cases with a target in it, with those targets alone as targets; the case's other
    targets stay candidates.

    Args:
        users: shape (cases,), of all cases.
    """
    groups = []
    for code, name in enumerate(slicing.groups):
        kept = slicing.codes == code
        if not kept.any():
            continue
        columns: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
        owners = np.zeros(0, np.int64)
        for scorer, found in ranked.items():
            places, cases = found.places.only(kept)
            owners = users[found.cases[cases]]
            values = case_metrics(places, cutoffs=[SLICE_CUTOFF])
            columns |= {(scorer, metric): values[metric] for metric in SLICE_METRICS}
        draws = bootstrap.means(np.stack(list(columns.values()), axis=1), owners)
        scores = {
            scorer: {
                metric: estimate(float(column.mean()), draws[:, i])
                for i, ((owner, metric), column) in enumerate(columns.items())
                if owner == scorer
            }
            for scorer in ranked
        }
        groups.append(SliceGroup(name, len(owners), scores))
    return Slice(slicing.name, groups)


def slice_tables(
    slicings: Sequence[Slicing],
    ranked: Mapping[str, Ranks],
    *,
    users: npt.NDArray[np.int64],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> list[Slice]:
    """Make the figures of several slicings; see :func:`slice_table`."""
    return [slice_table(slicing, ranked, users=users, bootstrap=bootstrap) for slicing in slicings]
