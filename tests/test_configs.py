"""Every YAML in configs/ is valid, and those that promise joint training move every weight of both encoders."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file

from data_tools.prepare import PrepareOptions, prepare
from data_tools.synthesize import SynthesizeOptions, synthesize
from mmrec.assembly import assemble
from mmrec.commands.train import train_run, training_ids
from mmrec.config import Config, ItemId, OpenClipImage, OpenClipText, TimmImage, TransformersText
from mmrec.config_file import dump_config, load_config
from mmrec.encoders.base import ContentEncoder
from mmrec.errors import ConfigError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.splits import Split
from mmrec.run_folder import RunFolder
from mmrec.training.checkpoint import checkpoints
from tests.tiny_run import TinyEncoders

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "configs").glob("*.yaml") if p.stem != "serve")
"""Those of runs; the one of the service is tested with it."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_valid_and_reads_back(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config
    assert path.read_text(encoding="utf-8").startswith("# "), "says what it is for"


def test_there_are_the_promised_ones() -> None:
    assert {"demo.yaml", "minilm_effnet.yaml", "bert_vit.yaml", "clip.yaml", "id_only.yaml"} <= {
        p.name for p in CONFIGS
    }


class TestExtends:
    def written(self, folder: Path, **files: str) -> Path:
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder / "own.yaml"

    def test_says_only_what_is_different_group_by_group(self, tmp_path: Path) -> None:
        path = self.written(
            tmp_path,
            base="encoders: {item_id: {kind: item_id, dropout: 0.1}}\ntrain: {epochs: 3, batch_users: 8}",
            middle="extends: base.yaml\ntrain: {epochs: 4}\nobjective: {kind: in_batch_softmax}",
            own="extends: middle.yaml\ntrain: {seed: 5}\nobjective:",
        )
        config = load_config(path, overrides=["train.seed=6"])
        assert (config.train.epochs, config.train.batch_users, config.train.seed) == (4, 8, 6)
        assert config.objective == Config.model_validate({"encoders": {"item_id": {"kind": "item_id"}}}).objective
        item_id = config.encoders["item_id"]
        assert isinstance(item_id, ItemId)
        assert item_id.dropout == 0.1

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"own": "extends: own.yaml"}, "name of another config file"),
            ({"own": "extends: base.yaml", "base": "extends: own.yaml"}, "base.yaml, extends"),
            ({"own": "extends: gone.yaml"}, "gone.yaml"),
            ({"own": "extends: [base.yaml]"}, "name of another config file"),
            ({"own": "extends: base.yaml\ntrain: {epoch: 3}", "base": "train: {epochs: 2}"}, "epochs"),
        ],
    )
    def test_refuses_what_leads_nowhere(self, files: dict[str, str], message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=message):
            load_config(self.written(tmp_path, **files))


@pytest.mark.parametrize("name", ["hm", "ml1m"])
def test_cold_configs_are_those_of_their_feed(name: str) -> None:
    warm, cold = load_config(path_of(name)), load_config(path_of(f"{name}_cold"))
    assert cold.feed.split == "cold"
    # Validation chooses the shares of modalities, and finds others for cold items.
    assert cold.model.model_copy(update={"late_shares": warm.model.late_shares}) == warm.model
    assert cold.objective == warm.objective


@pytest.mark.parametrize("name", ["bert_vit", "clip"])
def test_joint_configs_tune_everything(name: str) -> None:
    encoders = load_config(path_of(name)).encoders
    for modality in ("text", "image"):
        encoder = encoders[modality]
        assert isinstance(encoder, TransformersText | TimmImage | OpenClipText | OpenClipImage)
        assert encoder.tuning.mode == "full"
        assert not encoder.random_weights


def path_of(name: str) -> Path:
    return next(path for path in CONFIGS if path.stem == name)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    options = SynthesizeOptions(
        items=40, users=48, events=6.0, side=32, subjects=3, looks=3, bad_rows=0, bad_pictures=0, seed=5
    )
    synthesize(root / "raw", options=options)
    caption = ("title", "description")
    prepare(root / "raw", root / "feed", options=PrepareOptions(caption=caption, image_side=32, workers=1))
    return root / "feed"


