"""One evaluation: every scorer through the same ranking, then tables, slices and knock-outs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmrec.errors import FeedError
from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.crossmodal import CrossModal
from mmrec.evaluation.knockout import ScorerFactory, knockout
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.ranking import CHUNK_ELEMENTS, CaseScorer, Ranks, Setting, rank_cases, rank_settings
from mmrec.evaluation.results import EvaluationReport
from mmrec.evaluation.settings import settings_of
from mmrec.evaluation.significance import BOOTSTRAP, Bootstrap
from mmrec.evaluation.slices import all_slicings, repeated_targets, training_counts
from mmrec.evaluation.tables import cold_cost, setting_tables, slice_tables
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Part, Split

MODEL = "model"
LIST_LENGTH = 10
LIGHT_METRICS = ("ndcg@10", "hr@10", "mrr@10", "recall@10")


def validation_values(
    scorer: CaseScorer,
    cases: Cases,
    histories: Histories,
    setting: Setting,
    *,
    first_seen: npt.NDArray[np.int64] | None = None,
    names: Sequence[str] = LIGHT_METRICS,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return a few metrics of every case under one setting, without intervals or baselines: the path of training.

    Args:
        scorer: what is measured.
        cases: the questions.
        histories: the feed's interactions.
        setting: what targets are ranked among.
        first_seen: shape (items,), of the catalogue; needed where the setting asks for existing items only.
        names: metrics such as ``ndcg@10``, at any cut-off.

    Returns:
        Name to shape (kept,), over the cases that have a target left.

    Raises:
        ArtifactError: a score is NaN.
    """
    ranks = rank_cases(scorer, cases, histories, setting, first_seen=first_seen, top_k=1)
    cutoffs = sorted({int(name.partition("@")[2]) for name in names})
    values = case_metrics(ranks.places, cutoffs=cutoffs)
    return {name: values[name] for name in names}


def evaluate(
    scorers: Mapping[str, CaseScorer],
    cases: Cases,
    catalogue: Catalogue,
    histories: Histories,
    split: Split,
    *,
    part: Part = "test",
    model: str = MODEL,
    knockouts: Mapping[str, ScorerFactory] | None = None,
    crossmodal: CrossModal | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> EvaluationReport:
    """Rank every case with every scorer and report.

    Args:
        scorers: name to scorer; ``model`` is the one the report is about, the others are what it is measured against.
        cases: the questions, as the scorers number them.
        knockouts: name to a factory of the model's scorer under that knock-out.
        crossmodal: how captions and pictures find each other, for the report.

    Raises:
        FeedError: no cases, or none with a target left under any setting.
        ArtifactError: a score is NaN.
    """

    def rank(scorer: CaseScorer, settings: Sequence[Setting]) -> dict[str, Ranks]:
        first_seen = catalogue.first_seen
        return rank_settings(
            scorer, cases, histories, settings, first_seen=first_seen, top_k=LIST_LENGTH, chunk_elements=chunk_elements
        )

    names = [model, *(name for name in scorers if name != model)]
    settings = settings_of(split, cases, histories)
    ranked = {name: rank(scorers[name], settings) for name in names}
    settings = [setting for setting in settings if len(ranked[model][setting.name].cases)]
    if not settings:
        raise FeedError("a case with a target", got="cases without any", where=f"split {split.name!r}")
    users = cases.user_rows
    counts = training_counts(split.train_events, histories, num_items=len(catalogue))
    headline = {name: found[settings[0].name] for name, found in ranked.items()}
    slicings = all_slicings(headline[model], cases, histories, catalogue, counts)
    losses = [
        knockout(
            name, headline[model], rank(factory(), settings[:1])[settings[0].name], users=users, bootstrap=bootstrap
        )
        for name, factory in (knockouts or {}).items()
    ]
    asked = headline[model].targets
    return EvaluationReport(
        model=model,
        part=part,
        split=split.name,
        split_kind=split.kind,
        feed_hash=catalogue.feed_hash,
        users=len(np.unique(users)),
        items=len(catalogue),
        cold_share=float((counts[asked] == 0).mean()),
        repeat_share=float(repeated_targets(headline[model], cases, histories).mean()),
        median_history=float(np.median(cases.histories(histories).lengths)),
        settings=setting_tables(settings, ranked, cases=cases, counts=counts, bootstrap=bootstrap),
        slices=slice_tables(slicings, headline, users=users, bootstrap=bootstrap),
        knockouts=losses,
        cold_cost=cold_cost(ranked[model], headline=settings[0].name, users=users, bootstrap=bootstrap),
        crossmodal=crossmodal,
        case_table=CaseTable.of(
            {setting.name: ranked[model][setting.name] for setting in settings},
            user_ids=histories.user_ids[users],
            item_ids=catalogue.item_ids,
        ),
        ranks=ranked[model],
    )
