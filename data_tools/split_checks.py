"""Check one split of a prepared feed: leaks, ceilings, and what a figure made on it will mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools.findings import MAX_EXAMPLES, Finding, Severity
from data_tools.twins import Mask, Rows, Twins
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import WARM, Part, Split
from mmrec.storage import RaggedArray

PARTS: tuple[Part, ...] = ("validation", "test", "warm", "calibration")
FEW_CASES = 100
TWIN_SHARE = 0.05
FUTURE_SHARE = 0.01


@dataclass(frozen=True)
class Questions:
    """The cases of one part, spelled out.

    Args:
        part: validation or test.
        history: event positions of every case's history.
        targets: event positions of every case's targets.
        users: shape (cases,).
        times: shape (cases,), time of each question.
        target_items: shape (targets,).
        target_cases: shape (targets,).
        repeated: shape (targets,), whether the item is in the case's history.
    """

    part: Part
    history: RaggedArray
    targets: RaggedArray
    users: Rows
    times: Rows
    target_items: Rows
    target_cases: Rows
    repeated: Mask

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of(cls, split: Split, part: Part, histories: Histories, *, num_items: int) -> Questions:
        """Gather histories and targets of a part of a split."""
        cases = split.part(part)
        history, targets = cases.histories(histories), cases.targets(histories)
        owners = np.repeat(np.arange(len(cases)), targets.lengths)
        items = np.asarray(histories.item_rows[targets.values], dtype=np.int64)
        seen = np.repeat(np.arange(len(cases)), history.lengths) * num_items + histories.item_rows[history.values]
        repeated = np.isin(owners * num_items + items, seen)
        return cls(part, history, targets, cases.user_rows, cases.times(histories), items, owners, repeated)

    def reachable(self, allowed: Mask) -> float:
        """Return the share of cases of which one target at least is ``allowed``, shape (targets,)."""
        hit = np.zeros(len(self), dtype=np.bool_)
        hit[self.target_cases[allowed]] = True
        return float(hit.mean())


def check_split(
    catalogue: Catalogue, histories: Histories, split: Split, twins: Twins
) -> tuple[dict[str, object], list[Finding]]:
    """Return the figures of a split, ready for JSON, and what is wrong or remarkable about it."""
    counts = np.bincount(histories.item_rows[split.train_events], minlength=len(catalogue))
    trained = counts > 0
    findings = _training_findings(split, histories)
    figures: dict[str, object] = {
        "kind": split.kind,
        "existing_only": split.existing_only,
        "train_events": int(split.train_events.sum()),
        "trained_items": int(trained.sum()),
        "gini_of_training": gini(counts),
    }
    for part in split.parts:
        if not len(split.part(part)):
            severity: Severity = "warning" if part == "validation" else "error"
            message = f"the split has no {part} cases"
            findings.append(Finding(severity, f"no-{part}", message, split.name, 0))
            continue
        questions = Questions.of(split, part, histories, num_items=len(catalogue))
        figures[part] = _part_figures(questions, catalogue, histories, trained=trained)
        findings += _leak_findings(questions, split, histories, catalogue)
        findings += _caution_findings(questions, split, histories, catalogue, trained=trained, twins=twins)
    return figures, findings


def gini(counts: npt.NDArray[np.int64]) -> float:
    """Return the Gini coefficient of counts: 0 when all are equal, near 1 when one holds everything."""
    total = counts.sum()
    if total == 0:
        return 0.0
    ranks = np.arange(1, len(counts) + 1)
    return float(2 * (ranks * np.sort(counts)).sum() / (len(counts) * total) - (len(counts) + 1) / len(counts))


def _part_figures(
    questions: Questions, catalogue: Catalogue, histories: Histories, *, trained: Mask
) -> dict[str, object]:
    items, new = questions.target_items, ~questions.repeated
    exists = np.asarray(catalogue.first_seen[items] <= questions.times[questions.target_cases])
    ceilings = {
        "ids_only": questions.reachable(trained[items]),
        "seen_filtered": questions.reachable(new),
        "ids_only_seen_filtered": questions.reachable(trained[items] & new),
    }
    if histories.has_time:
        ceilings["existing_only"] = questions.reachable(exists)
    return {
        "cases": len(questions),
        "targets": len(items),
        "history_length_median": float(np.median(questions.history.lengths)),
        "cold_target_share": float(1 - trained[items].mean()),
        "repeat_share": float(questions.repeated.mean()),
        "hit_rate_ceilings": ceilings,
        "not_yet_existing_candidate_share": _future_share(questions, catalogue) if histories.has_time else None,
    }


def _future_share(questions: Questions, catalogue: Catalogue) -> float:
    """Return the mean share of the catalogue that first appears after a question."""
    existing = np.searchsorted(np.sort(catalogue.first_seen), questions.times, side="right")
    return float(1 - existing.mean() / len(catalogue))


def _training_findings(split: Split, histories: Histories) -> list[Finding]:
    findings = []
    cold = split.train_events & (split.item_roles[histories.item_rows] != WARM)
    if cold.any():
        message = f"{cold.sum():,} training events are about cold items"
        findings.append(Finding("error", "cold-in-train", message, split.name, int(cold.sum())))
    start = split.parameters.get("validation_from")
    if split.kind == "global_time" and isinstance(start, int):
        late = split.train_events & (np.asarray(histories.timestamps) >= start)
        if late.any():
            message = f"{late.sum():,} training events are not before the validation window"
            findings.append(Finding("error", "train-after-test", message, split.name, int(late.sum())))
    return findings


def _leak_findings(questions: Questions, split: Split, histories: Histories, catalogue: Catalogue) -> list[Finding]:
    instants = histories.instants(days=split.kind == "last_day")
    leaked = split.train_events[questions.targets.values]
    last = np.append(questions.history.values, 0)[np.maximum(questions.history.offsets[1:] - 1, 0)]
    first = questions.targets.values[questions.targets.offsets[:-1]]
    filled = questions.history.lengths > 0
    sees = filled & (instants[last] >= instants[first])
    future = split.existing_only & (
        catalogue.first_seen[questions.target_items] > questions.times[questions.target_cases]
    )
    checks: list[tuple[str, str, Mask, Rows]] = [
        ("target-in-train", "targets are trained on", leaked, questions.users[questions.target_cases]),
        ("history-sees-target", "histories reach into their target's instant", sees, questions.users),
        ("empty-history", "cases have no history", ~filled, questions.users),
        ("future-target", "targets are not candidates yet", future, questions.users[questions.target_cases]),
    ]
    findings = []
    for code, what, bad, users in checks:
        if count := int(bad.sum()):
            ids = tuple(str(user) for user in histories.user_ids[users[bad][:MAX_EXAMPLES]])
            message = f"{count:,} of {len(bad):,} {questions.part} {what}"
            findings.append(Finding("error", code, message, split.name, count, ids))
    return findings


def _caution_findings(
    questions: Questions, split: Split, histories: Histories, catalogue: Catalogue, *, trained: Mask, twins: Twins
) -> list[Finding]:
    findings = []
    if len(questions) < FEW_CASES:
        message = f"only {len(questions)} {questions.part} cases: intervals will be wide"
        findings.append(Finding("warning", "few-cases", message, split.name, len(questions)))
    if repeats := int(questions.repeated.sum()):
        share = repeats / len(questions.repeated)
        message = f"{share:.1%} of the {questions.part} targets repeat an item of the history: filtering seen items drops them"
        findings.append(Finding("note", "repeats", message, split.name, repeats))
    future = _future_share(questions, catalogue) if histories.has_time and not split.existing_only else 0.0
    if future > FUTURE_SHARE:
        message = f"{future:.1%} of the candidates first appear after the {questions.part} question: existing_only keeps them out"
        findings.append(Finding("warning", "future-candidates", message, split.name, round(future * len(catalogue))))
    asked = np.zeros(len(catalogue), dtype=np.bool_)
    asked[questions.target_items] = True
    cold = asked & ~trained
    words = ("the caption of", "a picture of", "all content of")
    for like, what in zip(twins.like(trained), words, strict=True):
        if count := int((like & cold).sum()):
            share = count / int(cold.sum())
            whole = what == words[2]
            code = "cold-twins" if whole else "cold-shared-caption" if what == words[0] else "cold-shared-picture"
            message = (
                f"{count:,} cold {questions.part} items ({share:.1%}) repeat {what} a trained one, exactly or nearly"
            )
            severity: Severity = "warning" if whole and share > TWIN_SHARE else "note"
            ids = tuple(str(item) for item in catalogue.item_ids[np.flatnonzero(like & cold)[:MAX_EXAMPLES]])
            findings.append(Finding(severity, code, message, split.name, count, ids))
    return findings
