"""A run, its export, and services on them; imported by conftest.py."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mmrec.commands.export import export_run
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import restore
from mmrec.serving.deployment.choice import Choice, base_of
from mmrec.serving.deployment.loading import Loader, load_pair
from mmrec.serving.deployment.model_folder import ModelFolder, Places
from mmrec.serving.deployment.swapping import Models
from mmrec.serving.figures.metrics import Metrics
from mmrec.serving.http.app import build_app
from mmrec.serving.http.keys import KeyRing
from mmrec.serving.limits import Limits
from mmrec.serving.model.catalogue_index import exported_index
from mmrec.serving.model.exported import Pair
from mmrec.serving.stores.sqlite_store import SqliteStore
from mmrec.serving.trace import Trace

LIMITS = Limits(batch_seconds=0.001, threads=4)


class Server:
    """A service that is spoken to as over the network, but within this process."""

    def __init__(
        self,
        pair: Pair,
        data: Path,
        *,
        limits: Limits,
        keys: KeyRing | None,
        reveal_ids: bool,
        models: Path | None,
    ) -> None:
        self.batches: list[int] = []
        metrics = Metrics()

        def on_batch(size: int) -> None:
            self.batches.append(size)
            metrics.on_batch(size)

        store = SqliteStore(data)

        def make(pair: Pair) -> Service:
            return Service(pair, store, limits=limits, on_batch=on_batch)

        self.service = make(pair)
        restore(self.service)
        self.models = None if models is None else models_of(models, make)
        self.app = build_app(self.service, metrics=metrics, keys=keys, reveal_ids=reveal_ids, models=self.models)
        self.client = TestClient(self.app, base_url="http://localhost", raise_server_exceptions=False)

    def post(self, path: str, body: object, status: int = 200) -> dict[str, object]:
        answer = self.client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def put(self, item_id: str, body: object, status: int = 200) -> dict[str, object]:
        answer = self.client.put(f"/v1/items/{item_id}", json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def get(self, path: str, status: int = 200, **query: str | int) -> dict[str, object]:
        answer = self.client.get(path, params=query)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def results(self, path: str, body: object) -> list[dict[str, object]]:
        return list(self.post(path, body)["results"])  # type: ignore[call-overload]

    def ids(self, path: str, body: object) -> list[object]:
        return [entry["item_id"] for entry in self.results(path, body)]


Serve = Callable[..., Server]


def models_of(folder: Path, make: Callable[[Pair], Service]) -> Models | None:
    """What may take the place of the tiny run's pair."""
    given = Places(folder / "tiny", folder / "tiny-vectors", None)
    return Loader(given, ModelFolder(folder), "cpu", exported_index, make).models(
        Choice(None, "", base_of(given.vectors))
    )


def picture(seed: int = 0, *, height: int = 20, width: int = 30, kind: str = "PNG") -> bytes:
    """An encoded picture, another one for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def in_base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode("ascii")}


def trace() -> Trace:
    return Trace("test", seconds=30.0)


@pytest.fixture(scope="session")
def served_vectors(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny run, with an exact index."""
    out = tmp_path_factory.mktemp("served") / "vectors"
    export_run(tiny_run, out=out, store="faiss", index="flat", users=False, device="cpu")
    return out


@pytest.fixture(scope="session")
def pair(tiny_run: Path, served_vectors: Path) -> Pair:
    return load_pair(tiny_run, served_vectors, device="cpu")


@pytest.fixture(scope="session")
def models_folder(
    tiny_run: Path, content_run: Path, served_vectors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of two runs and their exports; tests read it."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_run, folder / "tiny")
    shutil.copytree(served_vectors, folder / "tiny-vectors")
    shutil.copytree(content_run, folder / "content")
    export_run(
        folder / "content", out=folder / "content-vectors", store="faiss", index="flat", users=False, device="cpu"
    )
    return folder


@pytest.fixture
def serve(pair: Pair, tmp_path: Path) -> Iterator[Serve]:
    """Start services; all of them end with the test."""
    with ExitStack() as stack:

        def start(
            data: str = "data",
            *,
            limits: Limits = LIMITS,
            keys: KeyRing | None = None,
            reveal_ids: bool = False,
            of: Pair = pair,
            models: Path | None = None,
        ) -> Server:
            server = Server(of, tmp_path / data, limits=limits, keys=keys, reveal_ids=reveal_ids, models=models)
            stack.enter_context(server.client)
            return server

        yield start


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve()
