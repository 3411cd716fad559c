"""An ablation trains what it says, compares in pairs, and goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ablation
import numpy as np
import pytest
import yaml

from mmrec.evaluation.comparison import compare
from mmrec.run_folder import RunFolder
from tests.tiny_run import TinyEncoders, TinyFeed, tiny_config, write_config


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words, "--device", "cpu"])
    return ablation.main()


def test_variants_are_trained_and_compared_in_pairs(
    tiny_feed: TinyFeed,
    tiny_encoders: TinyEncoders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "config.yaml", tiny_config(tiny_encoders, train={"epochs": 1}))
    variants = tmp_path / "variants.yaml"
    variants.write_text(yaml.safe_dump({"no ids": ["encoders.item_id=none"]}), encoding="utf-8")
    out = tmp_path / "out"
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


def test_a_mean_over_seeds_is_a_mean_case_by_case(tiny_run: Path) -> None:
    from mmrec.commands.evaluate import evaluate_run

    evaluate_run(tiny_run, knockouts=False, device="cpu")
    setting = ablation.CaseTable.load(RunFolder(tiny_run).evaluation("validation")).settings[0]
    one = ablation.answers([tiny_run], "validation", setting)
    twice = ablation.answers([tiny_run, tiny_run], "validation", setting)
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
