"""The space file: which settings a tune may change, and between which values.

A YAML mapping of dotted config keys to ``{low, high, log, step}`` or ``{choices}``.  Everything that can be wrong with
it is found before any work: each end and each choice is put into the configuration, which must take it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import yaml
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from mmrec.config import Config, Settings, validate
from mmrec.errors import ConfigError, near_names

Value = bool | int | float | str | None
"""What one setting can be."""
MEASURES: frozenset[str] = frozenset(
    {"train.metric", "train.seed", "train.evaluate_every", "train.validation_cases", "feed.split"}
)
"""Settings that decide how a trial is measured, or with what luck: trials that differ in them cannot be compared."""


def _read_number(value: object) -> object:
    """Take 3e-4 for a number, as the configuration does; YAML wants 3.0e-4 and reads a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


Number = Annotated[
    StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)],
    BeforeValidator(_read_number),
]


class Range(Settings):
    """An entry of the file with two ends."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: Number | None = None
    """Only low, low + step, low + 2 step, ..."""


class Choices(Settings):
    """An entry of the file that lists its values."""

    choices: list[StrictBool | StrictInt | StrictFloat | StrictStr | None]
    """The values."""


@dataclass(frozen=True)
class RangeKnob:
    """A setting between two numbers, whole ones where the configuration wants whole ones.

    Args:
        key: dotted config key.
        low: smallest value.
        high: largest value.
        log: draw the logarithm evenly.
        step: distance of values, None for any.
    """

    key: str
    low: int | float
    high: int | float
    log: bool
    step: int | float | None

    def holds(self, value: Value) -> bool:
        """Say whether a value is one that a trial could draw."""
        if isinstance(value, bool | str) or value is None or not self.low <= value <= self.high:
            return False
        return self.step is None or _whole((value - self.low) / self.step)


@dataclass(frozen=True)
class ChoiceKnob:
    """A setting that is one of several values.

    Args:
        key: dotted config key.
        choices: the values.
    """

    key: str
    choices: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        """Say whether a value is one that a trial could draw."""
        return any(_same(value, choice) for choice in self.choices)


Knob = RangeKnob | ChoiceKnob


def read_space(path: Path, base: Config) -> dict[str, object]:
    """Read the entries of a space file and check them against the configuration they vary.

    Raises:
        ConfigError: not a space file, an unknown key, or a value that the configuration does not take.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "See configs/space/ for examples."
        raise ConfigError("a space file", got="no file", where=str(path), fix=fix) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("a YAML file", got=str(error), where=str(path)) from error
    if not isinstance(entries, dict) or not entries or not all(isinstance(key, str) for key in entries):
        got = "none" if not entries else f"{entries!r:.80}"
        fix = "Write for example: train.learning_rate: {low: 3.0e-4, high: 5.0e-3, log: true}"
        raise ConfigError("dotted config keys and the values of each", got=got, where=str(path), fix=fix)
    parse_space(entries, base, where=str(path))
    return cast("dict[str, object]", entries)


def parse_space(entries: Mapping[str, object], base: Config, *, where: str) -> tuple[Knob, ...]:
    """Turn the entries of a space file into knobs.

    Raises:
        ConfigError: an unknown key, an entry that is none, or a value that the configuration does not take.
    """
    values = base.model_dump(mode="json")
    for key in entries:
        _check_key(key, values, where=where)
    return tuple(_Entry(key, entry, values, where=where, keys=tuple(entries)).knob() for key, entry in entries.items())


def with_values(base: Config, values: Mapping[str, Value], *, where: str) -> Config:
    """Return a configuration with some settings replaced.

    Raises:
        ConfigError: the configuration does not take these values together.
    """
    return validate(_replaced(base.model_dump(mode="json"), values), where=where)


def own_values(base: Config, knobs: Sequence[Knob]) -> dict[str, Value] | None:
    """Return the configuration's own values of the knobs; None where one of them lies outside the space."""
    values = base.model_dump(mode="json")
    own = {knob.key: cast("Value", _look_up(values, knob.key)) for knob in knobs}
    return own if all(knob.holds(own[knob.key]) for knob in knobs) else None


def _check_key(key: str, values: Mapping[str, object], *, where: str) -> None:
    node: object = values
    for part in key.split("."):
        known = node if isinstance(node, dict) else {}
        if part not in known:
            hint = near_names(part, known) if known else "it is below a setting that has no parts"
            raise ConfigError("a config key", got=f"unknown key {key!r} ({hint})", where=where, fix="Correct the key.")
        node = known[part]
    if isinstance(node, dict | list):
        got = f"{key!r}, which holds {'several' if isinstance(node, list) else ', '.join(node) or 'none'}"
        raise ConfigError("a key of one value", got=got, where=where, fix="Name a setting, not a group or a list.")
    if key in MEASURES:
        fix = "Leave it out, and set it for all trials with --set."
        raise ConfigError("settings that leave trials comparable", got=repr(key), where=where, fix=fix)


