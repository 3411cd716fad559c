"""What requests and answers about models hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mmrec.serving.schemas import Answer, Asked

MAX_NAME = 255


class SwapRequest(Asked):
    """A run and an export of it, by the names of their folders in the folder of ``--models``."""

    run: str = Field(min_length=1, max_length=MAX_NAME)
    vectors: str = Field(min_length=1, max_length=MAX_NAME)
    feed: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_NAME,
        description="Prepared feed in the same folder; by default that of --feed, or else the one that was exported.",
    )
    wait: bool = Field(default=True, description="Answer when it is over; false answers 202 at once.")


class RollbackRequest(Asked):
    """The model that answered before; ``{}`` asks for whichever that is."""

    model: str | None = Field(
        default=None, max_length=MAX_NAME, description="Its hash; where another one would come back, nothing is done."
    )
    wait: bool = Field(default=True, description="Answer when it is over; false answers 202 at once.")


class PairState(BaseModel):
    """A model that is in memory."""

    model: str
    run: str
    vectors: str
    since: int = Field(description="When it last began to answer, milliseconds since 1970.")
    items: int
    published: int


class SwapState(BaseModel):
    """The swap in progress, or the last one of this process."""

    step: Literal["loading", "checking", "carrying over", "switching", "done", "failed"]
    back: bool = Field(description="Whether it is a rollback.")
    run: str | None = Field(description="None for the pair that the service was started with.")
    vectors: str | None
    feed: str | None
    began: int
    seconds: float
    searched: int | None = Field(description="Items that were looked for by their own vectors.")
    found: int | None = Field(description="Of these, the ones that came first, or level with the first.")
    encoded: int | None = Field(description="Items that were encoded again, with the same result.")
    carried_over: int | None = Field(description="Published posts that were carried over.")
    left_out: int | None = Field(description="Published posts that the new model cannot encode.")
    problem: str | None


class Available(BaseModel):
    """Names of what lies in the folder of ``--models``."""

    runs: list[str]
    vectors: list[str]
    feeds: list[str]


class AdminModelAnswer(Answer):
    """What answers, what answered before, and how far a swap is; each worker process speaks for itself."""

    current: PairState
    previous: PairState | None = Field(description="What POST /admin/rollback puts back.")
    swap: SwapState | None
    available: Available
