"""A model behind a web framework as tutorials put it there: one handler that calls the model for every request.

FastAPI runs such a handler in a pool of forty threads; each decodes and encodes what its own request brings, alone.
(Source: the model-serving examples of FastAPI, BentoML and Ray Serve before batching is turned on.)

    python -m field.serving RUN --feed FEED --port 8001
"""

from __future__ import annotations

import argparse
import base64

import uvicorn
from fastapi import FastAPI

from mmrec import Post, Recommender


def build_app(recommender: Recommender) -> FastAPI:
    """Return an application that scores."""
    app = FastAPI()
    recommender.item_embeddings()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/score")
    def score(request: dict[str, list[object]]) -> dict[str, object]:
        scored = recommender.score(
            history=[str(item_id) for item_id in request["history"]],
            candidates=[_post(candidate) for candidate in request["candidates"]],
        )
        return {
            "results": [{"candidate": name, "score": value} for name, value in scored[["candidate", "score"]].values]
        }

    return app


def _post(candidate: object) -> str | Post:
    if not isinstance(candidate, dict):
        return str(candidate)
    image = candidate.get("image")
    return Post(caption=candidate.get("caption"), image=None if image is None else base64.b64decode(image["base64"]))


def main() -> None:
    """Serve a run on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--feed")
    parser.add_argument("--port", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    recommender = Recommender.load(
        arguments.run, feed=arguments.feed, device=arguments.device, compute_dtype=arguments.compute_dtype
    )
    uvicorn.run(build_app(recommender), port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
