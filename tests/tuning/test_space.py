"""Space files: what they may vary, and that everything wrong with one is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrec.config import Config
from mmrec.config_file import load_config
from mmrec.errors import ConfigError
from mmrec.tuning.space import ChoiceKnob, RangeKnob, own_values, parse_space, read_space, with_values
from tests.tiny_run import TinyEncoders, changed, tiny_config

ROOT = Path(__file__).parent.parent.parent
SPACES = sorted((ROOT / "configs" / "space").glob("*.yaml"))


@pytest.fixture
def config(tiny_encoders: TinyEncoders) -> Config:
    return tiny_config(tiny_encoders)


def knobs(config: Config, **entries: object) -> list[RangeKnob | ChoiceKnob]:
    return list(parse_space({key.replace("__", "."): entry for key, entry in entries.items()}, config, where="s"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["minilm_effnet", "bert_vit", "demo"])
def test_every_space_fits_the_configs_and_holds_their_own_values(path: Path, name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert path.read_text(encoding="utf-8").startswith("# "), "says what it is for"
    for knob in parse_space(read_space(path, config), config, where="s"):
        assert own_values(config, [knob]) is not None, knob


def test_there_are_the_promised_spaces() -> None:
    assert [path.stem for path in SPACES] == ["small", "wide"]


class TestNumbers:
    def test_are_whole_where_the_configuration_wants_whole_ones(self, config: Config) -> None:
        (length,) = knobs(config, train__history_length={"low": 20, "high": 100.0, "step": 10})
        assert repr(length) == repr(RangeKnob("train.history_length", 20, 100, log=False, step=10))

    def test_are_fractions_where_it_wants_those(self, config: Config) -> None:
        (dropout,) = knobs(config, model__fusion__dropout={"low": 0, "high": 0.5})
        assert repr(dropout) == repr(RangeKnob("model.fusion.dropout", 0.0, 0.5, log=False, step=None))
        (weight,) = knobs(config, objective__contrastive_weight={"choices": [0, 1, 0.1]})
        assert repr(weight) == repr(ChoiceKnob("objective.contrastive_weight", (0.0, 1.0, 0.1)))

    def test_may_lack_the_dot_that_yaml_wants(self, config: Config, tmp_path: Path) -> None:
        file = tmp_path / "space.yaml"
        file.write_text("train.learning_rate: {low: 3e-4, high: 5e-3, log: true}\n")
        (rate,) = parse_space(read_space(file, config), config, where="s")
        assert rate == RangeKnob("train.learning_rate", 0.0003, 0.005, log=True, step=None)


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("train.learning_rat", {"low": 0.1, "high": 0.2}, ["unknown key", "did you mean 'learning_rate'"]),
        ("trian.epochs", {"low": 1, "high": 2}, ["unknown key", "'train'"]),
        ("encoders.picture.side", {"low": 1, "high": 2}, ["unknown key", "known: image, item_id, text"]),
        ("train.epochs.more", {"low": 1, "high": 2}, ["unknown key"]),
        ("model.fusion", {"low": 1, "high": 2}, ["a key of one value", "latents"]),
        ("train.trackers", {"choices": [1, 2]}, ["a key of one value"]),
        ("train.metric", {"choices": ["ndcg@10", "hr@10"]}, ["comparable", "--set"]),
        ("train.seed", {"low": 1, "high": 2}, ["comparable"]),
        ("train.learning_rate", {"low": 0.2, "high": 0.1}, ["low below high", "low 0.2, high 0.1"]),
        ("train.learning_rate", {"low": 0.1, "high": 0.1}, ["low below high"]),
        ("model.fusion.dropout", {"low": 0, "high": 0.5, "log": True}, ["a positive low where log is true"]),
        ("model.fusion.dropout", {"low": 0.1, "high": 0.5, "log": True, "step": 0.1}, ["either log or step"]),
        ("model.fusion.dropout", {"low": 0.0, "high": 0.5, "step": 0.2}, ["a step", "divides high - low"]),
        ("model.fusion.dropout", {"low": 0.0, "high": 0.5, "step": -0.1}, ["a step"]),
        ("train.history_length", {"low": 20, "high": 25, "step": 2.5}, ["whole step"]),
        ("model.fusion.dropout", {"low": 0.0, "high": 1.0}, ["1.0", "less than 1"]),
        ("train.epochs", {"low": 0, "high": 3}, ["greater than 0"]),
        ("train.history_length", {"low": 20.5, "high": 30.5}, ["20.5", "valid integer"]),
        ("model.user.kind", {"low": 1, "high": 3}, ["'gru' or 'mean'"]),
        ("model.item_bias", {"low": 0, "high": 1}, ["a key of numbers", "choices"]),
        ("model.user.kind", {"choices": ["gru", "lstm"]}, ["'lstm'", "'gru' or 'mean'"]),
        ("model.user.kind", {"choices": ["gru"]}, ["at least two choices"]),
        ("objective.contrastive_weight", {"choices": [0, 0.1, 0.0]}, ["different choices"]),
        ("model.user.kind", {"choices": "gru"}, ["choices 'gru'"]),
        ("model.user.kind", {"choices": [["gru"], "mean"]}, ["choices", "['gru']"]),
        ("train.learning_rate", {"low": 0.1}, ["high", "required"]),
        ("train.learning_rate", {"low": 0.1, "hihg": 0.2, "high": 1}, ["'hihg'", "did you mean 'high'"]),
        ("train.learning_rate", {"low": "small", "high": 1}, ["low 'small'"]),
        ("train.learning_rate", {"low": 0.1, "high": float("inf")}, ["high inf"]),
        ("train.learning_rate", {"low": True, "high": 2}, ["low True"]),
        ("train.learning_rate", [0.1, 0.2], ["[0.1, 0.2]", "{low: 0.0, high: 0.5}"]),
        ("encoders.text.tuning.mode", {"choices": ["frozen", "top"]}, ["'top'", "blocks must be positive"]),
    ],
)
def test_a_wrong_entry_is_refused(config: Config, key: str, entry: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_space({key: entry}, config, where="space.yaml")
    message = str(refused.value)
    for word in ["expected ", "space.yaml", key, *words]:
        assert word in message


def test_values_that_need_each_other_are_left_to_the_trials(config: Config) -> None:
    mode, blocks = knobs(
        config,
        encoders__text__tuning__mode={"choices": ["frozen", "top"]},
        encoders__text__tuning__blocks={"choices": [0, 1]},
    )
    assert mode == ChoiceKnob("encoders.text.tuning.mode", ("frozen", "top"))
    assert blocks == ChoiceKnob("encoders.text.tuning.blocks", (0, 1))
    both = {"encoders.text.tuning.mode": "top", "encoders.text.tuning.blocks": 1}
    values = with_values(config, both, where="trial").model_dump()
    assert values["encoders"]["text"]["tuning"]["blocks"] == 1
    with pytest.raises(ConfigError, match="in trial 3.*"):
        with_values(config, both | {"encoders.text.tuning.blocks": 0}, where="trial 3")


@pytest.mark.parametrize("text", ["", "- a\n", "3\n", "1: {low: 0, high: 1}\n", "a: {b\n"])
def test_a_file_that_is_no_space_is_refused(config: Config, tmp_path: Path, text: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"space\.yaml"):
        read_space(file, config)
    with pytest.raises(ConfigError, match="no file.*configs/space"):
        read_space(tmp_path / "none.yaml", config)


def test_own_values_are_told_only_where_all_lie_inside(config: Config) -> None:
    space = knobs(
        config,
        model__fusion__dropout={"low": 0.0, "high": 0.5, "step": 0.1},
        train__batch_users={"low": 8, "high": 16},
        model__user__kind={"choices": ["gru", "transformer"]},
    )
    own = {"model.fusion.dropout": 0.1, "train.batch_users": 8, "model.user.kind": "transformer"}
    assert own_values(config, space) == own
    assert own_values(changed(config, train={"batch_users": 17}), space) is None
    assert own_values(changed(config, model={"user": {"kind": "mean"}}), space) is None
    assert own_values(changed(config, model={"fusion": {"dropout": 0.15}}), space) is None
