"""Training as a command: what a run folder holds, what is refused before any work, and that resuming is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from mmrec.batch import ItemBatch
from mmrec.commands import train as module
from mmrec.commands.evaluate import evaluate_run
from mmrec.commands.train import train_run
from mmrec.config import Config, validate
from mmrec.config_file import load_config
from mmrec.errors import ArtifactError, ConfigError, FeedError, MmrecError
from mmrec.evaluation import calibration
from mmrec.evaluation.case_table import CaseTable
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.settings import NEW_ITEMS
from mmrec.feed.splits import WARM, Split
from mmrec.inference.encoding import encode_catalogue
from mmrec.inference.recommender import Recommender
from mmrec.model.item_encoder import ItemEncoder
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json
from mmrec.training.checkpoint import checkpoints
from mmrec.training.loop import train
from tests.feeds import write_feed
from tests.tiny_run import NUM_ITEMS, TinyEncoders, TinyFeed, changed, interactions_table, tiny_config


@pytest.fixture
def config(tiny_encoders: TinyEncoders) -> Config:
    return tiny_config(tiny_encoders)


def run(config: Config, feed: Path, out: Path, *, resume: bool = False) -> dict[str, object]:
    return train_run(config, feed=feed, out=out, resume=resume, device="cpu")


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]


class TestRunFolder:
    def test_holds_what_the_run_was_made_of(self, tiny_run: Path, tiny_feed: TinyFeed, config: Config) -> None:
        folder = RunFolder(tiny_run)
        assert load_config(folder.config) == config
        about = folder.read_about()
        manifest = read_json(tiny_feed.prepared / "manifest.json")
        assert about["feed_hash"] == manifest["feed_hash"]
        assert about["split"] == "leave_last_out"
        assert set(about["versions"]) == {"mmrec", "torch", "accelerate", "python"}  # type: ignore[call-overload]
        ids = pd.read_parquet(folder.ids)
        # Leave-last-out takes the last two of each user's six events away from training.
        expected = interactions_table().query("timestamp < 4")["item_id"].value_counts()
        assert ids.set_index("item_id")["count"].to_dict() == {
            f"p{row:02}": int(expected.get(f"p{row:02}", 0)) for row in range(NUM_ITEMS)
        }

    def test_preprocessors_come_back_without_their_libraries(self, tiny_run: Path, recommender: Recommender) -> None:
        folder = RunFolder(tiny_run).preprocessing
        words, pixels = recommender.assembly.words, recommender.assembly.pixels
        assert words is not None
        assert pixels is not None
        assert TextPreprocessor.load(folder / "text").fingerprint == words.fingerprint
        saved = read_json(folder / "image" / "image_preprocessing.json")
        assert ImagePreprocessor.from_dict(saved).fingerprint == pixels.fingerprint

    def test_metrics_count_the_work(self, tiny_run: Path) -> None:
        lines = logged(tiny_run)
        epochs = [line for line in lines if "validation/ndcg@10" in line]
        assert [line["epoch"] for line in epochs] == [1, 2]
        assert all(0 <= line["validation/hr@20"] <= 1 for line in epochs)


def test_features_are_measured_on_items_that_training_may_see(
    tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, measured = shutil.copytree(tiny_feed.prepared, tmp_path / "feed"), list[int]()
    write_split(feed, name="cold", kind="cold_items", choices=SplitChoices(cold_share=0.2))
    calibrate = ItemEncoder.calibrate

    def remember(encoder: ItemEncoder, items: ItemBatch) -> None:
        measured.extend(items.item_rows.tolist())
        calibrate(encoder, items)

    monkeypatch.setattr(ItemEncoder, "calibrate", remember)
    config = changed(tiny_config(tiny_encoders, train={"epochs": 1}), feed={"split": "cold"})
    run(config, feed, tmp_path / "run")
    roles = Split.load(feed, "cold").item_roles
    assert (roles != WARM).any()
    assert sorted(measured) == np.flatnonzero(roles == WARM).tolist()


class TestRefusedBeforeAnyWork:
    def test_a_folder_that_holds_a_run(self, tiny_run: Path, tiny_feed: TinyFeed, config: Config) -> None:
        before = sorted(path.name for path in tiny_run.rglob("*"))
        with pytest.raises(ArtifactError, match="one that holds a run.*--resume"):
            run(config, tiny_feed.prepared, tiny_run)
        assert sorted(path.name for path in tiny_run.rglob("*")) == before

    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            ({"kind": "timm", "model": "test_vitt", "random_weights": True}, "'test_vitt'.*test_vit"),
            ({"kind": "timm", "model": "test_vit"}, "test_vit"),
            ({"kind": "timm", "model": "test_vit", "weights": "no/such.safetensors"}, "no/such"),
            ({"kind": "open_clip_image", "model": "ViT-B-322", "random_weights": True}, "ViT-B-32"),
            (
                {
                    "kind": "timm",
                    "model": "test_vit",
                    "random_weights": True,
                    "side": 32,
                    "tuning": {"mode": "top", "blocks": 9},
                },
                "between 1 and 6 blocks",
            ),
        ],
    )
    def test_an_image_encoder_that_does_not_exist(
        self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, encoder: dict[str, object], message: str
    ) -> None:
        values = config.model_dump(mode="json")
        bad = validate(values | {"encoders": values["encoders"] | {"image": encoder}}, where="test")
        with pytest.raises(ConfigError, match=message):
            run(bad, tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists(), "a mended config may take the same folder"

    @pytest.mark.parametrize("model", ["no/such-bert", "package:no_such_package", "bert-bose-uncased"])
    def test_a_text_encoder_that_does_not_exist(
        self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, model: str
    ) -> None:
        values = config.model_dump(mode="json")
        text = {"kind": "transformers", "model": model}
        bad = validate(values | {"encoders": values["encoders"] | {"text": text}}, where="test")
        with pytest.raises(MmrecError, match=model.removeprefix("package:")):
            run(bad, tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("metric", ["ndcg", "ndgc@10", "hr@0", "hr@x", "loss"])
    def test_a_metric_that_is_none(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, metric: str) -> None:
        with pytest.raises(ConfigError, match=rf"{metric}.*train\.metric.*known: hr@1,"):
            run(changed(config, train={"metric": metric}), tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_any_cut_off_is_a_metric(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        summary = run(changed(config, train={"metric": "recall@7", "epochs": 1}), tiny_feed.prepared, tmp_path / "r")
        assert 0 <= float(str(summary["best recall@7 (validation)"])) <= 1

    def test_a_split_that_does_not_exist(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        with pytest.raises(FeedError, match="'leave_out_last'.*leave_last_out"):
            run(changed(config, feed={"split": "leave_out_last"}), tiny_feed.prepared, tmp_path / "run")
        with pytest.raises(FeedError, match="mmrec-data prepare"):
            run(config, tiny_feed.raw, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", ""])
    def test_a_device_that_is_not_there(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, device: str) -> None:
        with pytest.raises(ConfigError, match=r"a device of this machine \(auto, cpu.*--device"):
            train_run(config, feed=tiny_feed.prepared, out=tmp_path / "run", device=device)

    def test_a_cost_of_cold_items_without_warm_cases_to_weigh_it_by(
        self, config: Config, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        values = config.model_dump(mode="json")
        bad = validate(values | {"train": values["train"] | {"cold_cost": 0.02}}, where="test")
        with pytest.raises(ConfigError, match=r"holds warm cases out.*train\.cold_cost.*--warm-share"):
            run(bad, tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("kind", ["bce", "mse"])
    def test_a_cost_of_cold_items_under_a_loss_of_values(
        self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, kind: str
    ) -> None:
        bad = changed(config, train={"cold_cost": 0.02}, objective={"kind": kind})
        with pytest.raises(ConfigError, match=rf"a loss that ranks.*{kind}.*train\.cold_cost"):
            run(bad, tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_histories_too_short_to_validate_on(self, config: Config, tmp_path: Path) -> None:
        feed = write_feed(
            tmp_path / "feed",
            interactions=[(f"u{n}", f"p{(n + m) % 3}", n + m) for n in range(9) for m in range(2)],
            captions={f"p{n}": "red scarf" for n in range(3)},
        )
        with pytest.raises(MmrecError, match="validation cases, got none"):
            run(config, feed, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("kind", ["bce", "mse"])
    def test_an_objective_that_the_feed_has_no_values_for(
        self, config: Config, tiny_feed: TinyFeed, tmp_path: Path, kind: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"with a value, got a feed without any, in objective.kind: {kind}"):
            run(changed(config, objective={"kind": kind}), tiny_feed.prepared, tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestResume:
    """Killing at many places is tested with the loop; here: the command builds the same model and goes on from it."""

    @pytest.fixture(scope="class")
    def long(self, tiny_encoders: TinyEncoders) -> Config:
        config = tiny_config(tiny_encoders, train={"epochs": 3, "checkpoint_steps": 2, "patience": 9})
        values = config.model_dump(mode="json")
        values["encoders"]["text"]["tuning"] = {"mode": "top", "blocks": 1}
        return validate(values, where="test")

    @pytest.fixture(scope="class")
    def uninterrupted(self, long: Config, tiny_feed: TinyFeed, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("resume") / "whole"
        run(long, tiny_feed.prepared, out)
        return out

    @pytest.mark.parametrize("steps", [1, 3, 4, 8])
    def test_stopped_and_resumed_equals_uninterrupted(
        self,
        long: Config,
        tiny_feed: TinyFeed,
        uninterrupted: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        steps: int,
    ) -> None:
        class Killed(BaseException):
            """What no handler catches, as with a process that is gone."""

        def killed(**arguments: object) -> object:
            def progress(report: object) -> None:
                if report.step == steps:  # type: ignore[attr-defined]
                    raise Killed

            return train(**(arguments | {"progress": progress}))  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(module, "train", killed)
            with pytest.raises(Killed):
                run(long, tiny_feed.prepared, tmp_path / "run")
        torch.manual_seed(12345)
        summary = run(long, tiny_feed.prepared, tmp_path / "run", resume=True)
        assert summary["steps"] == 9
        same_weights(tmp_path / "run", uninterrupted)

    def test_resuming_what_is_finished_changes_nothing(
        self, long: Config, tiny_feed: TinyFeed, uninterrupted: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(uninterrupted, tmp_path / "run")
        summary = run(long, tiny_feed.prepared, copy, resume=True)
        assert (summary["epochs"], summary["steps"]) == (3, 9)
        same_weights(copy, uninterrupted)

    def test_a_run_that_does_not_know_a_new_setting_goes_on(
        self, long: Config, tiny_feed: TinyFeed, uninterrupted: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(uninterrupted, tmp_path / "run")
        kept = [line for line in RunFolder(copy).config.read_text().splitlines() if "matryoshka" not in line]
        RunFolder(copy).config.write_text("\n".join(kept))
        assert run(long, tiny_feed.prepared, copy, resume=True)["epochs"] == 3

    def test_resume_of_nothing_begins(self, config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        run(changed(config, train={"epochs": 1}), tiny_feed.prepared, tmp_path / "run", resume=True)
        assert RunFolder(tmp_path / "run").about.is_file()

    def test_other_settings_feed_or_split_are_refused(
        self, tiny_run: Path, config: Config, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(tiny_run, tmp_path / "run")
        for change in ({"epochs": 5}, {"learning_rate": 0.5}):
            with pytest.raises(ArtifactError, match=r"got another configuration, in .*Resume with the same settings"):
                run(changed(config, train=change), tiny_feed.prepared, copy, resume=True)
        other = write_feed(
            tmp_path / "feed",
            interactions=[(f"u{n}", f"p{m}", m) for n in range(9) for m in range(4)],
            captions={f"p{n}": "red scarf" for n in range(4)},
        )
        with pytest.raises(ArtifactError, match="got another feed and another split"):
            run(config, other, copy, resume=True)
        again = shutil.copytree(tiny_feed.prepared, tmp_path / "again")
        shutil.rmtree(again / "splits" / "leave_last_out")
        write_split(again, name="leave_last_out", kind="cold_items", choices=SplitChoices(cold_share=0.2))
        with pytest.raises(ArtifactError, match="got another split"):
            run(config, again, copy, resume=True)

    def test_other_frozen_weights_are_refused(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        bert = shutil.copytree(tiny_encoders.bert, tmp_path / "bert")
        config = tiny_config(TinyEncoders(bert, tiny_encoders.pair), train={"epochs": 1})
        run(config, tiny_feed.prepared, tmp_path / "run")
        weights = load_file(bert / "model.safetensors")
        name = next(key for key in weights if key.endswith("layer.0.attention.self.query.weight"))
        weights[name] = weights[name] + 1
        save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match="frozen weights"):
            run(config, tiny_feed.prepared, tmp_path / "run", resume=True)
        with pytest.raises(ArtifactError, match="pretrained weights that the run was trained on"):
            Recommender.load(tmp_path / "run", device="cpu")


def same_weights(one: Path, other: Path) -> None:
    paths = [checkpoints(RunFolder(folder).checkpoints)[-1] for folder in (one, other)]
    assert paths[0].name == paths[1].name
    for name in ("model.safetensors", "optimizer.safetensors", "bank.safetensors"):
        found, expected = (load_file(path / name) for path in paths)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), (name, key)
    best = [read_json(RunFolder(folder).checkpoints / "best.json") for folder in (one, other)]
    assert best[0] == best[1]


class TestOddFeeds:
    @pytest.mark.parametrize("kept", ["captions", "pictures"])
    def test_a_feed_without_one_modality(self, config: Config, tmp_path: Path, kept: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (6, 20, 16, 3), dtype=np.uint8)
        feed = write_feed(
            tmp_path / "feed",
            interactions=[(f"u{n}", f"p{(n + m) % 6}", 5 * m) for n in range(9) for m in range(5)],
            captions={f"p{n}": f"{word} scarf" for n, word in enumerate(["red", "blue"] * 3)}
            if kept == "captions"
            else {},
            pictures={f"p{n}": noise[n] for n in range(6)} if kept == "pictures" else {},
        )
        run(changed(config, train={"epochs": 1}), feed, tmp_path / "run")
        found = Recommender.load(tmp_path / "run", device="cpu").score(user_id="u1", candidates=["p1", "p2"])
        assert found["score"].notna().all()
        assert set(found["present"]) == {"text+item_id" if kept == "captions" else "image+item_id"}


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "in_batch_softmax", "negatives": 4},
        {"kind": "in_batch_softmax", "negatives": 0},
        {"kind": "bpr"},
        {"kind": "bce"},
        {"kind": "mse"},
        {"kind": "full_softmax", "negatives": 0, "mask_history": True, "contrastive_weight": 0.0},
    ],
)
def test_every_objective_trains(
    config: Config, rich_feed: TinyFeed, tmp_path: Path, objective: dict[str, object]
) -> None:
    summary = run(changed(config, objective=objective, train={"epochs": 1}), rich_feed.prepared, tmp_path / "run")
    assert summary["steps"] == 3
    recommender = Recommender.load(tmp_path / "run", device="cpu")
    assert recommender.assembly.histories.event_names
    for who in ({"user_id": "u01"}, {"history": ["p01", "p04"]}, {"history": []}):
        assert recommender.score(candidates=["p07", "p08"], **who)["score"].notna().all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        {"user": {"kind": "gru", "layers": 1}, "fusion": {"kind": "concat"}},
        {"user": {"kind": "mean"}, "similarity": "dot", "item_bias": False},
    ],
)
def test_every_part_of_the_model_is_built(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, model: dict[str, object]
) -> None:
    run(changed(config, model=model, train={"epochs": 1, "accumulate": 2}), tiny_feed.prepared, tmp_path / "run")
    recommender = Recommender.load(tmp_path / "run", device="cpu")
    assert recommender.has_bias == model.get("item_bias", True)
    assert len(recommender.recommend(user_id="u01", k=3)) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_items_at_once(config: Config, tiny_feed: TinyFeed, tmp_path: Path, precision: str) -> None:
    """Parts of the forward pass are repeated within the backward pass, attention and number format included."""
    small = changed(config, train={"epochs": 1, "items_at_once": 3, "precision": precision})
    result = run(small, tiny_feed.prepared, tmp_path / "run")
    assert int(str(result["steps"])) > 0


def test_told_before_a_cache_is_written(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    feed = shutil.copytree(tiny_feed.prepared, tmp_path / "feed")
    shutil.rmtree(feed / "trunks", ignore_errors=True)
    train_run(changed(config, train={"epochs": 1}), feed=feed, out=tmp_path / "run", device="cpu", notify=said.append)
    sizes = [line for line in said if "MB" in line]
    assert [line.split()[0] for line in sizes] == ["text", "image"]
    assert any(line.startswith("validation ndcg@10") for line in said)


def test_every_width_is_trained_and_logged(config: Config, tiny_feed: TinyFeed, tmp_path: Path) -> None:
    nested = changed(config, objective={"matryoshka_dims": [4, 8]}, train={"epochs": 4})
    run(nested, tiny_feed.prepared, tmp_path / "run")  # twelve steps; the tenth is logged
    names = {name for line in logged(tmp_path / "run") for name in line}
    assert {f"loss/{part}{width}" for part in ("full_softmax", "contrastive") for width in ("", "/4", "/8")} <= names


def test_shares_of_modalities_that_rank_better_are_part_of_every_vector(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    asked = changed(config, model={"late_shares": [0.25, 0.5]}, train={"epochs": 1})
    # Nine standard errors are added to every gain: whatever changes a rank is chosen.
    monkeypatch.setattr(calibration, "STANDARD_ERRORS", -9.0)
    train_run(asked, feed=tiny_feed.prepared, out=tmp_path / "run", device="cpu", notify=said.append)
    recommender = Recommender.load(tmp_path / "run", device="cpu")
    assembly = recommender.assembly
    chosen = assembly.model.late.chosen()
    assert chosen
    (line,) = [line for line in said if line.startswith("validation")]
    assert all(f"late_share_{name} {share:.4f}" in line for name, share in chosen.items())
    best = next(line for line in logged(tmp_path / "run") if "validation/ndcg@10" in line)
    evaluate_run(tmp_path / "run", part="validation", device="cpu", knockouts=False)
    places, _ = CaseTable.load(RunFolder(tmp_path / "run").evaluation("validation")).places(NEW_ITEMS)
    assert case_metrics(places)["ndcg@10"].mean() == pytest.approx(best["validation/ndcg@10"], abs=1e-6)


def test_known_items_gain_what_keeps_cold_ones_from_costing_more(
    config: Config, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "COST_METRICS", ("hr@1",))  # ten places are nearly all that there are here
    feed = tmp_path / "feed"
    shutil.copytree(tiny_feed.prepared, feed)
    split = write_split(feed, name="cold", kind="cold_items", choices=SplitChoices(warm_share=0.9, cold_share=0.3))
    assert split.calibration is not None
    values = config.model_dump(mode="json") | {"feed": {"split": "cold"}}
    bonuses = {}
    for cost in (None, 0.0):
        asked = validate(values | {"train": values["train"] | {"cold_cost": cost, "epochs": 1}}, where="test")
        out = tmp_path / f"run-{cost}"
        run(asked, feed, out)
        recommender = Recommender.load(out, device="cpu")
        bonuses[cost] = float(recommender.assembly.model.scorer.known_bonus)
        # Part of every vector that is scored, searched or exported: of the items that training knew, and of no other.
        recommender.item_embeddings()
        warm = torch.from_numpy(split.item_roles == WARM)
        biases = recommender.catalogue_tensor[:, -1]
        recommender.assembly.model.scorer.known_bonus.zero_()
        plain = encode_catalogue(
            recommender.assembly.model,
            recommender.assembly.reader,
            recommender.assembly.all_rows,
            device=torch.device("cpu"),
        )[:, -1]
        torch.testing.assert_close(biases - plain, bonuses[cost] * warm.float(), atol=1e-5, rtol=0)
    assert bonuses[None] == 0
    assert bonuses[0.0] > 0
