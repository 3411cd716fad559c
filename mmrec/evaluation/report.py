"""An evaluation on disk: report.json, cases.parquet and report.html, one self-contained page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mmrec.evaluation.comparison import REPORT_JSON
from mmrec.evaluation.console import CROSSMODAL_METRIC, HEADLINE_METRICS, crossmodal_notes, setting_notes
from mmrec.evaluation.examples import ExampleUser
from mmrec.evaluation.metrics import CUTOFFS, NAMES
from mmrec.evaluation.plots import curves_plot, knockouts_plot, slices_plot
from mmrec.evaluation.results import EvaluationReport, ScorerResult
from mmrec.storage import atomic_file, write_json

REPORT_HTML = "report.html"
TEMPLATE = "report.html.j2"
THUMBNAIL = 160
PLOT_METRIC = "ndcg@10"


def write_report(
    report: EvaluationReport,
    examples: Sequence[ExampleUser],
    training_curves: Sequence[Mapping[str, object]],
    folder: Path,
    *,
    title: str = "mmrec evaluation",
) -> Path:
    """Write ``cases.parquet``, ``report.html`` and, last, ``report.json`` into ``folder``.

    Args:
        training_curves: records of metrics.jsonl: ``step``, ``loss``, validation metrics such as ``ndcg@10``.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report.case_table.save(folder)
    page = folder / REPORT_HTML
    with atomic_file(page) as partial:
        partial.write_text(render(report, examples, training_curves, title=title), encoding="utf-8")
    curves = [{name: _finite(value) for name, value in record.items()} for record in training_curves]
    write_json(folder / REPORT_JSON, report.to_dict() | {"training_curves": curves, "examples": _plain(examples)})
    return page


def render(
    report: EvaluationReport,
    examples: Sequence[ExampleUser],
    training_curves: Sequence[Mapping[str, object]],
    *,
    title: str = "mmrec evaluation",
) -> str:
    """Return the page: styles, plots and pictures inside, nothing loaded from elsewhere, every text escaped."""
    environment = Environment(
        loader=PackageLoader("mmrec.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    baseline = best_baseline(report)
    return environment.get_template(TEMPLATE).render(
        title=title,
        report=report,
        metrics=HEADLINE_METRICS,
        plot_metric=PLOT_METRIC,
        names=NAMES,
        cutoffs=CUTOFFS,
        baseline=baseline,
        notes={setting.name: setting_notes(report, setting) for setting in report.settings},
        best={setting.name: _best(setting.rows) for setting in report.settings},
        crossmodal_notes=crossmodal_notes(report.crossmodal) if report.crossmodal is not None else [],
        crossmodal_metric=CROSSMODAL_METRIC,
        curves=curves_plot(training_curves),
        slices=slices_plot(report.slices, model=report.model, baseline=baseline, metric=PLOT_METRIC),
        knockouts=knockouts_plot(report.knockouts, metric=PLOT_METRIC),
        examples=examples,
        picture=picture_url,
    )


def best_baseline(report: EvaluationReport) -> str | None:
    """Return the scorer, other than the model, with the best headline figure; None where there is none."""
    others = report.headline.rows[1:]
    return max(others, key=lambda row: row.metrics[PLOT_METRIC].mean).scorer if others else None


def picture_url(picture: npt.NDArray[np.uint8]) -> str:
    """Return a picture, shape (height, width, 3), as a JPEG data URL of at most ``THUMBNAIL`` pixels a side."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _best(rows: Sequence[ScorerResult]) -> dict[str, str]:
    """Return the scorer with the highest mean of each headline metric."""
    return {name: max(rows, key=lambda row: row.metrics[name].mean).scorer for name in HEADLINE_METRICS}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(examples: Sequence[ExampleUser]) -> list[dict[str, object]]:
    """Return the examples by id: what JSON keeps of them."""
    return [
        {
            "user_id": user.user_id,
            "history": [item.item_id for item in user.history],
            "recommended": [
                {"item_id": item.item_id, "score": item.score, "hit": item.hit} for item in user.recommended
            ],
            "chosen": [{"item_id": item.item_id, "rank": item.rank} for item in user.chosen],
        }
        for user in examples
    ]
