"""Killed and resumed equals uninterrupted, bit for bit, wherever the kill falls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmrec.storage import read_json
from mmrec.training.checkpoint import checkpoints

ROOT = Path(__file__).parent.parent.parent
TIMINGS = ("targets_per_second", "data_wait_share")
KILLED = {
    "before_first_step": ["SIGKILL", "finished"],
    "in_forward_half_a_group": ["SIGKILL", "finished"],
    "after_step_before_checkpoint": ["SIGKILL", "finished"],
    "in_half_a_tensor_file": ["SIGKILL", "finished"],
    "before_rename": ["SIGKILL", "finished"],
    "before_best_pointer": ["SIGKILL", "finished"],
    "between_pointer_and_pruning": ["SIGKILL", "finished"],
    "in_the_middle_of_pruning": ["SIGKILL", "finished"],
    "in_validation": ["SIGKILL", "finished"],
    "in_bank_refresh": ["SIGKILL", "finished"],
    "interrupt_in_half_a_group": ["interrupted", "finished"],
    "interrupt_in_validation": ["interrupted", "finished"],
    "again_and_again": ["SIGKILL"] * 5 + ["finished"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.training.crash_runs", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


def metrics(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def test_uninterrupted_run_did_something(runs: Path) -> None:
    folder = runs / "uninterrupted"
    assert json.loads((folder / "endings.json").read_text()) == ["finished"]
    result = read_json(folder / "result.json")
    # Seven batches in groups of two make four steps an epoch; the one without targets is skipped in each.
    assert (result["steps"], result["skipped"]) == (16, 4)
    records = metrics(folder)
    assert [record["step"] for record in records] == [
        1,
        2,
        3,
        4,
        4,
        5,
        6,
        7,
        8,
        8,
        9,
        10,
        11,
        12,
        12,
        13,
        14,
        15,
        16,
        16,
    ]


@pytest.mark.parametrize("name", KILLED)
def test_resumed_equals_uninterrupted(runs: Path, name: str) -> None:
    folder, reference = runs / name, runs / "uninterrupted"
    assert json.loads((folder / "endings.json").read_text()) == KILLED[name]

    result, expected = read_json(folder / "result.json"), read_json(reference / "result.json")
    assert result == expected
    assert metrics(folder) == metrics(reference)

    found, wanted = checkpoints(folder / "checkpoints"), checkpoints(reference / "checkpoints")
    assert [path.name for path in found] == [path.name for path in wanted]
    for path, other in zip(found, wanted, strict=True):
        files = sorted(file.name for file in other.iterdir())
        assert sorted(file.name for file in path.iterdir()) == files
        for file in files:
            if file != "state.json":
                assert (path / file).read_bytes() == (other / file).read_bytes(), (path.name, file)
    pointer = read_json(folder / "checkpoints" / "best.json")
    assert pointer == read_json(reference / "checkpoints" / "best.json")
    assert not [path for path in (folder / "checkpoints").iterdir() if ".partial" in path.name or ".old" in path.name]


def test_ctrl_c_loses_no_batch(runs: Path) -> None:
    left = {name: json.loads((runs / name / "left.json").read_text())[0] for name in KILLED}
    assert left["before_first_step"] == []
    # Pressed in batch 4 of the second epoch, the first of its group of two: five batches are done.
    assert left["interrupt_in_half_a_group"] == ["epoch-0001-batch-000005"]
    # A kill in the loss of that group's other batch goes back to the step before, two batches of four done.
    assert left["in_forward_half_a_group"] == ["epoch-0001-batch-000004"]


def test_frozen_weights_are_referred_to_not_stored(runs: Path) -> None:
    newest = checkpoints(runs / "uninterrupted" / "checkpoints")[-1]
    assert set(load_file(newest / "model.safetensors")) == {"items.weight", "mix.weight", "mix.bias", "forwards"}
    state = read_json(newest / "state.json")["state"]
    assert isinstance(state, dict)
    assert state["base"] == {"image": "a1b2"}
    assert (newest / "config.yaml").read_bytes() == b"epochs: 4\n"
