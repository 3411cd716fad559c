"""Dataclasses of tensors that move between devices as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

_M = TypeVar("_M", bound="Movable")


@dataclass(frozen=True)
class Movable:
    """A dataclass of tensors (possibly nested) that moves between devices as one, but for its ``on_host`` fields."""

    on_host: ClassVar[frozenset[str]] = frozenset()

    def to(self: _M, device: torch.device, *, non_blocking: bool = False) -> _M:
        """Return a copy with every tensor on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self: _M, change: Callable[[Tensor], Tensor]) -> _M:
        """Return a copy with every tensor changed that may leave the CPU."""

        def visit(value: object) -> object:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Movable):
                return value.map(change)
            if isinstance(value, Mapping):
                return {key: visit(entry) for key, entry in value.items()}
            return value

        names = [entry.name for entry in fields(self) if entry.name not in self.on_host]
        return replace(self, **{name: visit(getattr(self, name)) for name in names})
