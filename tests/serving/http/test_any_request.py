"""Requests that nobody would write by hand, made from the description: every one gets an answer that it promises.

The same without end, against a running service:

    schemathesis run http://127.0.0.1:8000/openapi.json --header "Authorization: Bearer KEY" --max-examples 500 \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import just

from mmrec.serving.model.exported import Pair
from tests.serving.served import LIMITS, Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES = 3
"""Requests of each route, right and wrong ones each."""
FEW = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def address(pair: Pair, models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that listens, over a real socket."""
    data = tmp_path_factory.mktemp("any") / "data"
    limits = replace(LIMITS, request_seconds=120.0)
    app = Server(pair, data, limits=limits, keys=None, reveal_ids=False, models=models_folder).app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


def test_no_request_breaks_it_or_gets_what_is_not_described(address: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses: dict[str, set[int]] = {}

    def ask(case: object, label: str) -> None:
        response = case.call()  # type: ignore[attr-defined]
        statuses.setdefault(label, set()).add(response.status_code)
        case.validate_response(response, checks=checks)  # type: ignore[attr-defined]

    for result in schema.get_all_operations():
        operation = result.ok()
        # Where there is nothing to write, nothing can be written wrong.
        wrong = operation.body or operation.query
        for mode in GenerationMode if wrong else [GenerationMode.POSITIVE]:
            FEW(given(case=operation.as_strategy(generation_mode=mode), label=just(operation.label))(ask))()
    assert len(statuses) >= 12
    assert all(status < 500 for found in statuses.values() for status in found)
    assert sum(200 in found for found in statuses.values()) > len(statuses) / 2, statuses
    assert sum(422 in found for found in statuses.values()) > len(statuses) / 3, statuses
