"""Tuning as a command: trials that train, go on, are pruned, fail, are cut off; one process and several."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from mmrec.cli import main
from mmrec.commands import tune_trials as module
from mmrec.commands.train import train_run
from mmrec.commands.tune import tune_run
from mmrec.config import Config, validate
from mmrec.config_file import load_config
from mmrec.errors import ArtifactError, ConfigError, FeedError, MmrecError
from mmrec.process import SWITCH, thread_share
from mmrec.storage import read_json
from mmrec.training.contract import OnValidation
from mmrec.tuning.folder import TuneFolder
from mmrec.tuning.results import TuneResult, short_names
from mmrec.tuning.study import Study
from tests.tiny_run import TinyEncoders, TinyFeed, changed, tiny_config, write_config

ROOT = Path(__file__).parent.parent.parent
SPACE = {
    "train.learning_rate": {"low": 3e-4, "high": 5e-3, "log": True},
    "train.history_length": {"low": 4, "high": 8, "step": 2},
    "objective.contrastive_weight": {"choices": [0, 0.1]},
}


@dataclass(frozen=True)
class Tuning:
    """A configuration, a feed and a space to tune in, once or several times."""

    config: Config
    feed: Path
    space: Path
    out: Path
    told: list[str] = field(default_factory=list)

    def __call__(self, trials: int, *, workers: int = 1) -> TuneResult:
        return tune_run(
            self.config,
            feed=self.feed,
            space=self.space,
            out=self.out,
            trials=trials,
            workers=workers,
            device="cpu",
            notify=self.told.append,
        )

    @property
    def folder(self) -> TuneFolder:
        return TuneFolder(self.out)

    @property
    def arguments(self) -> list[str]:
        config = write_config(self.space.with_name("config.yaml"), self.config)
        arguments = ["mmrec", "tune", config, "--feed", self.feed, "--space", self.space, "--out", self.out]
        return [*map(str, arguments), "--device", "cpu"]


def make_tuning(config: Config, feed: Path, place: Path, space: dict[str, object]) -> Tuning:
    place.mkdir(exist_ok=True)
    file = place / "space.yaml"
    file.write_text(yaml.safe_dump(space))
    return Tuning(config, feed, file, place / "tune")


@pytest.fixture
def tuning(tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path) -> Tuning:
    return make_tuning(tiny_config(tiny_encoders), tiny_feed.prepared, tmp_path, dict(SPACE))


@dataclass
class Played:
    """Stands for training: a trial's metric is what a function says of its number and epoch."""

    value: Callable[[int, int], float]
    trained: list[dict[str, object]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def __call__(self, config: Config, *, feed: Path, out: Path, device: str, on_validation: OnValidation) -> None:
        number = int(out.name)
        self.trained.append(config.model_dump())
        self.epochs.append(0)
        for epoch in range(1, config.train.epochs + 1):
            value = self.value(number, epoch)
            self.epochs[-1] = epoch
            if on_validation(epoch, value):
                return


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], float]], Played]:
    def start(value: Callable[[int, int], float]) -> Played:
        played = Played(value)
        monkeypatch.setattr(module, "train_run", played)
        return played

    return start


Play = Callable[[Callable[[int, int], float]], Played]


def states(result: TuneResult) -> list[str]:
    return [record.state for record in result.records]


