"""What requests and answers hold; requests are strict: an unknown field or a wrong type is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_ID = 256


def _identifier(value: str | int) -> str | int:
    text = str(value)
    if not 0 < len(text) <= MAX_ID or not text.isprintable():
        raise ValueError(f"an id has 1 to {MAX_ID} printable characters")
    return value


Id = Annotated[str | int, AfterValidator(_identifier)]


def external_id(item_id: str, *, integers: bool) -> str | int:
    """Return an id in the type that a feed's ids have: a number that is written as one, where they are integers."""
    whole = integers and item_id.isascii() and item_id.removeprefix("-").isdecimal()
    return int(item_id) if whole and str(int(item_id)) == item_id else item_id


Attribute = str | int | float | bool | None
Weight = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1000)]


class Asked(BaseModel):
    """Base of everything that requests hold."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Image(Asked):
    """A picture (JPEG, PNG, WebP, GIF, BMP, AVIF) in base64."""

    base64: str


Picture = Annotated[
    Image | str,
    Field(
        description='A picture in base64 (data:image/...;base64, too), or "part:NAME", a part of a multipart request.'
    ),
]


class RawPost(Asked):
    """A post: an id, or a caption and/or pictures, and what attributes of the feed it has."""

    item_id: Id | None = Field(default=None, description="Its id; what the answer calls it.")
    caption: str | None = None
    image: Picture | list[Picture] | None = None
    attributes: dict[str, Attribute] = Field(default_factory=dict, description="Read by models that know attributes.")


Candidate = Id | RawPost


class ScoreRequest(Asked):
    """Candidates to score for a known user, or after a history (oldest first)."""

    user_id: Id | None = None
    history: list[Candidate] | None = None
    candidates: list[Candidate] = Field(min_length=1)


class RecommendRequest(Asked):
    """The best items for a user or after a history."""

    user_id: Id | None = None
    history: list[Candidate] | None = None
    k: int = Field(default=20, ge=1)
    exclude: list[Id] = Field(default_factory=list, description="Items to leave out.")
    seen: Literal["include", "exclude"] = Field(
        default="include", description="Whether items that the user chose before may come again."
    )
    where: str = Field(default="", max_length=1000, description="Conditions such as colour=Black and price<20.")
    freshness: float = Field(
        default=0.0, ge=0, le=1, description="How much it counts to be newer than other candidates; 0: not at all."
    )
    diversity: float = Field(
        default=0.0, ge=0, le=1, description="How much it counts to differ from what is ranked higher; 0: not at all."
    )
    modality_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="How much the candidates' modalities count, such as image: 0.5; 1 where nothing is said. A score is "
        "that expected where each modality is kept with this probability; a post never loses its only content.",
    )
    reasons: int = Field(
        default=0,
        ge=0,
        le=5,
        description="For each item, so many posts of the user's history that are nearest to it in the model's space.",
    )


class SearchWeights(Asked):
    """How much each part of a question counts."""

    text: Share = 1.0
    image: Share = 1.0
    items: Share = Field(default=1.0, description="Of each of the items.")
    user: Share = 1.0


class SearchRequest(Asked):
    """Items near a text, pictures, items, a user, or any mix of these.

    Text and pictures are one post, unless there are weights: then each is a direction of its own.
    """

    text: str | None = None
    image: Picture | list[Picture] | None = None
    items: list[Id] = Field(default_factory=list)
    user_id: Id | None = None
    weights: SearchWeights | None = None
    k: int = Field(default=10, ge=1)
    where: str = Field(default="", max_length=1000)


class SimilarRequest(Asked):
    """Items near one item."""

    k: int = Field(default=10, ge=1)
    where: str = Field(default="", max_length=1000)


class PublishRequest(Asked):
    """A post to take in: a caption and/or pictures, attributes of the export, and when it was published."""

    caption: str | None = None
    image: Picture | list[Picture] | None = None
    attributes: dict[str, Attribute] = Field(default_factory=dict)
    published_at: int | None = Field(default=None, ge=0, le=1 << 45, description="Milliseconds since 1970; now.")


class FeedbackEvent(Asked):
    """What a user did with an item."""

    user_id: Id
    item_id: Id
    event: str | None = Field(default=None, max_length=MAX_ID)
    value: float | None = None
    timestamp: int | None = Field(default=None, ge=0, le=1 << 45, description="Milliseconds since 1970; now.")
    chosen: bool = Field(default=True, description="False keeps the event out of the user's history.")
    request_id: str | None = Field(default=None, max_length=MAX_ID, description="Of the answer that showed the item.")


class FeedbackRequest(Asked):
    """Events to append, all or none."""

    events: list[FeedbackEvent] = Field(min_length=1)


class Answer(BaseModel):
    """Base of all answers."""

    request_id: str


class Unused(BaseModel):
    """An entry of a history that was left out."""

    position: int
    error: str


class Asker(BaseModel):
    """Who was answered: ``known`` from the feed or feedback, a ``history``, or a ``stranger`` without either."""

    kind: Literal["known", "history", "stranger"]
    history_length: int = Field(description="Events that count.")
    unused: list[Unused] = Field(default_factory=list)


@dataclass(slots=True)
class ScoredCandidate:
    """A candidate, in the order asked."""

    # A model would check each of up to a thousand in an answer anew.
    candidate: str | int
    score: float | None
    rank: int | None
    present: Annotated[tuple[str, ...], Field(description="The modalities it has.")]
    error: str | None


class ScoreAnswer(Answer):
    """Scores."""

    model: str
    user: Asker
    results: list[ScoredCandidate]


class RankedItem(BaseModel):
    """An item that was chosen."""

    item_id: str | int
    rank: int
    score: float | None = Field(description="None where no model chose it.")
    reason: Literal["popular", "fresh"] | None = None


class NearPost(BaseModel):
    """A post of the user's history near a recommended item."""

    item_id: str | int
    similarity: float = Field(description="Cosine of the two posts' vectors, between -1 and 1.")


