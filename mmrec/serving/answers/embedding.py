"""Vectors of texts and pictures for other programs, in the shape of OpenAI's interface."""

from __future__ import annotations

import base64
from functools import partial
from typing import Literal

import numpy as np
import torch

from mmrec.errors import MmrecError, RequestError
from mmrec.model.scorer import shorten
from mmrec.search.index import Vectors
from mmrec.serving.answers.service import Service
from mmrec.serving.batch_schemas import (
    Embedding,
    EmbeddingAnswer,
    EmbeddingInput,
    EmbeddingPost,
    EmbeddingRequest,
    Usage,
)
from mmrec.serving.limits import Limits
from mmrec.serving.posts.post_vectors import Content, Encoded
from mmrec.serving.posts.references import Parts, content_of, is_data_url
from mmrec.serving.problems import ProblemError, settled, too_many
from mmrec.serving.trace import Trace

MODEL = "mmrec"
_URLS = ("http://", "https://")


def embed(service: Service, request: EmbeddingRequest, parts: Parts, trace: Trace) -> EmbeddingAnswer:
    """Return the content vectors of texts and pictures, all or none; they are encoded together.

    Args:
        service: what encodes.
        request: what to embed, and how to write it.
        parts: the pictures of a multipart request, by name.
        trace: of the request.

    Raises:
        ProblemError: another model than the one that answers, more coordinates than it has, too many entries, or some
            that cannot be read.
    """
    names = (MODEL, service.model_hash, service.recommender.run.path.name)
    if request.model is not None and request.model not in names:
        fix = f"Name one of {', '.join(names)}, or none."
        raise ProblemError(404, "the model that answers", got=repr(request.model[:100]), where="model", fix=fix)
    dim = service.recommender.assembly.model.dim
    if request.dimensions is not None and request.dimensions > dim:
        raise too_many("dimensions", limit=dim, got=request.dimensions, where="dimensions")
    inputs = request.input if isinstance(request.input, list) else [request.input]
    if len(inputs) > service.limits.posts:
        raise too_many("entries", limit=service.limits.posts, got=len(inputs), where="input")

    contents = [settled(partial(_content, entry, parts, service.limits)) for entry in inputs]
    encoded = service.posts.encode(contents, trace)
    good = [one for one in encoded if isinstance(one, Encoded)]
    if len(good) < len(inputs):
        errors = [
            {"where": f"input.{number}", "message": str(one)}
            for number, one in enumerate(encoded)
            if isinstance(one, MmrecError)
        ]
        raise ProblemError(422, "texts and pictures that can be embedded", got="others", where="input", errors=errors)
    whole = torch.from_numpy(np.stack([one.vector for one in good])[:, :dim])
    keeps_length = service.items.exported.layout.keeps_length
    cut = shorten(whole, request.dimensions or dim, has_bias=False, keeps_length=keeps_length).numpy()
    words = service.recommender.assembly.words
    texts = [one.caption for one in contents if isinstance(one, Content) and one.caption is not None]
    tokens = 0 if words is None else len(words.encode(texts).token_ids.values)
    return EmbeddingAnswer(
        request_id=trace.request_id,
        data=[
            Embedding(index=number, embedding=_written(vector, request.encoding_format))
            for number, vector in enumerate(cut)
        ],
        model=service.model_hash,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _content(entry: EmbeddingInput, parts: Parts, limits: Limits) -> Content:
    if isinstance(entry, EmbeddingPost):
        return content_of(entry.text, entry.image, parts, limits)
    if is_data_url(entry):
        return content_of(None, entry, parts, limits)
    if entry.startswith(_URLS) and not any(map(str.isspace, entry)):
        raise RequestError("a text or a picture", got="a URL", fix="Send the picture along: nothing is fetched.")
    return content_of(entry, None, parts, limits)


def _written(vector: Vectors, encoding_format: Literal["float", "base64"]) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(number) for number in vector]
