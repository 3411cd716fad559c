"""Mixed traffic against a running service, by locust (pip install locust).

    locust -f scripts/load/locustfile.py --host http://127.0.0.1:8000                          # a page at :8089
    locust -f scripts/load/locustfile.py --host http://127.0.0.1:8000 --headless --users 32 --spawn-rate 8 --run-time 60s

Ids come from the service's own answers; a file of ids, one a line, may be given instead: MMREC_IDS.  A key goes into
MMREC_KEY; without scope write, leave publishing and feedback out: --exclude-tags write.
"""

from __future__ import annotations

import base64
import io
import os
import random
import uuid
from pathlib import Path

import requests
from locust import HttpUser, between, events, tag, task
from locust.env import Environment
from PIL import Image

WORDS = (
    "red",
    "blue",
    "green",
    "soft",
    "striped",
    "long",
    "wool",
    "silk",
    "cotton",
    "scarf",
    "dress",
    "jumper",
    "coat",
)
HISTORY, CANDIDATES, K = 10, 100, 20
item_ids: list[str | int] = []


@events.test_start.add_listener
def find_ids(environment: Environment, **_: object) -> None:
    """Read the ids of a file, or take those that the service shows to strangers and near to these."""
    item_ids.clear()
    file = os.environ.get("MMREC_IDS")
    if file:
        item_ids.extend(line for line in Path(file).read_text(encoding="utf-8").splitlines() if line)
        return
    near: list[str | int] = []
    for _ in range(2):
        body = {"history": near[:1], "k": 200}
        answer = requests.post(f"{environment.host}/v1/recommend", json=body, headers=_headers(), timeout=60)
        answer.raise_for_status()
        near = [entry["item_id"] for entry in answer.json()["results"]]
        item_ids.extend(item_id for item_id in near if item_id not in item_ids)


def _headers() -> dict[str, str]:
    key = os.environ.get("MMREC_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _some(count: int) -> list[str | int]:
    return random.sample(item_ids, min(count, len(item_ids)))


def _caption() -> str:
    return " ".join(random.choices(WORDS, k=6))


def _picture() -> dict[str, str]:
    """Return a small JPEG that nobody sent before."""
    data = io.BytesIO()
    Image.effect_noise((96, 96), random.uniform(20, 120)).convert("RGB").save(data, "JPEG")
    return {"base64": base64.b64encode(data.getvalue()).decode("ascii")}


class Reader(HttpUser):
    """Somebody's feed: mostly recommendations and scores, now and then a search or a new post."""

    wait_time = between(0.05, 0.5)

    def on_start(self) -> None:
        """Bear a key, and be somebody."""
        self.client.headers.update(_headers())
        self.user_id = f"locust-{uuid.uuid4().hex[:8]}"
        self.shown: list[str | int] = _some(1)

    @task(8)
    def recommend(self) -> None:
        """Open the feed."""
        body = {"user_id": self.user_id, "k": K}
        answer = self.client.post("/v1/recommend", json=body, name="recommend")
        if answer.ok:
            self.shown = [entry["item_id"] for entry in answer.json()["results"]] or self.shown

    @task(5)
    def score(self) -> None:
        """Have candidates of another system ranked."""
        body = {"history": _some(HISTORY), "candidates": _some(CANDIDATES)}
        self.client.post("/v1/score", json=body, name=f"score, {CANDIDATES} ids")

    @task(2)
    def score_posts(self) -> None:
        """Have new posts ranked that nobody published yet."""
        posts = [{"caption": _caption(), "image": _picture()} for _ in range(3)]
        self.client.post("/v1/score", json={"history": _some(HISTORY), "candidates": posts}, name="score, 3 raw posts")

    @task(3)
    def search(self) -> None:
        """Search for words."""
        self.client.post("/v1/search", json={"text": _caption(), "k": K}, name="search, text")

    @task(2)
    def similar(self) -> None:
        """Look at what is near a post."""
        self.client.get(f"/v1/items/{random.choice(self.shown)}/similar", name="similar")

    @tag("write")
    @task(4)
    def feedback(self) -> None:
        """Like something that was shown."""
        event = {"user_id": self.user_id, "item_id": random.choice(self.shown)}
        self.client.post("/v1/feedback", json={"events": [event]}, name="feedback")

    @tag("write")
    @task(1)
    def publish(self) -> None:
        """Publish a post, and find it."""
        item_id, caption = f"locust-{random.randrange(200)}", f"{_caption()} {uuid.uuid4().hex[:6]}"
        self.client.put(f"/v1/items/{item_id}", json={"caption": caption, "image": _picture()}, name="publish")
