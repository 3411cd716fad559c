"""What answers: one model at a time, which every request keeps from its beginning to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from mmrec.serving.answers.about import About, State
from mmrec.serving.answers.publishing import Publishing
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import Carried, carry_over
from mmrec.serving.deployment.choice import UNCHOSEN, Choice
from mmrec.serving.schemas import ModelAnswer
from mmrec.serving.studio.parts import StudioParts
from mmrec.serving.trace import Trace, now_ms

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Active:
    """A model that is ready to answer, and all that was made for it.

    Args:
        service: of that model.
        choice: the pair that it is of.

    Attributes:
        since: when it last began to answer, milliseconds since 1970.
    """

    def __init__(self, service: Service, choice: Choice) -> None:
        self.service, self.about, self.publishing = service, About(service), Publishing(service)
        self.choice, self.since = choice, now_ms()
        self.studio = StudioParts(service)
        self._requests, self._retired = 0, False
        self._counting = threading.Lock()

    def model(self, trace: Trace) -> ModelAnswer:
        """Return what it is."""
        return self.about.model(trace, since=self.since)

    def enter(self) -> None:
        """Count a request in."""
        with self._counting:
            self._requests += 1

    def leave(self) -> None:
        """Count a request out; the last one ends a model that was retired."""
        with self._counting:
            self._requests -= 1
            over = self._retired and not self._requests
        if over:
            self.service.stop()

    def retire(self) -> None:
        """End the model as soon as no request needs it any more."""
        with self._counting:
            over = not self._requests and not self._retired
            self._retired = True
        if over:
            self.service.stop()


class Deployment:
    """Hands the model that answers to requests, and puts another in its place without disturbing any.

    Args:
        service: what answers at first; it offers what the store holds.
        choice: the pair that it is of.
    """

    def __init__(self, service: Service, *, choice: Choice = UNCHOSEN) -> None:
        self._switching, self._choosing = threading.Lock(), threading.Lock()
        self._current = Active(service, choice)
        self._previous: Active | None = None

    @property
    def current(self) -> Active:
        """What new requests get."""
        return self._current

    @property
    def previous(self) -> Active | None:
        """What answered before, ready to do so again."""
        return self._previous

    @contextmanager
    def use(self) -> Iterator[Active]:
        """Yield what answers, which stays as it is until the block ends, whatever takes its place meanwhile."""
        with self._choosing:
            now = self._current
            now.enter()
        try:
            yield now
        finally:
            now.leave()

    @contextmanager
    def write(self) -> Iterator[Active]:
        """Yield what answers, for a write; where another model takes its place meanwhile, that has the post too."""
        with self.use() as now:
            yield now
            # What was written before a switch takes this lock, the switch carries over; the rest is carried over here.
            with self._switching:
                if self._current is not now:
                    carry_over(self._current.service)

    def reading(self, method: Callable[[Active], Callable[_P, _R]]) -> Callable[_P, _R]:
        """Return what calls a method of whatever answers when it is called.

        Args:
            method: finds it in what answers.
        """

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self.use() as now:
                return method(now)(*args, **kwargs)

        return call

    def writing(self, method: Callable[[Active], Callable[_P, _R]]) -> Callable[_P, _R]:
        """Return what calls a method that writes posts."""

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self.write() as now:
                return method(now)(*args, **kwargs)

        return call

    def follow(self) -> None:
        """Offer what other processes published since, and take away what they took back."""
        with self.use() as now:
            carry_over(now.service)

    def state(self) -> State:
        """Return figures of this moment."""
        return self._current.about.state()

    def reads(self) -> tuple[str, ...]:
        """Return the modalities that what answers reads of new posts."""
        return self._current.service.recommender.vectors.contents.reads

    def switch(self, to: Active, *, before: Callable[[], None] | None = None) -> Carried:
        """Put a model in the place of what answers, with all that was published; what answered is kept as the previous.

        Published posts must have been carried over already, but for the last few: writers wait as long as this takes.

        Args:
            to: what is to answer.
            before: done last; where it fails, nothing changes.

        Returns:
            The last few.
        """
        with self._switching:
            carried = carry_over(to.service)
            if before is not None:
                before()
            with self._choosing:
                replaced, oldest = self._current, self._previous
                self._current, self._previous = to, replaced
            to.since = now_ms()
        if oldest is not None and oldest is not to:
            oldest.retire()
        return carried

    def close(self) -> None:
        """Finish what was accepted, then let go of everything."""
        if self._previous is not None:
            self._previous.service.stop()
        self._current.service.close()
