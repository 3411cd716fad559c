"""The benchmark runs, says what it found, and compares with peers that compute what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import benchmark
import numpy as np
import pytest
import torch
from benchmarks.evaluate import VectorScorer, random_cases
from benchmarks.made_feed import HM_LIKE, ML1M_LIKE, MadeFeed, batch_of, reader_of
from benchmarks.measure import Row, alternate, extra_memory, ratios
from benchmarks.memory import extra_mb as step_mb
from benchmarks.processes import afresh
from benchmarks.softmax import bare_products, extra_mb
from benchmarks.train import measure_waiting
from field.evaluation import ranks_by_sorting
from field.training import PaddedModel

from mmrec.evaluation.ranking import Setting, rank_cases

ROOT = Path(__file__).parents[2]


def test_small_benchmark_prints_every_row_and_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "softmax", "evaluate"]
    ask = ["--size", "small", "--rounds", "1", "--json", str(out)]
    done = subprocess.run([*command, *ask], capture_output=True, text=True, check=True, cwd=tmp_path)
    document = json.loads(out.read_text())
    assert {row["part"] for row in document["rows"]} == {"softmax", "evaluate"}
    assert document["failed"] == {}
    assert done.stdout.count(document["machine"]) == 1
    for row in document["rows"]:
        assert row["what"] in done.stdout
        assert np.isfinite([row["median"], row["lowest"], row["highest"]]).all()
    exact = [row for row in document["rows"] if row["unit"] == "share"]
    assert [row["median"] for row in exact] == [1.0]


def test_training_is_measured_in_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    ask = ["--size", "small", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", *ask])
    benchmark.main()
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {row["part"] for row in rows} == {"train"}
    for row in rows:
        assert row["what"] in printed
        assert np.isfinite([row["median"], row["lowest"], row["highest"]]).all()
    for depth in ("full fine-tuning", "trunk cached"):
        for likeness in (HM_LIKE, ML1M_LIKE):
            case = {row["what"] for row in rows if depth in row["what"] and likeness.name in row["what"]}
            assert {what.split(",")[0].split(" with ")[0] for what in case} == {
                "step over the encoders alone",
                "share of the matrix peak",
                "share of a step that waits for the loader",
                "faster than a padded step",
            }


def test_a_part_that_dies_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("softmax", "something", (1.0,), target=0.5).as_dict()

    def run(words: list[str], *, without: str) -> int:
        if words[0] == "train":
            return -9
        Path(words[words.index("--json") + 1]).write_text(json.dumps({"rows": [row]}), encoding="utf-8")
        return 0

    monkeypatch.setattr(benchmark, "_run", run)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", "softmax", "--json", str(tmp_path / "out.json")])
    assert benchmark.main() == 1
    assert "train     ended with -9 before it was over" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["failed"] == {"train": -9}
    assert document["rows"] == [row]


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "trian"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bound", "target", "met"),
    [("at least", 2.0, True), ("at least", 2.1, False), ("at most", 1.9, False), ("at most", None, None)],
)
def test_a_row_is_judged_by_its_median(bound: str, target: float | None, met: bool | None) -> None:
    row = Row("part", "what", (9.0, 1.0, 2.0), bound=bound, target=target)
    assert (row.median, row.met) == (2.0, met)
    assert ("NO" in str(row)) == (met is False)


def test_sides_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "abbaabba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert ratios([6.0, 8.0], [3.0, 2.0]) == (2.0, 4.0)


def test_something_is_done_before_every_turn() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    alternate(sides, rounds=1, before=lambda: order.append("-"))
    assert "".join(order) == "-a-b-b-a"


class TestExtraMemory:
    def test_what_was_freed_before_counts_when_it_is_used_again(self) -> None:
        """Small blocks stay in the heap, where a block above them keeps them from being given back."""
        freed = [np.ones(10_000) for _ in range(1000)]
        above = np.ones(10_000)
        del freed
        with extra_memory("cpu") as memory:
            used = [np.ones(10_000) for _ in range(1000)]
        assert memory["mb"] > 70
        assert len(used) + len(above) == 11_000

    def test_a_call_is_measured_in_a_process_of_its_own(self) -> None:
        """512 targets of one thread each have room for scores and probabilities, 512 x 1024 numbers each."""
        assert 2 < afresh(extra_mb, "small", "bank", device="cpu") < 100
        assert 2 < afresh(extra_mb, "small", "full", device="cpu") < 100

    def test_a_step_that_keeps_everything_takes_more(self) -> None:
        sliced, whole = (afresh(step_mb, "512", at_once, device="cpu") for at_once in ("32", "0"))
        assert 2 * sliced < whole


def test_receiving_a_batch_is_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        def receive(self, device: torch.device) -> str:
            time.sleep(0.03)
            return f"batch on {device}"

    def sent(batches: Iterator[int], device: torch.device) -> Iterator[Late]:
        return (Late() for _ in batches)

    monkeypatch.setattr(import_module("benchmarks.train"), "send_ahead", sent)
    learnt: list[str] = []

    def learn(batch: str) -> None:
        learnt.append(batch)
        time.sleep(0.01)

    trial = SimpleNamespace(device=torch.device("cpu"), reader=None, batch=lambda number, reader: number, learn=learn)
    (row,) = measure_waiting(trial, size="cpu", what="made")  # type: ignore[arg-type]
    assert set(learnt) == {"batch on cpu"}
    assert 0.5 < row.median < 0.95
    assert row.met is False


def test_the_fields_ranks_are_ours() -> None:
    cases, histories = random_cases(40, 60)
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(count, 8, generator=generator) for count in (40, 60))
    ours = rank_cases(VectorScorer(users, items), cases, histories, Setting("filtered", filter_seen=True))
    theirs = ranks_by_sorting(users, items, cases, histories)
    assert len(ours.cases) > 20
    assert ours.places.ranks.tolist() == theirs[ours.cases].tolist()


def test_bare_products_are_run_to_the_last_block_which_is_short() -> None:
    targets, items = torch.randn(5, 3), torch.randn(7, 3)
    means, gradient = bare_products(targets, items, 4, block=2)
    scores = targets @ items[6:].T
    torch.testing.assert_close(means, scores @ items[6:])
    torch.testing.assert_close(gradient[:1], scores.T @ targets)


def test_users_of_a_made_feed_collate_to_their_distinct_items() -> None:
    feed = MadeFeed.make(HM_LIKE, words=100, max_tokens=64, side=4)
    users = feed.users(16, seed=3)
    reader = reader_of(feed.text_view, feed.image_view, items=HM_LIKE.items)
    batch = batch_of(users, reader, negatives=np.array([5, 6]))
    assert sorted(batch.items.item_rows.tolist()) == sorted({*np.concatenate(users).tolist(), 5, 6})
    assert len(batch.targets) == sum(len(items) - 1 for items in users)
    padded = feed.padded(np.array([users[0][0], -1]), max_tokens=64)
    words = feed.captions[int(users[0][0])]
    assert padded[0, : len(words)].tolist() == words.tolist()
    assert not padded[0, len(words) :].any()
    assert not padded[1].any()


@pytest.mark.parametrize("negatives", ["one", "in_batch"])
def test_a_padded_model_learns(negatives: str) -> None:
    """Items 0 to 5 follow each other in a circle; whatever the loss is, it falls far below that of chance."""
    torch.manual_seed(0)
    words, pixels = torch.randn(6, 8), torch.randn(6, 8)
    model = PaddedModel(
        lambda ids: words[ids[:, 0]],
        lambda image: pixels[image[:, 0, 0, 0].long()],
        text_dim=8,
        image_dim=8,
        dim=16,
        length=4,
    )
    chosen = (torch.arange(5) + torch.arange(6).unsqueeze(1)) % 6
    slots = torch.cat([chosen, (chosen + 3) % 6], dim=1) if negatives == "one" else chosen
    ids, image = slots.reshape(-1, 1), slots.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = model(ids, image, users=6, negatives=negatives)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
