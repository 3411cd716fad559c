"""What requests and answers about several users, posts or texts at once hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mmrec.serving.schemas import Answer, Asked, Id, Picture, PublishRequest, RecommendAnswer, RecommendRequest


class RecommendBatchRequest(Asked):
    """Several recommendations at once, answered one by one; their users are encoded together."""

    requests: list[RecommendRequest] = Field(min_length=1)


class BatchedRecommendation(BaseModel):
    """What became of one of several requests."""

    answer: RecommendAnswer | None = Field(description="As /v1/recommend gives it, with a request_id of its own.")
    error: str | None


class RecommendBatchAnswer(Answer):
    """Recommendations, in the order asked."""

    results: list[BatchedRecommendation]


class NamedPost(PublishRequest):
    """A post of several to take in."""

    item_id: Id


class PublishBatchRequest(Asked):
    """Posts to take in, each for itself; they are encoded together."""

    items: list[NamedPost] = Field(min_length=1)


class BatchedPost(BaseModel):
    """What became of one of several posts."""

    item_id: str | int
    present: list[str]
    created: bool = Field(description="False where an item of that id was replaced, and where there is an error.")
    error: str | None


class PublishBatchAnswer(Answer):
    """Posts, in the order given; each without an error is durable, and found from now on."""

    results: list[BatchedPost]
    items: int


class EmbeddingPost(Asked):
    """A text and/or pictures that are embedded as one post."""

    text: str | None = None
    image: Picture | list[Picture] | None = None


EmbeddingInput = str | EmbeddingPost


class EmbeddingRequest(Asked):
    """Texts and pictures to embed, in the shape of OpenAI's interface.

    An entry is a text, a picture as ``data:image/...;base64,...``, or an object with both.
    """

    input: EmbeddingInput | Annotated[list[EmbeddingInput], Field(min_length=1)]
    model: str | None = Field(default=None, description="mmrec, or what /v1/model says of run or model.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: of float32, lowest byte first."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Leading coordinates to keep, as mmrec export --dim does; all by default."
    )
    user: str | None = Field(default=None, description="Taken, and not used.")


class Embedding(BaseModel):
    """The vector of an entry."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the texts that the model read; pictures have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    """Vectors, in the order asked: content as posts are compared by it, without what makes a post popular."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
