"""Plots of the report as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mmrec.evaluation.knockout import Knockout
from mmrec.evaluation.results import Slice

# Colours that nothing else in a plot has; the page's style sheet decides what becomes of them.
INK, MUTED, LINE, ACCENT, SECOND, PAPER = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", SECOND: "second", PAPER: "card"}
_WIDTH = 9.2
_ROW = 0.3
_PANELS = 3

Record = Mapping[str, object]


def curves_plot(records: Sequence[Record]) -> str:
    """Draw the training loss and the validation metrics over the steps, one panel each; empty without records."""
    names = sorted({key for record in records for key in record if "@" in key})
    panels = [(name, _series(records, name)) for name in ["loss", *names]]
    panels = [(name, points) for name, points in panels if points]
    if not panels:
        return ""
    lines = math.ceil(len(panels) / _PANELS)
    figure = Figure(figsize=(_WIDTH, 2.3 * lines), layout="constrained")
    for position, (name, points) in enumerate(panels):
        axes = figure.add_subplot(lines, min(_PANELS, len(panels)), position + 1)
        steps, values = zip(*points, strict=True)
        colour = SECOND if name == "loss" else ACCENT
        axes.plot(steps, values, color=colour, linewidth=1.8, marker="o" if len(points) < 40 else "", markersize=3.5)
        axes.set_title(name, color=INK, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("step", color=MUTED, fontsize=8.5)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        _bare(axes)
    return _svg(figure, "curves")


def slices_plot(slices: Sequence[Slice], *, model: str, baseline: str | None, metric: str) -> str:
    """Draw a metric of every slice group as a point with its interval, the model above one baseline."""
    if not slices:
        return ""
    figure = Figure(
        figsize=(_WIDTH, 0.5 + _ROW * sum(len(entry.groups) + 1.6 for entry in slices)), layout="constrained"
    )
    axes = figure.add_subplot()
    height, ticks, labels = 0.0, [], []
    for entry in slices:
        where = axes.get_yaxis_transform()
        axes.text(0.005, height, entry.name, color=INK, fontsize=10, fontweight="bold", va="center", transform=where)
        for group in entry.groups:
            height += 1
            ticks.append(height)
            labels.append(f"{group.name} · {group.cases:,} cases")
            if baseline is not None:
                value = group.scores[baseline][metric]
                _interval(axes, value.low, value.mean, value.high, height + 0.17, SECOND)
            value = group.scores[model][metric]
            _interval(axes, value.low, value.mean, value.high, height - 0.17 * (baseline is not None), ACCENT)
        height += 1.6
    axes.set_yticks(ticks, labels)
    axes.set_ylim(height - 0.9, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    _bare(axes)
    return _svg(figure, "slices")


def knockouts_plot(knockouts: Sequence[Knockout], *, metric: str) -> str:
    """Draw what each knock-out costs as a bar with its interval; empty without knock-outs."""
    if not knockouts:
        return ""
    figure = Figure(figsize=(_WIDTH, 0.55 + 0.45 * len(knockouts)), layout="constrained")
    axes = figure.add_subplot()
    for position, entry in enumerate(knockouts):
        loss = entry.losses[metric]
        colour = ACCENT if loss.low > 0 else MUTED
        axes.barh(position, loss.mean, height=0.5, color=colour, alpha=0.35)
        _interval(axes, loss.low, loss.mean, loss.high, float(position), colour)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(knockouts)), [entry.name.replace("_", " ") for entry in knockouts])
    axes.set_ylim(len(knockouts) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    _bare(axes)
    return _svg(figure, "knockouts")


def _series(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    points = []
    for number, record in enumerate(records):
        value, step = record.get(name), record.get("step", number)
        if isinstance(value, int | float) and isinstance(step, int | float) and math.isfinite(value):
            points.append((float(step), float(value)))
    return points


def _interval(axes: Axes, low: float, mean: float, high: float, y: float, colour: str) -> None:
    axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot([mean], [y], "o", color=colour, markersize=6, markeredgecolor=PAPER, markeredgewidth=1)


def _bare(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element; ids carry ``name`` so that several plots share a page."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"(font: (?:[\w.]+ )*?[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    for colour, variable in _NAMES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)
