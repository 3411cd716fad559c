"""What pages of the store's logs hold."""

from __future__ import annotations

from pydantic import BaseModel, Field

from mmrec.serving.schemas import Answer, Asked, Attribute, Image


class LogRequest(Asked):
    """A page of a log."""

    after: int = Field(default=0, ge=0, description="Number of the last entry that is known; 0 for the first.")
    limit: int = Field(default=1000, ge=1, le=10_000, description="Entries at most; posts with pictures come fewer.")


class LoggedPost(BaseModel):
    """A post as it was published, or the fact that it was taken back."""

    number: int
    item_id: str | int
    caption: str | None
    attributes: dict[str, Attribute]
    published_at: int
    deleted: bool
    pictures: list[Image] = Field(description="As they were sent.")


class LoggedEvent(BaseModel):
    """A piece of feedback."""

    number: int
    user_id: str
    item_id: str | int
    timestamp: int
    event: str | None
    value: float | None
    chosen: bool
    request_id: str | None


class Shown(BaseModel):
    """An item that was shown, or the name of a post that a request brought along."""

    item_id: str | int
    score: float | None


class LoggedAnswer(BaseModel):
    """What an answer showed, best first."""

    number: int
    request_id: str
    route: str
    user_id: str | None
    timestamp: int
    model: str
    shown: list[Shown]


class Page(Answer):
    """Part of a log."""

    next: int = Field(description="What to ask for after this.")
    more: bool = Field(description="Whether there is more now.")


class PostsPage(Page):
    """Posts in the order in which they were last put; one that was put again comes again, with a new number."""

    entries: list[LoggedPost]


class FeedbackPage(Page):
    """Feedback, in the order in which it came."""

    entries: list[LoggedEvent]


class ServedPage(Page):
    """Answers, in the order in which they were kept."""

    entries: list[LoggedAnswer]
