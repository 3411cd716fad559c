"""Which section of a forward pass each stretch of its backward pass belongs to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node

OnTurn = Callable[[str], None]


@dataclass
class BackwardOrder:
    """The sections of a forward pass in the order in which they were open, and how many autograd nodes there were by then.

    torch numbers the nodes of a graph as they are made, and on one device its engine runs them from the highest number
    to the lowest: a node is ready when whatever used its output has run, and that has higher numbers.  So the backward
    pass goes through the stretches of the forward pass in reverse, each from its first node to its last, and a hook on
    the highest node of each stretch tells where it begins.  Only the nodes that accumulate the gradients of parameters
    stand out of line: they run as soon as they can, and that is within the stretch that made the gradient.
    """

    _numbers: list[int] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def border(self, name: str) -> None:
        """Say that what is computed from now on belongs to a section."""
        self._numbers.append(_next_number())
        self._names.append(name)

    def watch(self, loss: Tensor, turn: OnTurn) -> None:
        """Have ``turn`` called with the name of each section as the backward pass of ``loss`` comes to it."""
        end = _next_number()
        first: dict[int, tuple[int, Node]] = {}
        for node in _nodes(loss):
            number = node._sequence_nr()
            if number < end:
                place = bisect_right(self._numbers, number) - 1
                if place >= 0 and number >= first.get(place, (-1, node))[0]:
                    first[place] = (number, node)
        for place, (_, node) in first.items():
            node.register_prehook(_Turn(turn, self._names[place]))


@dataclass(frozen=True)
class _Turn:
    """A hook that says which section has come and leaves gradients alone."""

    turn: OnTurn
    name: str

    def __call__(self, gradients: object) -> None:
        self.turn(self.name)


def _nodes(loss: Tensor) -> Iterable[Node]:
    """Return every node that the backward pass of ``loss`` may run."""
    assert loss.grad_fn is not None
    seen, found = {loss.grad_fn}, [loss.grad_fn]
    for node in found:
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                found.append(before)
    return found


def _next_number() -> int:
    """Return the number that the next autograd node of this thread will get."""
    return int(torch._C._autograd._get_sequence_nr())
