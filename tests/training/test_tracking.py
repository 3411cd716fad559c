from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.training.tracking import JsonLinesTracker, MlflowTracker, TensorBoardTracker, Tracker, WandbTracker


def lines(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonLinesTracker(path)
    assert isinstance(tracker, Tracker)
    tracker.start(step=0, records=0)
    assert path.read_text() == ""
    tracker.log(1, {"loss": 0.1, "ndcg@10": math.nan})
    assert lines(path) == [{"step": 1, "loss": 0.1, "ndcg@10": None}]


def test_json_lines_resumed_hold_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesTracker(path)
    first.start(step=0, records=0)
    for step in (1, 2, 2, 3):
        first.log(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    second = JsonLinesTracker(path)
    second.start(step=2, records=2)
    # The second record of step 2, record 3 of the file, came after the checkpoint.
    assert [record["step"] for record in lines(path)] == [1, 2]
    second.log(3, {"loss": 3.0})
    assert [record["step"] for record in lines(path)] == [1, 2, 3]


def test_json_lines_half_line_is_never_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    JsonLinesTracker(path).start(step=2, records=5)
    assert path.read_text() == '{"step": 1}\n'


def test_json_lines_say_what_is_wrong_with_the_disk(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path / "metrics.jsonl")
    tracker.start(step=0, records=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ArtifactError, match="room to write metrics"):
        tracker.log(1, {"loss": 1.0})


def test_tensorboard_reads_back_and_forgets_what_is_void(tmp_path: Path) -> None:
    for start, steps in [(0, (1, 2, 3)), (1, (2,))]:
        tracker = TensorBoardTracker(tmp_path)
        assert isinstance(tracker, Tracker)
        tracker.start(step=start, records=start)
        for step in steps:
            tracker.log(step, {"loss": float(10 * start + step)})
        tracker.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 12.0)]


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    makers = {
        "wandb": lambda: WandbTracker(tmp_path, project="p", name="n", settings={}),
        "mlflow": lambda: MlflowTracker(tmp_path, experiment="e", name="n", settings={}),
    }
    with pytest.raises(MissingExtraError, match=rf"mmrec\[{library}\]"):
        makers[library]()


class FakeWandb(types.ModuleType):
    """Records what the library was asked, by run id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: list[str] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(
        self, *, project: str, name: str, id: str, resume: str, dir: str, config: Mapping[str, object]
    ) -> FakeWandb:
        assert (project, name, resume, dict(config)) == ("feeds", "hm", "allow", {"train.epochs": 3})
        assert Path(dir).is_dir()
        self.opened.append(id)
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_run_is_continued_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step, records in [(0, 0), (4, 4), (0, 0)]:
        tracker = WandbTracker(tmp_path / "run", project="feeds", name="hm", settings={"train.epochs": 3})
        tracker.start(step=step, records=records)
        tracker.log(step + 1, {"loss": 0.5})
        tracker.close()
    first, resumed, fresh = fake.opened
    assert first == resumed
    assert fresh != first
    assert fake.logged == [(1, {"loss": 0.5}), (5, {"loss": 0.5}), (1, {"loss": 0.5})]
    assert fake.finished == 3


class FakeMlflowClient:
    runs: list[str] = []
    params: list[tuple[str, str, object]] = []
    metrics: list[tuple[str, str, float, int]] = []
    states: list[tuple[str, str]] = []

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "feeds"

    def create_experiment(self, name: str) -> str:
        return f"experiment of {name}"

    def create_run(self, experiment: str, *, run_name: str) -> types.SimpleNamespace:
        assert (experiment, run_name) == ("experiment of feeds", "hm")
        self.runs.append(f"run {len(self.runs)}")
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=self.runs[-1]))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.states.append((run_id, status))

    def log_param(self, run_id: str, key: str, value: object) -> None:
        self.params.append((run_id, key, value))

    def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> None:
        self.metrics.append((run_id, key, value, step))

    def set_terminated(self, run_id: str) -> None:
        self.states.append((run_id, "FINISHED"))


def test_mlflow_run_is_continued_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("mlflow")
    monkeypatch.setattr(fake, "MlflowClient", FakeMlflowClient, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for step, records in [(0, 0), (4, 4)]:
        tracker = MlflowTracker(tmp_path, experiment="feeds", name="hm", settings={"train.epochs": 3})
        tracker.start(step=step, records=records)
        tracker.log(step + 1, {"validation/ndcg@10": 0.5})
        tracker.close()
    assert FakeMlflowClient.runs == ["run 0"]
    assert FakeMlflowClient.params == [("run 0", "train.epochs", 3)]
    assert FakeMlflowClient.metrics == [
        ("run 0", "validation/ndcg_at_10", 0.5, 1),
        ("run 0", "validation/ndcg_at_10", 0.5, 5),
    ]
    assert FakeMlflowClient.states == [("run 0", "FINISHED"), ("run 0", "RUNNING"), ("run 0", "FINISHED")]
