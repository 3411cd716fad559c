"""Look for what would make figures on a prepared feed wrong or hard to read: leaks, repeats, ceilings, gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.findings import MAX_EXAMPLES, SEVERITIES, Finding
from data_tools.split_checks import check_split, gini
from data_tools.twins import Twins, content_findings
from mmrec.feed.catalogue import NO_CAPTION, Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import SPLITS, Split
from mmrec.storage import read_json

PERCENTILES = (1, 25, 50, 75, 95, 99)
Progress = Callable[[int, int], None]
"""Called with captions and pictures read, and all there are."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit saw.

    Args:
        feed: the prepared feed.
        findings: errors first, then warnings and notes.
        figures: numbers of the whole feed.
        splits: numbers of every split, by name.
    """

    feed: Path
    findings: tuple[Finding, ...]
    figures: dict[str, object]
    splits: dict[str, dict[str, object]]

    @property
    def failed(self) -> bool:
        """Whether anything makes the feed's figures wrong; the command line then exits with 1."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {
            "feed": str(self.feed),
            "failed": self.failed,
            "findings": [finding.to_json() for finding in self.findings],
            "figures": self.figures,
            "splits": self.splits,
        }


def audit(folder: Path, *, splits: Sequence[str] | None = None, progress: Progress | None = None) -> AuditReport:
    """Audit a prepared feed and its splits.

    Args:
        folder: the prepared feed.
        splits: names of the splits to look at; None takes all.
        progress: told of captions and pictures compared.

    Raises:
        FeedError: not a prepared feed, or a split it does not have.
        ArtifactError: a file is missing or damaged.
    """
    catalogue, histories = Catalogue.load(folder), Histories.load(folder)
    broken = _order_findings(histories)
    twins = Twins.of(catalogue, _counter(len(catalogue.captions) + len(catalogue.pictures), progress))
    findings = [*broken, *_event_findings(histories), *content_findings(catalogue, twins)]
    figures: dict[str, dict[str, object]] = {}
    for name in split_names(folder) if splits is None else splits:
        split = Split.load(folder, name)
        stale = _stale_findings(split, catalogue, histories)
        if stale or broken:
            findings += stale
            continue
        figures[name], found = check_split(catalogue, histories, split, twins)
        findings += found
    if not (folder / SPLITS).is_dir():
        findings.append(Finding("warning", "no-split", "the feed has no split: run mmrec-data split", "feed", 0))
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return AuditReport(folder, tuple(ordered), feed_figures(catalogue, histories), figures)


def split_names(folder: Path) -> list[str]:
    """Return the names of the splits of a prepared feed, sorted."""
    return sorted(path.parent.name for path in (folder / SPLITS).glob("*/split.json"))


def feed_figures(catalogue: Catalogue, histories: Histories) -> dict[str, object]:
    """Return size, concentration, coverage and caption lengths of a feed, ready for JSON."""
    items, counts = len(catalogue), np.bincount(histories.item_rows, minlength=len(catalogue))
    has_caption, has_picture = catalogue.caption_rows != NO_CAPTION, catalogue.item_images.lengths > 0
    lengths = catalogue.captions.text.lengths[catalogue.caption_rows[has_caption]]
    per_user = np.diff(histories.offsets)
    top = np.sort(counts)[::-1][: max(1, items // 100)]
    return {
        "users": histories.num_users,
        "items": items,
        "interactions": histories.num_events,
        "history_length": percentiles(per_user),
        "gini": gini(counts),
        "share_of_top_percent": float(top.sum() / max(1, counts.sum())),
        "items_never_chosen": int((counts == 0).sum()),
        "simultaneous_share": float(_simultaneous(histories)),
        "caption_share": float(has_caption.mean()),
        "picture_share": float(has_picture.mean()),
        "both_share": float((has_caption & has_picture).mean()),
        "neither_share": float((~has_caption & ~has_picture).mean()),
        "distinct_captions": len(catalogue.captions),
        "distinct_pictures": len(catalogue.pictures),
        "caption_bytes": percentiles(lengths),
        "pictures_per_item": percentiles(catalogue.item_images.lengths),
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Return mean, extremes and some percentiles of numbers; empty where there are none."""
    if not len(values):
        return {}
    named = dict(zip((f"p{p}" for p in PERCENTILES), np.percentile(values, PERCENTILES).tolist(), strict=True))
    return {"mean": float(values.mean()), "min": float(values.min()), **named, "max": float(values.max())}


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    return advance


def _same_user(histories: Histories) -> np.ndarray:
    return np.asarray(histories.user_rows[1:] == histories.user_rows[:-1])


def _simultaneous(histories: Histories) -> float:
    """Return the share of events that share their instant with another event of the user."""
    tied = _same_user(histories) & (np.diff(histories.timestamps) == 0)
    beside = np.append(tied, False) | np.append(False, tied)
    return float(beside[: histories.num_events].mean()) if histories.num_events else 0.0


def _order_findings(histories: Histories) -> list[Finding]:
    late = np.flatnonzero(_same_user(histories) & (np.diff(histories.timestamps) < 0))
    if not len(late):
        return []
    users = np.unique(histories.user_rows[late])
    ids = tuple(str(user) for user in histories.user_ids[users[:MAX_EXAMPLES]])
    message = f"histories of {len(users):,} users are not in the order of time; splits were not looked at"
    return [Finding("error", "unsorted-events", message, "feed", len(late), ids)]


def _event_findings(histories: Histories) -> list[Finding]:
    findings = []
    if share := _simultaneous(histories):
        count = round(share * histories.num_events)
        message = f"{share:.1%} of the interactions share their time with another of the user: they have no order"
        findings.append(Finding("note", "simultaneous", message, "feed", count))
    codes = np.zeros(histories.num_events, np.int16) if histories.event_codes is None else histories.event_codes
    columns = np.stack([codes, histories.item_rows, histories.timestamps, histories.user_rows])
    columns = columns[:, np.lexsort(columns)]
    if double := int(np.all(columns[:, 1:] == columns[:, :-1], axis=0).sum()):
        message = f"{double:,} interactions are exact duplicates of another"
        findings.append(Finding("warning", "duplicate-events", message, "feed", double))
    return findings


def _stale_findings(split: Split, catalogue: Catalogue, histories: Histories) -> list[Finding]:
    """Return an error where a split was made for other arrays than the feed holds."""
    about = read_json(catalogue.folder / SPLITS / split.name / "split.json")
    sizes = (len(split.train_events), len(split.item_roles))
    if sizes == (histories.num_events, len(catalogue)) and about.get("feed_hash") == catalogue.feed_hash:
        return []
    message = "the split was made for another version of the feed: make it again with mmrec-data split"
    return [Finding("error", "stale-split", message, split.name, 1)]
