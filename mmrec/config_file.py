"""Configurations as files: YAML that may extend another, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml

from mmrec.config import Config, validate
from mmrec.errors import ConfigError
from mmrec.settings_files import read_settings

EXTENDS = "extends"
"""Key of the file whose settings a file starts from."""


def _override(values: dict[str, object], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator:
        raise ConfigError("KEY=VALUE", got=repr(assignment), where="--set", fix="For example: --set train.epochs=3")
    *parents, last = key.strip().split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError("a group of settings", got=repr(child), where=f"--set {assignment}")
        node = cast("dict[str, object]", child)
    if text.strip() in {"", "none"}:
        node.pop(last, None)
    else:
        node[last] = yaml.safe_load(text)


def load_config(path: Path, *, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``KEY=VALUE`` overrides (dotted keys, YAML values), and validate.

    A file may begin with ``extends: OTHER.yaml``, a path relative to it: it then says only what is different there.
    An override whose value is ``none`` or empty removes the key, for example ``encoders.item_id=none``.

    Raises:
        ConfigError: the file is absent or not YAML, or a key or value is wrong.
    """
    values = _read(path, extended=())
    for assignment in overrides:
        _override(values, assignment)
    return validate(values, where=str(path))


def _read(path: Path, *, extended: tuple[Path, ...]) -> dict[str, object]:
    """Return a file's settings over those of the file that it extends.

    Raises:
        ConfigError: a file is absent or not YAML, or extends itself.
    """
    values = read_settings(path)
    other = values.pop(EXTENDS, None)
    if other is None:
        return values
    if not isinstance(other, str) or (path.parent / other).resolve() in {each.resolve() for each in (*extended, path)}:
        raise ConfigError("the name of another config file", got=repr(other), where=f"{path}, {EXTENDS}")
    return _merged(_read(path.parent / other, extended=(*extended, path)), values)


def _merged(base: Mapping[str, object], values: Mapping[str, object]) -> dict[str, object]:
    """Return ``base`` with the values of another mapping over it, group by group; an entry of None takes a key away."""
    result = dict(base)
    for key, value in values.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def dump_config(config: Config) -> str:
    """Return the whole configuration, defaults included, as YAML that :func:`load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
