"""Two processes that train one model together: the loss, gradients and runs of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrec.storage import read_json
from mmrec.training.checkpoint import checkpoints
from tests.tiny_run import NUM_USERS, TinyEncoders, TinyFeed, changed, tiny_config, write_config
from tests.training.rank_runs import STEP_CASES

ROOT = Path(__file__).parent.parent.parent
TIMINGS = ("targets_per_second", "data_wait_share")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: TinyEncoders, rich_feed: TinyFeed) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    config = tiny_config(tiny_encoders, train={"batch_users": 3, "checkpoint_steps": 2})
    file = write_config(root / "config.yaml", changed(config, objective={"bank_refresh": 3}))
    command = [sys.executable, "-m", "tests.training.rank_runs", str(root), str(rich_feed.prepared), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder / "checkpoints")[-1] / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name not in TIMINGS and not name.startswith("work/")}
        for record in records
    ]


def complaints(runs: Path) -> str:
    log = runs / "log.txt"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("name", STEP_CASES)
def test_loss_and_gradients_are_those_of_one_process(runs: Path, name: str) -> None:
    ranks = [read_json(runs / f"steps-{rank}.json")[name] for rank in (0, 1)]
    assert [[batch["own_users"] for batch in batches] for batches in ranks] == [[10, 1], [9, 0]]
    for first, second in zip(*ranks, strict=True):
        assert first["loss"] < 1e-12
        assert first["parts"] < 1e-12
        assert first["gradient"] < 1e-12 * max(first["size"], 1.0)
        assert first["size"] > 1e-3
        assert first["same_names"] == 1
        assert first["targets"] == 0
        assert first["contrastive"] > 0
        # No item is encoded twice, and none is left out.
        assert first["items_of_ranks"] == first["items"] == first["own_items"] + second["own_items"]
        assert abs(first["own_items"] - second["own_items"]) <= 1


def test_a_run_is_that_of_one_process(runs: Path) -> None:
    one, two = weights(runs / "one"), weights(runs / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    for alone, shared in zip(metrics(runs / "one"), metrics(runs / "two"), strict=True):
        assert alone == pytest.approx(shared, rel=1e-3, abs=1e-4)


def test_ranks_share_the_questions_of_a_validation(runs: Path) -> None:
    assert [int((runs / f"questions-{rank}.txt").read_text()) for rank in (0, 1)] == [NUM_USERS // 2] * 2


@pytest.mark.parametrize("name", ["killed", "first_killed", "interrupted"])
def test_a_rank_that_stops_ends_all_and_the_run_goes_on(runs: Path, name: str) -> None:
    endings = read_json(runs / "endings.json")
    assert endings["dropout"] == [["finished", "finished"]], complaints(runs)
    ended, resumed = endings[name]
    dead = {"killed": ["failed", "SIGKILL"], "first_killed": ["SIGKILL", "failed"], "interrupted": ["interrupted"] * 2}
    assert ended == dead[name]
    assert resumed == ["finished", "finished"]
    expected, found = weights(runs / "dropout"), weights(runs / name)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    assert metrics(runs / name) == metrics(runs / "dropout")


def test_sharded_encoders_train_alike(runs: Path) -> None:
    endings = read_json(runs / "endings.json")
    assert endings["live"] == [["finished"]]
    assert endings["sharded"] == [["finished", "finished"]], complaints(runs)
    assert endings["sharded_interrupted"] == [["interrupted", "interrupted"], ["finished", "finished"]], complaints(
        runs
    )
    alone, sharded, resumed = (weights(runs / name) for name in ("live", "sharded", "sharded_interrupted"))
    assert any("text" in name for name in alone)
    assert alone.keys() == sharded.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(resumed[name], sharded[name]), name


def test_sharded_blocks_run_as_often_as_each_rank_needs(runs: Path) -> None:
    assert read_json(runs / "endings.json")["caption_by_caption"] == [["finished", "finished"]], complaints(runs)
    first, second = (json.loads((runs / f"runs-{rank}.json").read_text()) for rank in (0, 1))
    assert min(first) > 1
    assert max(second) == 1
    alone, sharded = weights(runs / "live"), weights(runs / "caption_by_caption")
    assert alone.keys() == sharded.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_rank_that_lacks_a_modality_keeps_in_step(runs: Path) -> None:
    endings = read_json(runs / "endings.json")
    assert [endings[name] for name in ("hidden", "hidden_sharded")] == [[["finished", "finished"]]] * 2, complaints(
        runs
    )
    whole, sharded = weights(runs / "hidden"), weights(runs / "hidden_sharded")
    for name, tensor in whole.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_with_fewer_processes(runs: Path) -> None:
    endings = read_json(runs / "endings.json")
    assert endings["fewer"] == [["interrupted", "interrupted"], ["finished"]]
    one, fewer = weights(runs / "one"), weights(runs / "fewer")
    for name, tensor in one.items():
        torch.testing.assert_close(fewer[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_command_under_a_launcher(runs: Path, rich_feed: TinyFeed) -> None:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "mmrec.cli",
    ]
    train = ["train", str(runs / "config.yaml"), "--feed", str(rich_feed.prepared), "--out", str(runs / "launched")]
    ask = ["--set", "train.epochs=1", "--json"]
    done = subprocess.run([*launcher, *train, *ask], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # the first process alone speaks
    assert (summary["processes"], summary["epochs"], summary["device"]) == (2, 1, "cpu:0")
    assert done.stderr.count("validation ndcg@10") == 1
    assert checkpoints(runs / "launched" / "checkpoints")