class TestTrains:
    """Three trials that really train, and what is left of them."""

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("tune")

    @pytest.fixture(scope="class")
    def done(self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, place: Path) -> tuple[Tuning, TuneResult]:
        tuning = make_tuning(tiny_config(tiny_encoders), tiny_feed.prepared, place, dict(SPACE))
        return tuning, tuning(3)

    def test_the_first_trial_is_the_configuration_as_given(self, done: tuple[Tuning, TuneResult]) -> None:
        tuning, result = done
        assert states(result) == ["complete"] * 3
        assert load_config(tuning.folder.trial(0).config) == tuning.config
        assert [record.own for record in result.records] == [True, False, False]
        assert len({json.dumps(dict(record.params)) for record in result.records}) == 3

    def test_values_are_those_of_validation(self, done: tuple[Tuning, TuneResult]) -> None:
        tuning, result = done
        for record in result.records:
            lines = [json.loads(line) for line in tuning.folder.trial(record.number).metrics.read_text().splitlines()]
            measured = {line["epoch"]: line["validation/ndcg@10"] for line in lines if "validation/ndcg@10" in line}
            assert dict(record.values) == measured
            assert len(measured) == record.epochs == 2
            assert record.value == max(measured.values())
        assert result.best is not None
        assert result.best.value == max(record.value or 0.0 for record in result.records)

    def test_settings_are_those_of_the_space(self, done: tuple[Tuning, TuneResult]) -> None:
        tuning, result = done
        for record in result.records:
            config = load_config(tuning.folder.trial(record.number).config)
            assert config.train.learning_rate == record.params["train.learning_rate"]
            assert config.train.history_length == record.params["train.history_length"]
            assert repr(config.train.history_length) in ("4", "6", "8")
            assert config.objective.contrastive_weight in (0.0, 0.1)

    def test_only_the_best_keeps_its_weights(self, done: tuple[Tuning, TuneResult]) -> None:
        tuning, result = done
        assert result.best is not None
        for record in result.records:
            run = tuning.folder.trial(record.number)
            assert run.config.is_file()
            assert run.metrics.is_file()
            kept = [run.checkpoints.exists(), run.ids.exists(), run.preprocessing.exists()]
            assert kept == [record.number == result.best.number] * 3

    def test_best_yaml_trains_to_the_same_value(self, done: tuple[Tuning, TuneResult], tmp_path: Path) -> None:
        tuning, result = done
        assert result.best is not None
        config = load_config(tuning.folder.best)
        assert config == load_config(tuning.folder.trial(result.best.number).config)
        summary = train_run(config, feed=tuning.feed, out=tmp_path / "run", device="cpu")
        assert summary["best ndcg@10 (validation)"] == result.best.value

    def test_the_journal_is_json_lines_and_nothing_is_pickled(self, done: tuple[Tuning, TuneResult]) -> None:
        tuning, result = done
        assert all(isinstance(json.loads(line), dict) for line in tuning.folder.journal.read_text().splitlines())
        beside = {path.name for path in tuning.out.iterdir()}
        assert beside == {"best.yaml", "journal.jsonl", "lock", "plan.json", "trials", "tune.json", "turn"}
        assert read_json(tuning.folder.results) == result.to_dict()

    def test_again_trains_nothing_and_more_trials_add_to_them(
        self, done: tuple[Tuning, TuneResult], play: Play
    ) -> None:
        tuning, result = done
        played = play(lambda number, epoch: 0.0)
        assert tuning(3).to_dict() == result.to_dict()
        assert tuning(2).to_dict() == result.to_dict()
        assert played.trained == []
        more = tuning(4)
        assert len(played.trained) == 1
        assert more.records[:3] == result.records
        assert more.best == result.best


def test_draws_are_the_same_every_time(tuning: Tuning, play: Play, tmp_path: Path) -> None:
    other = make_tuning(tuning.config, tuning.feed, tmp_path / "other", dict(SPACE))
    reseeded = make_tuning(changed(tuning.config, train={"seed": 5}), tuning.feed, tmp_path / "reseeded", dict(SPACE))
    drawn = []
    for one in (tuning, other, reseeded):
        play(lambda number, epoch: number / 100)
        # Beyond ten trials the sampler builds on what it has seen; in two calls, it must see the same.
        if one is other:
            one(7)
        drawn.append([dict(record.params) for record in one(13).records])
    assert drawn[0] == drawn[1]
    assert drawn[0][1:] != drawn[2][1:]


