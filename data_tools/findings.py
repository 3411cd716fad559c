"""What an audit finds: a severity, a code to filter on, and a sentence to act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One observation of an audit.

    Args:
        severity: error: figures of this feed would be wrong; warning: they need a word of caution; note: good to know.
        code: short name, the same for every feed.
        message: one sentence with the numbers in it.
        where: the split, or "feed".
        count: how many rows, cases or items it concerns.
        examples: a few ids.
    """

    severity: Severity
    code: str
    message: str
    where: str
    count: int
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return {
            "severity": self.severity,
            "code": self.code,
            "where": self.where,
            "count": self.count,
            "message": self.message,
            "examples": list(self.examples),
        }
