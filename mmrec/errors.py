"""Errors a user can act on.

Every message answers four questions in this order: what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmrecError(ValueError):
    """Base of all errors whose cause is the user's input and whose message says how to mend it.

    Args:
        expected: what the code needed, as a noun phrase.
        got: what it found instead.
        where: file, row, config key or argument.
        fix: one imperative sentence.
    """

    def __init__(self, expected: str, *, got: str = "", where: str = "", fix: str = "") -> None:
        self.expected, self.got, self.where, self.fix = expected, got, where, fix
        lines = [f"expected {expected}"]
        if got:
            lines.append(f"got {got}")
        if where:
            lines.append(f"in {where}")
        message = ", ".join(lines)
        super().__init__(f"{message}. {fix}" if fix else message)


class FeedError(MmrecError):
    """A raw or prepared feed that cannot be used as it is."""


class ConfigError(MmrecError):
    """A config key, value or combination that cannot be used."""


class ArtifactError(MmrecError):
    """A run, checkpoint, cache or export that is missing, damaged or made by something else."""


class RequestError(MmrecError):
    """A scoring, recommendation or search request that cannot be answered."""


class MissingExtraError(MmrecError, ImportError):
    """An optional library that is not installed.

    Args:
        library: the import name that failed.
        extra: the extra of this package that brings it.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"the optional library {library!r}",
            got="an environment without it",
            fix=f"Install it with: pip install 'mmrec[{extra}]'",
        )


def near_names(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"did you mean 'epochs'? known: batch_size, epochs"``."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{guess}known: {', '.join(names)}"