class TestPruning:
    def test_a_trial_that_falls_behind_is_stopped(self, tuning: Tuning, play: Play) -> None:
        config = changed(tuning.config, train={"epochs": 10})
        played = play(lambda number, epoch: 0.1 if number == 5 else 0.5 + epoch / 100)
        result = make_tuning(config, tuning.feed, tuning.space.parent, dict(SPACE))(6)
        assert states(result) == ["complete"] * 5 + ["pruned"]
        assert played.epochs == [10] * 5 + [3], "a fifth of the epochs is let pass first"
        assert result.records[5].value == 0.1
        assert result.ranked[-1] == result.records[5]
        assert result.best == result.records[0], "the earliest of equals"
        assert states(make_tuning(config, tuning.feed, tuning.space.parent, dict(SPACE))(6)) == states(result)

    def test_the_last_epoch_ends_a_trial_as_complete(self, tuning: Tuning, play: Play) -> None:
        # The sixth is ahead until the end and behind there, where stopping saves nothing.
        play(lambda number, epoch: 0.4 if number == 5 else 0.3 * epoch)
        assert states(tuning(6)) == ["complete"] * 6

    def test_training_stops_where_it_is_asked_to(self, tuning: Tuning) -> None:
        seen: list[tuple[int, float]] = []

        def stop(epoch: int, value: float) -> bool:
            seen.append((epoch, value))
            return True

        run = tuning.out.parent / "run"
        config = changed(tuning.config, train={"epochs": 3})
        summary = train_run(config, feed=tuning.feed, out=run, device="cpu", on_validation=stop)
        assert (summary["epochs"], summary["stopped early"]) == (1, True)
        assert seen == [(1, summary["best ndcg@10 (validation)"])]
        resumed = train_run(config, feed=tuning.feed, out=run, device="cpu", resume=True)
        assert resumed["epochs"] == 3


