"""Audits and descriptions as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_tools.audit import AuditReport
from data_tools.describe import Bin, Description
from data_tools.findings import Finding
from data_tools.split_checks import PARTS
from data_tools.synthesize import SynthesisReport
from mmrec.console import format_cell, print_json, print_table, print_text
from mmrec.feed.splits import Split

BAR_WIDTH = 40
MOMENTS = ("first", "last")


def show_audit(report: AuditReport) -> None:
    """Print findings, then the figures of the feed and of every split."""
    print_table(f"{report.feed}", ["figure", "value"], figure_rows(report.figures))
    for name, figures in report.splits.items():
        print_table(f"split {name} ({figures['kind']})", ["figure", *_parts(figures)], _part_rows(figures))
    rows = [[finding.severity, finding.where, finding.code, _sentence(finding)] for finding in report.findings]
    if rows:
        print_table("findings", ["severity", "where", "code", "what"], rows)
    verdict = "figures made on this feed would be wrong: mend the errors" if report.failed else "no errors"
    print_text(f"audit: {verdict}")


def show_description(description: Description) -> None:
    """Print what a feed holds: manifest, figures, refusals, histograms, splits, examples."""
    rows = figure_rows(description.figures)
    rows += figure_rows({"first interaction": description.first, "last interaction": description.last})
    rows += figure_rows({f"interactions {name!r}": count for name, count in description.events.items()})
    print_table(f"{description.feed}", ["figure", "value"], rows)
    if description.report:
        print_table("prepared from", ["row or picture", "count"], report_rows(description.report))
    for title, bars in description.histograms.items():
        if bars:
            print_table(title, ["range", "count", ""], histogram_rows(bars))
    if description.splits:
        show_splits(description.splits)
    posts = [[p.item_id, p.interactions, ", ".join(p.pictures), p.caption] for p in description.examples]
    print_table("the posts chosen most", ["item_id", "interactions", "pictures", "caption"], posts)
    if description.history:
        user, *captions = description.history
        print_table(f"the last posts of user {user}", ["post"], [[caption] for caption in captions])


def show_splits(splits: Sequence[Mapping[str, object]]) -> None:
    """Print kind, sizes and choices of splits, a row each."""
    names = ["name", "kind", "train_events", "validation_cases", "test_cases"]
    names += [name for name in ("warm_cases", "calibration_cases") if any(name in about for about in splits)]
    columns = [*(name.replace("_", " ") for name in names), "choices"]
    print_table("splits", columns, [[*(about.get(name) for name in names), _choices(about)] for about in splits])


def show_split(split: Split, *, as_json: bool) -> None:
    """Print what a split that was just made holds."""
    about: dict[str, object] = {
        "name": split.name,
        "kind": split.kind,
        "train_events": int(split.train_events.sum()),
        **{f"{part}_cases": len(cases) for part, cases in split.parts.items()},
        "parameters": dict(split.parameters),
    }
    if as_json:
        print_json(about)
    else:
        show_splits([about])


def show_synthesis(report: SynthesisReport, *, as_json: bool) -> None:
    """Print what was made up, and the best possible figures."""
    sizes = {"posts": report.posts, "clicks": report.clicks, "pictures": report.pictures}
    if as_json:
        print_json({"feed": str(report.feed), "truth": str(report.truth), **sizes, "figures": report.figures})
        return
    print_table(f"{report.feed}", ["figure", "value"], figure_rows({**sizes, "truth": str(report.truth)}))
    metrics = list(dict.fromkeys(metric for figures in report.figures.values() for metric in figures))
    rows = [[name, *(figures.get(metric) for metric in metrics)] for name, figures in report.figures.items()]
    print_table("the best a ranker can reach at last clicks", ["which knows", *metrics], rows)


def report_rows(report: Mapping[str, object]) -> list[list[object]]:
    """Return the counts of a preparation's report: what was given, kept and refused, each reason on its own row."""
    rows: list[list[object]] = []
    for key, value in _counts(report).items():
        if isinstance(value, Mapping) and "given" in value:
            refused = value.get("refused", {})
            rows += figure_rows({f"{key}: {name}": count for name, count in value.items() if name != "refused"})
            rows += figure_rows({f"{key}: refused, {reason}": count for reason, count in refused.items()})
        else:
            rows += figure_rows({key: value})
    return rows


def figure_rows(figures: Mapping[str, object], prefix: str = "") -> list[list[object]]:
    """Flatten nested figures to rows of name and value; a group of numbers stays on one row."""
    rows: list[list[object]] = []
    for key, value in figures.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            rows += figure_rows(value, f"{name}: ")
        elif isinstance(value, Mapping):
            rows += [[name, ", ".join(f"{k} {format_cell(v)}" for k, v in value.items())]] if value else []
        elif value is not None:
            rows.append([name, format_cell(value)])
    return rows


def histogram_rows(bars: tuple[Bin, ...]) -> list[list[object]]:
    """Return range, count and a bar of blocks for every bin."""
    most = max(bar.count for bar in bars)
    return [
        [
            f"{bar.low:,}" if bar.low == bar.high else f"{bar.low:,} to {bar.high:,}",
            bar.count,
            "█" * -(-bar.count * BAR_WIDTH // most),
        ]
        for bar in bars
    ]


def _parts(figures: Mapping[str, object]) -> list[str]:
    return [part for part in PARTS if part in figures or part in {"validation", "test"}]


def _part_rows(figures: Mapping[str, object]) -> list[list[object]]:
    """Return a split's figures side by side: one column a part."""
    whole = {key: value for key, value in figures.items() if key not in PARTS and key != "kind"}
    columns = _parts(figures)
    rows: list[list[object]] = [[name, *[value] * len(columns)] for name, value in figure_rows(whole)]
    parts = [{str(name): value for name, value in figure_rows(_flat(figures.get(part)))} for part in columns]
    names = dict.fromkeys(name for part in parts for name in part)
    return rows + [[name, *(part.get(name, "") for part in parts)] for name in names]


def _flat(figures: object) -> dict[str, object]:
    """Lift the ceilings, each to a row of its own."""
    flat: dict[str, object] = {}
    for key, value in figures.items() if isinstance(figures, Mapping) else ():
        if isinstance(value, Mapping):
            flat |= {f"{key}: {inner}": number for inner, number in value.items()}
        else:
            flat[key] = value
    return flat


def _counts(report: Mapping[str, object]) -> dict[str, object]:
    """Return the parts of a report that are counts; listings and moments left out."""
    counts: dict[str, object] = {}
    for key, value in report.items():
        if isinstance(value, int) and not isinstance(value, bool) and key not in MOMENTS:
            counts[key] = value
        elif isinstance(value, Mapping) and (inner := _counts(value)):
            counts[key] = inner
    return counts


def _choices(split: Mapping[str, object]) -> str:
    parameters = split.get("parameters")
    chosen = parameters.items() if isinstance(parameters, Mapping) else ()
    return ", ".join(f"{key} {value}" for key, value in chosen if value is not None)


def _sentence(finding: Finding) -> str:
    return f"{finding.message} ({', '.join(finding.examples)})" if finding.examples else finding.message
