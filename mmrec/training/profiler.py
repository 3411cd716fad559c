"""What a training tells of itself as it goes, so that it can be seen where its time goes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from torch import Tensor

WAITING = "waiting for the loader"
TRANSFER = "copy to the device"
OBJECTIVE = "objective"
OPTIMISER = "optimiser"
GRADIENTS = "gradients of all processes"
BANK = "bank refresh"
VALIDATION = "validation"
CHECKPOINT = "checkpoint"
LOG = "log"


@runtime_checkable
class Profiler(Protocol):
    """What a training tells as it goes."""

    def section(self, name: str, *, whole: bool = False) -> AbstractContextManager[object]:
        """Time the block; with ``whole`` nothing within it is told apart."""
        ...

    def batch(self, *, targets: int) -> AbstractContextManager[object]:
        """Time the forward and backward pass of one batch."""
        ...

    def backward(self, loss: Tensor) -> AbstractContextManager[object]:
        """Time a block that runs the backward pass of ``loss``."""
        ...

    def loading(self, name: str) -> AbstractContextManager[object]:
        """Time a block that prepares a batch, in whatever thread."""
        ...


class NoProfiler:
    """Times nothing, at no cost."""

    def section(self, name: str, *, whole: bool = False) -> AbstractContextManager[object]:
        """Do nothing."""
        return _NOTHING

    def batch(self, *, targets: int) -> AbstractContextManager[object]:
        """Do nothing."""
        return _NOTHING

    def backward(self, loss: Tensor) -> AbstractContextManager[object]:
        """Do nothing."""
        return _NOTHING

    def loading(self, name: str) -> AbstractContextManager[object]:
        """Do nothing."""
        return _NOTHING


_NOTHING = nullcontext()