class TestFailures:
    def test_one_trial_fails_and_the_others_go_on(self, tuning: Tuning) -> None:
        space = {"train.learning_rate": {"choices": [1e-3, 1e30]}}
        tune = make_tuning(changed(tuning.config, train={"epochs": 1}), tuning.feed, tuning.space.parent, space)
        result = tune(4)
        rates = [record.params["train.learning_rate"] for record in result.records]
        assert set(rates) == {1e-3, 1e30}
        assert states(result) == ["complete" if rate == 1e-3 else "failed" for rate in rates]
        failed = next(record for record in result.records if record.state == "failed")
        assert failed.message.startswith("expected a finite ")
        told = dict(result.failures())
        assert set(told.values()) == {record.message for record in result.records if record.state == "failed"}

    def test_a_combination_that_the_configuration_refuses_is_one(self, tuning: Tuning, play: Play) -> None:
        space = {
            "encoders.text.tuning.mode": {"choices": ["frozen", "top"]},
            "encoders.text.tuning.blocks": {"choices": [0, 1]},
        }
        played = play(lambda number, epoch: 0.5)
        result = make_tuning(tuning.config, tuning.feed, tuning.space.parent, space)(8)
        for record in result.records:
            fits = (record.params["encoders.text.tuning.mode"] == "top") == (
                record.params["encoders.text.tuning.blocks"] == 1
            )
            assert (record.state, "blocks must be" in record.message) == (
                ("complete", False) if fits else ("failed", True)
            )
        assert 0 < len(played.trained) < 8

    def test_when_all_fail_the_command_does(
        self, tuning: Tuning, play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(number: int, epoch: int) -> float:
            raise MmrecError("a finite loss", got="nan")

        play(fail)
        monkeypatch.setenv(SWITCH, "0")
        monkeypatch.setattr(sys, "argv", [*tuning.arguments, "--trials", "2"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 1
        assert "0, 1     expected a finite loss, got nan" in out, "the table is shown all the same"
        assert "error: expected at least one trial that trains, got 2 that failed" in err
        assert not tuning.folder.best.exists()

    def test_a_fault_of_the_program_is_not_hidden(self, tuning: Tuning, play: Play) -> None:
        play(lambda number, epoch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tuning(2)


class TestCutOff:
    @staticmethod
    def dies(error: type[BaseException], numbers: set[int]) -> Callable[[int, int], float]:
        def value(number: int, epoch: int) -> float:
            if number in numbers and epoch == 2:
                raise error
            return 0.5

        return value

    def test_an_interrupted_trial_is_tried_again(self, tuning: Tuning, play: Play) -> None:
        played = play(self.dies(KeyboardInterrupt, {1}))
        with pytest.raises(KeyboardInterrupt):
            tuning(3)
        assert len(played.trained) == 2
        result = tuning(3)
        assert states(result) == ["complete", "cut off", "complete", "complete"]
        assert result.records[2].params == result.records[1].params
        assert result.records[3].params != result.records[1].params
        assert len(result.table()[1]) == 3
        assert played.trained[1] == played.trained[2]
        assert states(tuning(3)) == states(result), "and only once"

    def test_so_is_that_of_a_killed_process(self, tuning: Tuning, play: Play) -> None:
        play(self.dies(SystemExit, {0}))
        with pytest.raises(SystemExit):
            tuning(2)
        with tuning.folder.journal.open("ab") as journal:
            journal.write(b'{"op_code":8,"worker')
        tuning.folder.journal.with_name("journal.jsonl.lock").symlink_to(tuning.folder.journal)
        result = tuning(2)
        assert states(result) == ["cut off", "complete", "complete"]
        assert result.records[1].params == result.records[0].params
        assert result.records[1].own, "still the configuration as given"

    def test_settings_that_kill_the_process_are_given_up(self, tuning: Tuning, play: Play) -> None:
        play(self.dies(SystemExit, {0, 1, 2}))
        for _ in range(3):
            with pytest.raises(SystemExit):
                tuning(2)
        result = tuning(2)
        assert states(result) == ["cut off", "cut off", "failed", "complete"]
        assert "died 3 times" in result.records[2].message

    def test_weights_of_a_cut_off_trial_go(self, tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
        def cut(*args: object, on_validation: OnValidation, **others: object) -> dict[str, object]:
            def stop(epoch: int, value: float) -> bool:
                on_validation(epoch, value)
                raise KeyboardInterrupt

            return train_run(*args, on_validation=stop, **others)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "train_run", cut)
        with pytest.raises(KeyboardInterrupt):
            tuning(1)
        assert tuning.folder.trial(0).checkpoints.is_dir()
        monkeypatch.undo()
        assert states(tuning(1)) == ["cut off", "complete"]
        assert not tuning.folder.trial(0).checkpoints.exists()
        assert tuning.folder.trial(1).checkpoints.is_dir()


class TestRefused:
    def test_a_wrong_space_before_anything_is_written(self, tuning: Tuning) -> None:
        tuning.space.write_text("train.learning_rat: {low: 1.0e-4, high: 1.0e-3}\n")
        with pytest.raises(ConfigError, match=r"learning_rat'.*did you mean 'learning_rate'"):
            tuning(2)
        assert not tuning.out.exists()

    def test_a_feed_or_configuration_that_cannot_train_leaves_the_folder_free(self, tuning: Tuning, play: Play) -> None:
        values = tuning.config.model_dump(mode="json")
        values["encoders"]["text"]["tuning"] = {"mode": "top", "blocks": 99}
        with pytest.raises(MmrecError, match="99"):
            Tuning(validate(values, where="test"), tuning.feed, tuning.space, tuning.out)(2)
        with pytest.raises(FeedError):
            Tuning(tuning.config, tuning.feed.parent / "nowhere", tuning.space, tuning.out)(2)
        play(lambda number, epoch: 0.5)
        assert states(tuning(1)) == ["complete"]

    def test_another_configuration_or_space(self, tuning: Tuning, play: Play) -> None:
        play(lambda number, epoch: 0.5)
        tuning(1)
        other = changed(tuning.config, train={"epochs": 3})
        with pytest.raises(ArtifactError, match="got another configuration, in"):
            Tuning(other, tuning.feed, tuning.space, tuning.out)(2)
        tuning.space.write_text("train.learning_rate: {low: 1.0e-4, high: 1.0e-3}\n")
        with pytest.raises(ArtifactError, match="got another space, in"):
            tuning(2)

    def test_a_folder_of_something_else(self, tuning: Tuning, tiny_run: Path) -> None:
        with pytest.raises(ArtifactError, match="a new folder"):
            Tuning(tuning.config, tuning.feed, tuning.space, tiny_run)(2)
        assert not (tiny_run / "plan.json").exists()

    def test_a_folder_in_which_another_tunes(self, tuning: Tuning) -> None:
        with tuning.folder.alone(), pytest.raises(ArtifactError, match="nobody else tuning"):
            tuning(1)

    def test_without_optuna(
        self, tuning: Tuning, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("mmrec.commands.tune", "mmrec.commands.tune_trials", "mmrec.tuning.study"):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "optuna", None)
        monkeypatch.setenv(SWITCH, "0")
        monkeypatch.setattr(sys, "argv", tuning.arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert "pip install 'mmrec[tune]'" in capsys.readouterr().err


class TestWorkers:
    def test_are_not_those_of_a_launcher(self, tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match=r"its own workers, got 2 under a launcher.*--workers"):
            tuning(1)

    def test_share_the_trials_and_stop_together(
        self, tuning: Tuning, play: Play, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

        def reporters() -> set[str]:
            entries = [json.loads(line) for line in tuning.folder.journal.read_text().splitlines()]
            return {entry["worker_id"] for entry in entries if "intermediate_value" in entry}

        def stop_when_both_work(message: str) -> None:
            if message.startswith("trial ") and len(reporters()) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune_run(
                tuning.config,
                feed=tuning.feed,
                space=tuning.space,
                out=tuning.out,
                trials=99,
                workers=2,
                device="cpu",
                notify=stop_when_both_work,
            )
        logs = [path.read_text() for path in sorted((tuning.out / "workers").iterdir())]
        assert logs == ["", ""], "no complaints"
        with tuning.folder.alone():
            before = Study.open(tuning.folder).records
        # How many trials end before the slower process reports is the machine's affair, and so is whether some of them
        # are pruned.
        ended = [record.number for record in before if record.state in ("complete", "pruned")]
        assert 0 < len(ended) < 99
        # What the workers left is gone on with; that trials train is tested above.
        play(lambda number, epoch: 0.0)
        result = tuning(len(ended) + 2)
        assert set(states(result)) <= {"complete", "pruned", "cut off"}
        assert sum(state != "cut off" for state in states(result)) == len(ended) + 2
        assert [result.records[number] for number in ended] == [before[number] for number in ended]

    def test_that_die_are_told_of(self, tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(ArtifactError, match=r"2 trials to be done, got 0, .*workers.*run the same command again"):
            tuning(2, workers=2)

    def test_take_turns_on_the_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
        assert [module.spread("auto", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
        assert [module.spread("cuda:1", 0), module.spread("cpu", 1)] == ["cuda:1", "cpu"]
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 1)
        assert module.spread("auto", 1) == "auto"

    def test_get_their_share_of_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "9")
        assert set(thread_share(2).values()) == {"4"}
        assert set(thread_share(20).values()) == {"1"}
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set(thread_share(1).values()) == {str(len(os.sched_getaffinity(0)))}


def test_json_and_table_say_the_same(
    tuning: Tuning, play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(lambda number, epoch: 0.1 * number)
    monkeypatch.setenv(SWITCH, "0")
    shown = []
    for extra in (["--json"], []):
        monkeypatch.setattr(sys, "argv", [*tuning.arguments, "--trials", "3", *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown.append(capsys.readouterr().out)
    values = json.loads(shown[0])
    assert values["best"] == 2
    assert [trial["value"] for trial in values["trials"]] == pytest.approx([0.0, 0.1, 0.2])
    assert values == read_json(tuning.folder.results)
    assert shown[1].index(".2000") < shown[1].index(".1000"), "best first"
    assert f"mmrec train {tuning.folder.best}" in shown[1]
    assert "Without a tune: trial 0" in shown[1]


def test_importance_is_told_of_enough_trials(tuning: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: Config, *, on_validation: OnValidation, **others: object) -> None:
        # Only the rate matters; the best is in the middle of its logarithms.
        on_validation(config.train.epochs, 1 - abs(math.log(config.train.learning_rate / 1.2e-3)) / 5)

    monkeypatch.setattr(module, "train_run", train)
    assert tuning(19).importance is None
    importance = tuning(25).importance
    assert importance is not None
    assert set(importance) == set(SPACE)
    assert sum(importance.values()) == pytest.approx(1.0)
    assert max(importance, key=lambda key: importance[key]) == "train.learning_rate"


def test_names_are_cut_to_what_tells_them_apart() -> None:
    keys = ["model.fusion.dropout", "model.user.dropout", "train.learning_rate"]
    assert list(short_names(keys).values()) == ["fusion.dropout", "user.dropout", "learning_rate"]
