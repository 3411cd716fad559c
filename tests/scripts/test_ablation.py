"""An ablation trains what it says, compares in pairs, and goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ablation
import numpy as np
import pytest
import yaml

from mmrec.evaluation.comparison import compare
from mmrec.run_folder import RunFolder
from mmrec.storage import write_json
from tests.tiny_run import TinyEncoders, TinyFeed, tiny_config, write_config


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words, "--device", "cpu"])
    return ablation.main()


@pytest.fixture(scope="module")
def base_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is trained and evaluated."""
    from mmrec.commands.evaluate import evaluate_run

    run = tmp_path_factory.mktemp("ablation") / "base"
    shutil.copytree(tiny_run, run)
    evaluate_run(run, knockouts=False, device="cpu")
    return run


def test_variants_are_trained_and_compared_in_pairs(
    base_run: Path,
    tiny_feed: TinyFeed,
    tiny_encoders: TinyEncoders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The ablation was stopped after its first run; the other one, in processes of its own, is done here."""
    config = write_config(tmp_path / "config.yaml", tiny_config(tiny_encoders))
    variants = tmp_path / "variants.yaml"
    variants.write_text(yaml.safe_dump({"no ids": ["encoders.item_id=none"]}), encoding="utf-8")
    out = tmp_path / "out"
    shutil.copytree(base_run, out / "base-0")
    write_json(out / "base-0" / "trained.json", {"seconds": 1.0})
    words = [str(config), "--feed", str(tiny_feed.prepared), "--variants", str(variants), "--out", str(out)]
    assert run(monkeypatch, *words, "--jobs", "2") == 0
    found = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert {row["variant"] for row in found} == {"base", "no ids"}
    assert "encoders" in (out / "no_ids-0" / "config.yaml").read_text(encoding="utf-8")
    assert "item_id" not in yaml.safe_load((out / "no_ids-0" / "config.yaml").read_text(encoding="utf-8"))["encoders"]
    # With one seed the difference is that of `mmrec evaluate --against`.
    folders = [RunFolder(out / name).evaluation("validation") for name in ("no_ids-0", "base-0")]
    setting, figures = next(iter(compare(*folders).settings.items()))
    row = next(row for row in found if row["setting"] == setting and row["variant"] == "no ids")
    assert row["minus base"]["ndcg@10"] == pytest.approx(vars(figures["ndcg@10"].difference))
    assert "no ids" in capsys.readouterr().out
    # Nothing is done twice, and a further seed that is there is averaged in.
    for name in ("base", "no_ids"):
        shutil.copytree(out / f"{name}-0", out / f"{name}-1")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/trained.json")}
    assert run(monkeypatch, *words, "--seeds", "0", "1") == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    two = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert {row["seeds"] for row in two} == {2}


@pytest.mark.parametrize(
    ("done", "commands"),
    [
        ([], [["train"], ["evaluate"]]),
        (["run.json"], [["train", "--resume"], ["evaluate"]]),
        (["run.json", "trained.json"], [["evaluate"]]),
        (["run.json", "trained.json", "evaluation/validation/cases.parquet"], []),
    ],
)
def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str], commands: list[list[str]]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(ablation, "_mmrec", lambda words, log: asked.append([str(word) for word in words]))
    folder = tmp_path / "no_ids-3"
    for name in done:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    folder.mkdir(exist_ok=True)
    job = ablation.Job("no ids", 3, ("encoders.item_id=none",), folder)
    ablation.Plan(tmp_path / "config.yaml", tmp_path / "feed", "validation", "cpu").run(job)
    assert [[word for word in words if word in {"train", "evaluate", "--resume"}] for words in asked] == commands
    for words in asked:
        if words[0] == "train":
            assert {"encoders.item_id=none", "train.seed=3", str(folder), "cpu"} < set(words)
            assert (folder / "trained.json").is_file()


def test_runs_go_at_once_and_those_that_fail_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = threading.Barrier(2, timeout=60)

    def fail_the_first(job: ablation.Job) -> None:
        both.wait()
        if job.seed == 0:
            raise subprocess.CalledProcessError(1, "mmrec")

    jobs = [ablation.Job("base", seed, (), tmp_path / f"base-{seed}") for seed in (0, 1)]
    assert ablation.run_all(jobs, fail_the_first, at_once=2) == ["base-0"]
    assert f"see {tmp_path / 'base-0.log'}" in capsys.readouterr().out


def test_a_mean_over_seeds_is_a_mean_case_by_case(base_run: Path) -> None:
    setting = ablation.CaseTable.load(RunFolder(base_run).evaluation("validation")).settings[0]
    one = ablation.answers([base_run], "validation", setting)
    twice = ablation.answers([base_run, base_run], "validation", setting)
    np.testing.assert_allclose(twice.metrics["hr@10"], one.metrics["hr@10"])


@pytest.mark.parametrize("text", ["- a", "x: 3", "x: [train.epochs]"])
def test_wrong_variants_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="expected names"):
        ablation.read_variants(tmp_path / "v.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "ablation").glob("*.yaml")))
def test_the_variants_that_come_along_are_settings_of_the_configuration(path: Path) -> None:
    from mmrec.config_file import load_config

    for settings in ablation.read_variants(path).values():
        load_config(path.parents[1] / "minilm_effnet.yaml", overrides=settings)