class RecommendedItem(RankedItem):
    """An item that was recommended.

    ``because`` are neighbours in the space in which the model compares posts: what of the history is like the item, not
    a proof of what moved the model, which reads the whole history in order.
    """

    because: list[NearPost] = Field(default_factory=list, description="Nearest posts of the history, if asked for.")


class RecommendAnswer(Answer):
    """Recommendations, and what chose them."""

    model: str
    user: Asker
    strategy: Literal["model", "popular_and_fresh"]
    pool: int = Field(
        description="Candidates that freshness, diversity and weights put in order; 0 where nothing of it was asked."
    )
    results: list[RecommendedItem]


class FoundItem(RankedItem):
    """An item that was found."""

    caption: str | None


class SearchAnswer(Answer):
    """Items that were found, best first."""

    model: str
    results: list[FoundItem]


class ItemAnswer(Answer):
    """An item as it is known now."""

    item_id: str | int
    source: Literal["catalogue", "published"]
    caption: str | None
    present: list[str]
    attributes: dict[str, Attribute]
    published_at: int | None


class PublishAnswer(Answer):
    """A post that was taken in: durable, and found from now on."""

    item_id: str | int
    present: list[str]
    created: bool = Field(description="False where an item of that id was replaced.")
    items: int


class DeleteAnswer(Answer):
    """An item that is offered no more."""

    item_id: str | int
    items: int


class FeedbackAnswer(Answer):
    """Events that are durable."""

    accepted: int
    unknown_items: int = Field(description="Events of items that are not known (now): kept, but in no history.")


class ModelAnswer(Answer):
    """What answers."""

    model: str
    run: str
    vectors: str
    index: str = Field(description="What finds candidates, such as faiss hnsw; exact where every vector is looked at.")
    since: int = Field(description="When it last began to answer, milliseconds since 1970.")
    feed_hash: str
    modalities: list[str]
    width: int
    history_length: int
    items: int
    published: int
    users: int
    attributes: list[str]
    events: list[str]


class HealthAnswer(Answer):
    """The service is there, and (ready) answers."""

    status: Literal["live", "ready"]
