"""What the requests and answers of the page's routes hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mmrec.serving.schemas import Answer, Asked, Id, Picture

Removed = Literal["text", "image"]


class CardsRequest(Asked):
    """Items to show."""

    items: list[Id] = Field(min_length=1)


class UsersRequest(Asked):
    """Users whose ids begin with a text."""

    prefix: str = Field(default="", max_length=256)
    k: int = Field(default=20, ge=1, le=100)
    held_out: Literal["", "true", "false"] = Field(
        default="", description="true: only users of whom the split holds choices out."
    )


class UserQuery(Asked):
    """How much of a history to return."""

    k: int = Field(default=60, ge=1, le=500, description="Most recent events.")


class InspectRequest(Asked):
    """A post to look at, before or after it is published."""

    caption: str | None = None
    image: Picture | list[Picture] | None = None
    item_id: Id | None = Field(default=None, description="Where it is published; it is no rival of its own.")
    k: int = Field(default=12, ge=1, le=50, description="Nearest posts.")
    users: int = Field(default=8, ge=1, le=24, description="Users who would like it most.")


class Card(BaseModel):
    """What a page shows of an item."""

    item_id: str | int
    caption: str | None
    picture: bool = Field(description="Whether there is a picture at /v1/items/ID/image.")
    published: bool = Field(description="Whether it was published since the export.")
    offered: bool = Field(description="False of an item that was taken back.")


class CardsAnswer(Answer):
    """Cards, in the order asked; without those of unknown ids."""

    results: list[Card]


class ListedUser(BaseModel):
    """A user of the feed, or one known by feedback."""

    user_id: str | int
    events: int = Field(description="In the feed.")
    last: int | None = Field(description="Time of the last of them, milliseconds since 1970.")
    held_out: bool = Field(description="Whether the split holds choices out.")
    latest: list[Card] = Field(description="The last of them, the most recent first.")


class UsersAnswer(Answer):
    """Users, the most active first."""

    found: int = Field(description="Users of that prefix.")
    users: int = Field(description="All users of the feed.")
    results: list[ListedUser]


class PastEvent(Card):
    """An event of a history, with the item it is about."""

    timestamp: int | None
    event: str | None


class HeldOut(BaseModel):
    """What the split holds out of a user's history: the choices of one instant, and what came before them."""

    split: str
    part: Literal["validation"]
    at: int | None
    before: list[str | int] = Field(description="The history that the question is asked after, oldest first.")
    chosen: list[Card]


class UserAnswer(Answer):
    """A user: the most recent events, oldest first."""

    user_id: str | int
    events: int = Field(description="Distinct events in the feed.")
    known: bool
    history_length: int = Field(description="Most recent events that the model reads.")
    history: list[PastEvent]
    held_out: HeldOut | None


class Audience(BaseModel):
    """The users that were asked."""

    encoded: int = Field(description="Users whose vectors are there by now.")
    wanted: int = Field(description="Users who will be asked: all, or a sample of them.")
    users: int = Field(description="Users of the feed.")


class Variant(BaseModel):
    """The post as it is, or without one of its modalities."""

    without: Removed | None
    mean_score: float | None = Field(description="Over the audience.")
    standing: float | None = Field(description="Share of the catalogue whose mean score is lower.")
    same_nearest: int = Field(description="How many of the nearest posts it shares with the whole post.")


class Fan(BaseModel):
    """A user who would like the post."""

    user_id: str | int
    score: float
    rank: int = Field(description="Among all that is offered, itself counted once.")
    scores_without: dict[Removed, float]
    because: Card | None = Field(description="The post of the history that is nearest to it.")


class NearCard(Card):
    """A post near the one that is inspected."""

    rank: int
    score: float


class InspectAnswer(Answer):
    """A post as the model sees it."""

    model: str
    present: list[str]
    published: bool
    items: int
    nearest: list[NearCard]
    variants: list[Variant]
    audience: Audience
    fans: list[Fan]


class MapQuery(Asked):
    """How to colour the map."""

    colour: str = Field(default="", max_length=256, description="An attribute; by default one of few values.")


class MapAnswer(Answer):
    """Where the items of the export lie; parallel lists."""

    method: str
    sample: int
    exported: bool = Field(description="False where the service made the map itself.")
    items: int
    shown: int
    item_ids: list[str | int]
    x: list[int]
    y: list[int]
    group: list[int] = Field(description="Place in ``groups``; the last one is everything else.")
    groups: list[str]
    colour: str
    attributes: list[str] = Field(description="Attributes that can colour it.")


class Problem(BaseModel):
    """A request that was refused."""

    request_id: str
    at: int
    route: str
    status: int
    reason: str


class ProblemsAnswer(Answer):
    """The last refusals of this process, the newest first."""

    total: int
    results: list[Problem]