@dataclass(frozen=True)
class _Entry:
    """One entry of a space file on its way to a knob."""

    key: str
    entry: object
    values: dict[str, object]
    where: str
    keys: tuple[str, ...]

    def knob(self) -> Knob:
        kind = Choices if isinstance(self.entry, dict) and "choices" in self.entry else Range
        try:
            shape = kind.model_validate(self.entry)
        except ValidationError as error:
            raise self._shapeless(error, kind) from error
        if isinstance(shape, Choices):
            return self._choices(shape)
        assert isinstance(shape, Range)
        return self._range(shape)

    def _choices(self, shape: Choices) -> ChoiceKnob:
        choices: list[Value] = []
        for value in shape.choices:
            settled = self._settle(value)
            if any(_same(settled, other) for other in choices):
                raise self._error("different choices", f"{value!r} twice", "Name each value once.")
            choices.append(settled)
        if len(choices) < 2:
            raise self._error("at least two choices", f"{shape.choices!r}", "A single value belongs into the config.")
        return ChoiceKnob(self.key, tuple(choices))

    def _range(self, shape: Range) -> RangeKnob:
        if not shape.low < shape.high:
            raise self._error("low below high", f"low {shape.low}, high {shape.high}", "Correct the ends.")
        if shape.log and shape.low <= 0:
            raise self._error("a positive low where log is true", f"low {shape.low}", "Raise low, or drop log.")
        if shape.log and shape.step is not None:
            raise self._error("either log or step", "both", "Drop one of them.")
        low, high, step = self._settle(shape.low), self._settle(shape.high), shape.step
        if not _is_number(low) or not _is_number(high):
            raise self._error("a key of numbers", f"one that becomes {low!r}", "List its values as choices.")
        low, high = cast("float", low), cast("float", high)
        if isinstance(low, int) != isinstance(high, int):
            low, high = float(low), float(high)
        if step is not None:
            if step <= 0 or not _whole((high - low) / step) or (isinstance(low, int) and not _whole(step)):
                fix = f"Choose a positive {'whole ' if isinstance(low, int) else ''}step that divides high - low."
                raise self._error("a step that leads from low to high", f"step {step} from {low} to {high}", fix)
            step = int(step) if isinstance(low, int) else float(step)
        return RangeKnob(self.key, low, high, shape.log, step)

    def _settle(self, value: Value) -> Value:
        """Return a value as the configuration understands it (1 is 1.0 where it wants a fraction)."""
        try:
            config = Config.model_validate(_replaced(self.values, {self.key: value}))
        except ValidationError as error:
            problem = error.errors()[0]
            if self._may_fit_together(problem["loc"]):
                return value
            expected = f"values that {self.key} takes"
            got = f"{value!r} ({problem['msg']})"
            raise self._error(expected, got, "Correct the entry, or --set what it depends on.") from error
        return cast("Value", _look_up(config.model_dump(mode="json"), self.key))

    def _may_fit_together(self, place: Sequence[str | int]) -> bool:
        """Say whether what is wrong is the combination with a setting that the space varies too."""
        parts = self.key.split(".")
        group: list[str] = []
        for part in place:
            # Kinds of encoders stand in the place beside the keys.
            if len(group) < len(parts) and part == parts[len(group)]:
                group.append(part)
        prefix = "".join(f"{part}." for part in group)
        return len(group) < len(parts) and any(key != self.key and key.startswith(prefix) for key in self.keys)

    def _shapeless(self, error: ValidationError, kind: type[Settings]) -> ConfigError:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"][:1])
        got = f"{name}: {problem['msg']}" if name else f"{self.entry!r:.60}"
        if problem["type"] == "extra_forbidden":
            got = f"unknown key {name!r} ({near_names(name, kind.model_fields)})"
        elif problem["type"] != "missing" and name:
            got = f"{name} {problem['input']!r:.60}"
        fix = "Write for example {low: 0.0, high: 0.5} or {choices: [0, 0.1, 0.3]}."
        return self._error("a range of numbers (low, high, log, step) or choices", got, fix)

    def _error(self, expected: str, got: str, fix: str) -> ConfigError:
        return ConfigError(expected, got=got, where=f"{self.where}: {self.key}", fix=fix)


def _replaced(values: Mapping[str, object], new: Mapping[str, Value]) -> dict[str, object]:
    changed = copy.deepcopy(dict(values))
    for key, value in new.items():
        *parents, last = key.split(".")
        node = changed
        for parent in parents:
            node = cast("dict[str, object]", node[parent])
        node[last] = value
    return changed


def _look_up(values: Mapping[str, object], key: str) -> object:
    node: object = values
    for part in key.split("."):
        node = cast("dict[str, object]", node)[part]
    return node


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(first: Value, second: Value) -> bool:
    """Compare without taking True for 1."""
    return isinstance(first, bool) == isinstance(second, bool) and first == second


def _whole(ratio: int | float) -> bool:
    return math.isclose(ratio, round(ratio), rel_tol=0.0, abs_tol=1e-6)