SMALL = [
    "train.batch_users=8",
    "train.history_length=8",
    "train.epochs=5",
    "train.evaluate_every=5",
    "train.trackers=[]",
]


def stand_ins(name: str, encoders: TinyEncoders) -> list[str]:
    """Small encoders in the place of the large ones, and nothing else."""
    if name == "clip":
        return [
            f"encoders.{modality}.{key}"
            for modality in ("text", "image")
            for key in (f"model={encoders.pair}", "pretrained=none")
        ]
    return [
        f"encoders.text.model={encoders.bert}",
        "encoders.text.random_weights=true",
        "encoders.image.model=test_vit",
        "encoders.image.random_weights=true",
        "encoders.image.side=32",
    ]


@pytest.mark.parametrize("name", ["bert_vit", "clip"])
def test_both_encoders_train_from_the_first_block_on(
    name: str, tiny_encoders: TinyEncoders, synthetic: Path, tmp_path: Path
) -> None:
    config = load_config(path_of(name), overrides=[*stand_ins(name, tiny_encoders), *SMALL])
    before = initial_weights(config, synthetic)
    summary = train_run(config, feed=synthetic, out=tmp_path / "run", device="cpu")
    assert int(str(summary["steps"])) >= 30

    after = load_file(checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1] / "model.safetensors")
    for modality in ("text", "image"):
        first = before[modality]
        assert len(first) > 4
        still = [key for key, value in first.items() if torch.equal(after[key], value)]
        assert not still, "every weight of the first block and of what lies below it has moved"
        moved = torch.cat([(after[key] - value).flatten() for key, value in first.items()])
        assert float(moved.abs().mean()) > 1e-7

    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    losses = [line["epoch/loss"] for line in lines if "epoch/loss" in line]
    assert len(losses) == 5
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < math.log(len(Catalogue.load(synthetic))), "better than to know nothing"


def initial_weights(config: Config, feed: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of the weights of each encoder's first block and of its stem, by modality."""
    assembly = assemble(
        config,
        feed,
        training_ids(feed, Split.load(feed), trend_days=config.model.trend_days),
        device=torch.device("cpu"),
    )
    names = {id(parameter): name for name, parameter in assembly.model.named_parameters()}
    found = {}
    for modality in ("text", "image"):
        encoder = assembly.encoders[modality].module
        assert isinstance(encoder, ContentEncoder)
        assert not encoder.has_trunk
        *_, first, stem = encoder.layer_groups()
        frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]  # type: ignore[attr-defined]
        assert not [name for name in frozen if "block" in name or "layer" in name]
        found[modality] = {names[id(p)]: p.detach().clone() for p in [*first, *stem]}
    return found


def test_the_real_names_are_those_of_the_libraries() -> None:
    """Without a hub the weights cannot be had, but the names can be checked."""
    image = load_config(path_of("bert_vit")).encoders["image"]
    assert isinstance(image, TimmImage)
    assert image.model in timm.list_pretrained()
    pair = load_config(path_of("clip")).encoders["image"]
    assert isinstance(pair, OpenClipImage)
    assert (pair.model, pair.pretrained) in open_clip.list_pretrained()


def test_an_override_that_removes_an_encoder() -> None:
    config = load_config(path_of("demo"), overrides=["encoders.item_id=none"])
    assert set(config.encoders) == {"text", "image"}
    with pytest.raises(ConfigError, match="at least one encoder"):
        load_config(path_of("id_only"), overrides=["encoders.item_id=none"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("matryoshka_dims=[64,32]", r"must rise, such as \[32, 64\], not \[64, 32\]"),
        ("matryoshka_dims=[32,32]", "must rise"),
        ("matryoshka_dims=[0,32]", "greater than 0"),
        ("matryoshka_dims=[32,128]", "below model.dim 128"),
        ("matryoshka_weights=[1.0]", "one for each of the 0 matryoshka_dims"),
    ],
)
def test_widths_that_make_no_sense(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path_of("demo"), overrides=["model.dim=128", f"objective.{override}"])
