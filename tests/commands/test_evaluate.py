"""Evaluation as a command: a report beside baselines, knock-outs of what the model reads, and honest comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from mmrec import Post
from mmrec.commands.evaluate import Evaluated, compare_runs, content_vectors, evaluate_run
from mmrec.commands.train import train_run
from mmrec.config import validate
from mmrec.errors import ArtifactError, MmrecError
from mmrec.evaluation.crossmodal import FROZEN, CrossModal, choose_questions
from mmrec.feed.splits import TEST_COLD, VALIDATION_COLD, Split
from mmrec.inference.recommender import Recommender
from mmrec.notices import ignore, silent_meter
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json
from tests.tiny_run import (
    CAPTION_ONLY,
    NUM_USERS,
    PICTURE_ONLY,
    TWO_PICTURES,
    TinyEncoders,
    TinyFeed,
    changed,
    tiny_config,
)


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Evaluated:
    return evaluate_run(run, part="test", device="cpu")


class TestReport:
    def test_files(self, run: Path, evaluated: Evaluated) -> None:
        folder = RunFolder(run).evaluation("test")
        assert {"report.json", "report.html", "cases.parquet"} <= {path.name for path in folder.iterdir()}
        assert evaluated.page == folder / "report.html"
        assert "<html" in evaluated.page.read_text(encoding="utf-8")
        plain = json.loads(json.dumps(evaluated.report.to_dict(), allow_nan=False))
        assert read_json(folder / "report.json").items() >= plain.items()

    def test_model_beside_its_baselines(self, evaluated: Evaluated) -> None:
        names = [row.scorer for row in evaluated.report.headline.rows]
        assert names[0] == "model"
        assert {"popularity", "co-occurrence"} <= set(names)
        assert any("kNN" in name for name in names)

    def test_knockouts_of_what_the_model_reads(self, evaluated: Evaluated) -> None:
        assert [entry.name for entry in evaluated.report.knockouts] == [
            "drop_caption",
            "drop_picture",
            "shuffle_pictures",
        ]

    def test_ranks_are_those_of_the_scores(
        self, run: Path, evaluated: Evaluated, recommender: Recommender, tiny_feed: TinyFeed
    ) -> None:
        """By hand for one user: history without the target, its items left out, rank by score."""
        cases = pd.read_parquet(RunFolder(run).evaluation("test") / "cases.parquet")
        setting = evaluated.report.headline.name
        row = cases[(cases["setting"] == setting) & (cases["user_id"] == "u04")].iloc[0]
        interactions = pd.read_parquet(tiny_feed.raw / "interactions.parquet").query("user_id == 'u04'")
        *history, target = interactions["item_id"]
        assert row["item_id"] == target
        others = [f"p{n:02}" for n in range(30) if f"p{n:02}" not in {*history, target}]
        scores = recommender.score(history=history, candidates=[target, *others])["score"].to_numpy(dtype=np.float64)
        assert row["above"] == (scores[1:] > scores[0]).sum()
        assert len(cases[cases["setting"] == setting]) == NUM_USERS

    def test_without_knockouts_on_validation(self, run: Path) -> None:
        found = evaluate_run(run, part="validation", device="cpu", knockouts=False)
        assert found.report.knockouts == []
        assert found.page.parent.name == "validation"


class TestModelsThatReadLess:
    @pytest.mark.parametrize(
        ("kept", "knockouts"),
        [
            (["text"], []),
            (["item_id"], []),
            (["image"], ["shuffle_pictures"]),
            (["text", "item_id"], ["drop_caption"]),
        ],
    )
    def test_only_knockouts_that_leave_something(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path, kept: list[str], knockouts: list[str]
    ) -> None:
        values = changed(tiny_config(tiny_encoders), train={"epochs": 1}).model_dump(mode="json")
        encoders = {name: values["encoders"][name] for name in kept}
        config = validate(values | {"encoders": encoders}, where="test")
        train_run(config, feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu")
        report = evaluate_run(tmp_path / "run", part="test", device="cpu").report
        assert [entry.name for entry in report.knockouts] == knockouts
        has_knn = any("kNN" in row.scorer for row in report.headline.rows)
        assert has_knn == (kept != ["item_id"])
        assert report.crossmodal is None


class TestCaptionsAgainstPictures:
    def test_model_beside_frozen_features_in_both_directions(self, evaluated: Evaluated) -> None:
        found = crossmodal(evaluated)
        # 28 posts have both; half of them are asked about.
        assert (found.questions, found.candidates, found.others, found.unseen) == (14, 14, 14, False)
        assert [table.direction for table in found.tables] == ["caption to picture", "picture to caption"]
        for table in found.tables:
            assert [row.scorer for row in table.rows] == ["model", FROZEN]
            assert list(table.rows[1].ahead) == ["recall@1", "recall@10", "recall@50"]
            assert table.chance["recall@50"] == 1

    def test_each_post_is_one_that_nobody_has_seen(
        self, evaluated: Evaluated, recommender: Recommender, tiny_feed: TinyFeed
    ) -> None:
        """By hand, through the vectors of new posts: no ids, no bias, one modality at a time."""
        catalogue = recommender.assembly.catalogue
        ids = catalogue.item_ids.tolist()
        both = np.array([row for row, item_id in enumerate(ids) if item_id not in (CAPTION_ONLY, PICTURE_ONLY)])
        questions = choose_questions(both, np.zeros(len(ids), dtype=bool))
        assert questions is not None
        asked = [ids[row] for row in questions.rows]
        captions = [tiny_feed.caption(item_id) for item_id in asked]
        dim = recommender.assembly.model.dim
        text = recommender.embed([Post(caption=caption) for caption in captions])[:, :dim]
        image = recommender.embed([Post(image=pictures(tiny_feed, item_id)) for item_id in asked])[:, :dim]
        cosines = (text @ image.T) / np.outer(np.linalg.norm(text, axis=1), np.linalg.norm(image, axis=1))
        for table, scores in zip(crossmodal(evaluated).tables, (cosines, cosines.T), strict=True):
            ranks = []
            for row, caption in enumerate(captions):
                right = np.array([other == caption for other in captions])
                ranks.append(1 + int((scores[row][~right] >= scores[row][right].max()).sum()))
            assert table.rows[0].median_rank == np.median(ranks)
            assert table.rows[0].recall["recall@1"].mean == pytest.approx(np.mean([rank == 1 for rank in ranks]))

    def test_posts_that_training_never_saw_and_that_this_part_may_ask_about(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed = shutil.copytree(tiny_feed.prepared, tmp_path / "feed")
        write_split(feed, name="new", kind="cold_items", choices=SplitChoices(cold_share=0.4))
        config = changed(tiny_config(tiny_encoders), feed={"split": "new"}, train={"epochs": 1})
        train_run(config, feed=feed, out=tmp_path / "run", device="cpu")
        monkeypatch.setattr("mmrec.evaluation.crossmodal.MIN_UNSEEN", 2)
        roles = Split.load(feed, "new").item_roles
        both = ~np.isin(Recommender.load(tmp_path / "run").assembly.catalogue.item_ids, [CAPTION_ONLY, PICTURE_ONLY])
        for part, role in (("validation", VALIDATION_COLD), ("test", TEST_COLD)):
            found = crossmodal(evaluate_run(tmp_path / "run", part=part, device="cpu", knockouts=False))  # type: ignore[arg-type]
            assert found.unseen
            assert found.questions == ((roles == role) & both).sum() > 1
            assert found.questions + found.others == both.sum()


def crossmodal(evaluated: Evaluated) -> CrossModal:
    assert evaluated.report.crossmodal is not None
    return evaluated.report.crossmodal


def pictures(feed: TinyFeed, item_id: str) -> list[Path]:
    return [feed.image(item_id), *([feed.image(item_id, 1)] if item_id == TWO_PICTURES else [])]


class TestCompare:
    def test_with_itself(self, run: Path, evaluated: Evaluated) -> None:
        comparison = compare_runs(run, run, part="test")
        assert json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
        assert set(comparison.settings) == {setting.name for setting in evaluated.report.settings}
        for metrics in comparison.settings.values():
            for entry in metrics.values():
                assert entry.first == entry.second
                assert (entry.difference.mean, entry.difference.low, entry.difference.high) == (0, 0, 0)

    def test_with_another(self, run: Path, evaluated: Evaluated, content_run: Path, tmp_path: Path) -> None:
        other = shutil.copytree(content_run, tmp_path / "other")
        report = evaluate_run(other, part="test", device="cpu", knockouts=False).report
        name = report.headline.name
        entry = compare_runs(run, other, part="test").settings[name]["ndcg@10"]
        backwards = compare_runs(other, run, part="test").settings[name]["ndcg@10"]
        assert entry.difference.mean == pytest.approx(entry.first - entry.second)
        assert backwards.difference.mean == pytest.approx(-entry.difference.mean)
        assert entry.first != entry.second

    def test_with_itself_in_another_format(self, run: Path, evaluated: Evaluated) -> None:
        narrow = evaluate_run(run, part="test", device="cpu", compute_dtype="bfloat16", knockouts=False)
        assert narrow.page == RunFolder(run).evaluation("test", "bfloat16") / "report.html"
        assert narrow.page.parent != evaluated.page.parent
        assert "bfloat16" in narrow.page.read_text(encoding="utf-8")
        entry = compare_runs(run, run, part="test", compute_dtype="bfloat16").settings[narrow.report.headline.name]
        assert (
            entry["ndcg@10"].second
            == compare_runs(run, run, part="test").settings[narrow.report.headline.name]["ndcg@10"].first
        )

    def test_what_was_not_evaluated(self, run: Path, evaluated: Evaluated, content_run: Path) -> None:
        with pytest.raises(ArtifactError, match="mmrec evaluate .* --split test"):
            compare_runs(run, content_run, part="test")

    def test_other_cases(self, run: Path, evaluated: Evaluated, tmp_path: Path) -> None:
        other = shutil.copytree(run, tmp_path / "other")
        path = RunFolder(other).evaluation("test") / "cases.parquet"
        cases = pd.read_parquet(path)
        cases.loc[0, "item_id"] = "p29" if cases.loc[0, "item_id"] != "p29" else "p28"
        cases.to_parquet(path)
        with pytest.raises(ArtifactError, match="got cases that differ"):
            compare_runs(run, other, part="test")


class TestRefusals:
    def test_another_feed(self, run: Path, rich_feed: TinyFeed) -> None:
        with pytest.raises(ArtifactError, match="prepared feed that the run was trained on, got another"):
            evaluate_run(run, part="test", feed=rich_feed.prepared, device="cpu")

    def test_another_split_of_the_same_name(self, run: Path, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        feed = shutil.copytree(tiny_feed.prepared, tmp_path / "feed")
        evaluate_run(run, part="validation", feed=feed, device="cpu", knockouts=False)
        shutil.rmtree(feed / "splits" / "leave_last_out")
        write_split(feed, name="leave_last_out", kind="cold_items", choices=SplitChoices(cold_share=0.2))
        with pytest.raises(ArtifactError, match=r"the split that the run was trained on.*what the run has seen"):
            evaluate_run(run, part="validation", feed=feed, device="cpu")

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(MmrecError, match="a run folder"):
            evaluate_run(tmp_path, device="cpu")


def test_content_vectors_are_means_over_tokens_before_training(recommender: Recommender) -> None:
    assembly = recommender.assembly
    vectors, present = content_vectors(assembly, notify=ignore, meter=silent_meter)
    ids = assembly.catalogue.item_ids.tolist()
    assert present["text"].tolist() == [item_id != PICTURE_ONLY for item_id in ids]
    assert present["image"].tolist() == [item_id != CAPTION_ONLY for item_id in ids]
    row, two = ids.index("p07"), ids.index("p05")
    part = assembly.reader.read(np.array([row])).parts["text"].content
    torch.testing.assert_close(vectors["text"][row], part.states.mean(dim=0), atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]
    # Of two pictures the mean of their means: equally many tokens each, so the mean over all tokens.
    part = assembly.reader.read(np.array([two])).parts["image"].content
    assert len(part) == 2
    torch.testing.assert_close(vectors["image"][two], part.states.mean(dim=0), atol=1e-3, rtol=1e-3)  # type: ignore[union-attr]
    assert not vectors["text"][ids.index(PICTURE_ONLY)].any()
