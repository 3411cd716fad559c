"""Files of settings: a mapping in YAML, and what is said of one that is not valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from mmrec.errors import ConfigError, near_names

_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})


def read_settings(path: Path) -> dict[str, object]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: the file is absent, not YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("a config file", got="no file", where=str(path), fix="See configs/ for examples.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("a YAML file", got=str(error), where=str(path)) from error
    if not isinstance(values, dict):
        raise ConfigError("a mapping of settings", got=type(values).__name__, where=str(path))
    return values


def settings_error(
    error: ValidationError, *, known: Callable[[Sequence[str | int]], Sequence[str]], where: str
) -> ConfigError:
    """Return what the user is told of settings that are not valid: every wrong key, and names near to unknown ones.

    Args:
        error: what validation found.
        known: names that would have been right beside the last part of a path.
        where: name of the source.
    """
    problems = []
    for entry in error.errors():
        path = ".".join(str(part) for part in entry["loc"])
        if entry["type"] in _UNKNOWN:
            hint = near_names(str(entry["loc"][-1]), known(entry["loc"]))
            problems.append(f"unknown key {path!r} ({hint})")
        else:
            problems.append(f"{path or 'config'}: {entry['msg']} (got {entry['input']!r:.80})")
    return ConfigError("a valid configuration", got="; ".join(problems), where=where, fix="Correct the named keys.")
