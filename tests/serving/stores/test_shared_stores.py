"""The command line on a database, with several processes: what one of them takes in is everybody's, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrec.cli import main
from mmrec.errors import ConfigError
from mmrec.process import SWITCH
from mmrec.serving.stores.store_place import StorePlace
from tests.databases import WITHOUT_POSTGRES, WITHOUT_QDRANT, PostgresServer, local_qdrant
from tests.serving.test_command import ENVIRONMENT, Process
from tests.serving.test_workers import INDEX, WORKERS, Line, children, lines_to_each, until


def answer(line: Line, method: str, path: str, body: object = None) -> dict[str, object]:
    status, text = line.ask(method, path, body)
    assert status == 200, text
    return dict(json.loads(text))


@pytest.fixture
def process(
    postgres: PostgresServer, tiny_run: Path, served_vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Process]:
    # Not as an option: an address holds a password, which the list of processes would show.
    monkeypatch.setitem(ENVIRONMENT, "MMREC_STORE", postgres.url)
    started = Process(tiny_run, served_vectors, tmp_path, "--workers", WORKERS, "--index", "store")
    until(lambda: {INDEX.format(number) for number in range(WORKERS)} <= set(Line(started).figures()))
    yield started
    if started.process.poll() is None:
        started.end(signal.SIGKILL)


@WITHOUT_POSTGRES
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not show its processes")
def test_postgres_serves_two_processes_one_of_which_is_killed(process: Process) -> None:
    one, other = lines_to_each(process)
    answer(one, "PUT", "/v1/items/shared", {"caption": "a post of both"})
    for line in (one, other):
        until(lambda line=line: line.ask("GET", "/v1/items/shared")[0] == 200)
        found = answer(line, "POST", "/v1/search", {"text": "a post of both", "k": 500})
        assert "shared" in [row["item_id"] for row in found["results"]]  # type: ignore[attr-defined]
    before = children(process.process.pid)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(children(process.process.pid)) - set(before)) == 1)
    lines = lines_to_each(process)
    event = {"user_id": "both", "item_id": "shared"}
    assert answer(lines[0], "POST", "/v1/feedback", {"events": [event]})["accepted"] == 1
    for line in lines:
        until(lambda line=line: line.ask("GET", "/v1/items/shared")[0] == 200)
        shown = answer(line, "POST", "/v1/recommend", {"user_id": "both", "k": 500})
        assert shown["user"] == {"kind": "known", "history_length": 1, "unused": []}
        assert "shared" in [row["item_id"] for row in shown["results"]]  # type: ignore[attr-defined]
    assert process.end(signal.SIGTERM) == 0
    assert "Traceback" not in process.errors()
    assert not (process.folder / "mmrec-data").exists(), "nothing beside the database"


@WITHOUT_QDRANT
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_files_of_qdrants_local_mode_are_refused(
    tiny_run: Path,
    served_vectors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mmrec.serving.stores.qdrant_store import QdrantStore

    QdrantStore(local_qdrant(tmp_path / "local")).close()
    for text in (str(tmp_path / "local"), f"qdrant+{tmp_path}/local", f"qdrant+file://{tmp_path}/local"):
        with pytest.raises(ConfigError, match="start a Qdrant server"):
            StorePlace.parse(text)
    options = ["--vectors", served_vectors, "--store", tmp_path / "local", "--workers", 2]
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(sys, "argv", ["mmrec", "serve", *map(str, [tiny_run, *options])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "one process only" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "local" / "mmrec.sqlite").exists()
