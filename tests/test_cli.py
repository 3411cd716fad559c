"""The command line from outside: help with examples, exit codes, one paragraph of error, JSON beside tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from data_tools.cli import app as data_app
from mmrec.cli import app, main
from mmrec.process import SWITCH
from mmrec.storage import read_json
from tests.tiny_run import NUM_ITEMS, NUM_USERS, TinyEncoders, TinyFeed, tiny_config, write_config, write_lines

ROOT = Path(__file__).parent.parent
COMMANDS = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        assert self.code == 0, self.err
        return dict(json.loads(self.out))


class Command:
    """The command line, run within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv(SWITCH, "0")

    def __call__(self, *arguments: object) -> Done:
        self._patch.setattr(sys, "argv", ["mmrec", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)


@pytest.fixture
def mmrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def outside(*arguments: object, cwd: Path = ROOT) -> Done:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mmrec.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


class TestHelp:
    def test_names_every_command(self, mmrec: Command) -> None:
        shown = mmrec("--help").out
        assert set(COMMANDS) >= {
            "train",
            "evaluate",
            "score",
            "recommend",
            "export",
            "index",
            "search",
            "convert-weights",
        }
        assert all(f"  {name} " in shown for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_shows_an_example_that_it_takes(self, mmrec: Command, name: str) -> None:
        done = mmrec(name, "--help")
        assert done.code == 0
        assert f"Example: mmrec {name} " in " ".join(done.out.split())

    @pytest.mark.parametrize("names", [app, data_app], ids=["mmrec", "mmrec-data"])
    def test_every_option_has_the_name_that_the_docs_give_it(self, names: typer.Typer) -> None:
        """Some versions of typer take a placeholder that spells a parameter's name for the name of its option."""

        def options(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
            for parameter in getattr(command, "params", []):
                if parameter.param_type_name == "option":
                    yield from ((*path, name) for name in (*parameter.opts, *parameter.secondary_opts))
            for name, inner in getattr(command, "commands", {}).items():
                yield from options(inner, (*path, name))

        found = list(options(typer.main.get_command(names), ()))
        assert ("train", "--feed") in found or ("prepare", "--out") in found
        assert [path for path in found if path[-1] != path[-1].lower()] == []

    def test_nothing_asked_is_wrong_use_and_shows_help(self, mmrec: Command) -> None:
        done = mmrec()
        assert done.code == 2
        assert "search" in done.out + done.err


class TestWrongUse:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["train"],
            ["train", "c.yaml", "--feed", "f"],
            ["train", "c.yaml", "--feed", "f", "--out", "o", "--epochs", "3"],
            ["evaluate", "r", "--split", "tomorrow"],
            ["recommend", "r", "--out", "o.csv", "-k", "0"],
            ["recommend", "r", "--out", "o.csv", "-k", "many"],
            ["export", "r", "--out", "v", "--store", "elsewhere"],
            ["export", "r", "--out", "v", "--dim", "0"],
            ["export", "r"],
            ["export", "r", "--out", "v", "--compare"],
            ["export", "r", "--compare", "--only-new"],
            ["index", "v", "--index", "tree"],
            ["search", "v"],
        ],
    )
    def test_exits_with_2_and_says_why(self, mmrec: Command, arguments: list[str]) -> None:
        done = mmrec(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert "Error" in done.err
        assert "Traceback" not in done.err


class TestErrors:
    @staticmethod
    def failed(done: Done, *words: str) -> None:
        assert done.code == 1, done.err
        assert done.out == ""
        notices, begins, error = done.err.rpartition("error: expected ")
        assert begins, done.err
        assert "Traceback" not in notices
        assert error.count("\n") == 1, "one paragraph, and nothing after it"
        for word in words:
            assert word in begins + error

    def test_folders_that_are_something_else(self, mmrec: Command, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        requests = write_lines(tmp_path / "r.jsonl", [{"user_id": "u01", "candidates": ["p01"]}])
        for arguments in (
            ["evaluate", tmp_path],
            ["score", tmp_path, "--requests", requests, "--out", tmp_path / "s.csv"],
            ["recommend", tmp_path, "--out", tmp_path / "s.csv"],
            ["export", tiny_feed.prepared, "--out", tmp_path / "v"],
        ):
            self.failed(mmrec(*arguments), "a run folder", "run.json", "mmrec train")
        self.failed(mmrec("search", tmp_path, "--text", "red"), "a folder of vectors", "mmrec export")
        self.failed(mmrec("index", tmp_path), "a folder of vectors", "mmrec export")
        assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]

    def test_configs(self, mmrec: Command, tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path) -> None:
        config = write_config(tmp_path / "c.yaml", tiny_config(tiny_encoders))
        rest = ["--feed", tiny_feed.prepared, "--out", tmp_path / "run", "--device", "cpu"]
        self.failed(mmrec("train", tmp_path / "no.yaml", *rest), "a config file", "no.yaml", "configs/")
        for assignment, words in {
            "train.epoch=3": ["'train.epoch'", "did you mean 'epochs'"],
            "trian.epochs=3": ["'trian'", "did you mean 'train'"],
            "encoders.text.modell=x": ["modell", "did you mean 'model'"],
            "model.user.kind=lstm": ["model.user.kind", "'gru'"],
            "train.epochs=0": ["train.epochs", "greater than 0"],
            "train.epochs": ["KEY=VALUE", "--set train.epochs=3"],
            "encoders.image.model=test_vitt": ["'test_vitt'", "test_vit"],
            "encoders.text.model=no-such-bert": ["no-such-bert"],
            "train.metric=ndgc@10": ["ndgc@10", "did you mean 'ndcg@10'"],
        }.items():
            self.failed(mmrec("train", config, *rest, "--set", assignment), *words)
        self.failed(mmrec("train", config, "--feed", tmp_path, "--out", tmp_path / "run"), "mmrec-data prepare")
        self.failed(mmrec("train", config, *rest[:4], "--device", "gpu"), "a device", "--device")
        assert not (tmp_path / "run").exists()


class TestCommands:
    """One pass through all of them, as a user would; what they compute is tested elsewhere."""

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("cli")

    @pytest.fixture
    def run(self, mmrec: Command, place: Path, tiny_feed: TinyFeed, tiny_encoders: TinyEncoders) -> Path:
        run = place / "run"
        if not run.exists():
            config = write_config(place / "c.yaml", tiny_config(tiny_encoders))
            train = ["train", config, "--feed", tiny_feed.prepared, "--out", run, "--device", "cpu", "--json"]
            summary = mmrec(*train, "--set", "train.epochs=1").json()
            assert (summary["epochs"], summary["device"]) == (1, "cpu")
        return run

    def test_train_again_is_refused_and_resumed(
        self, mmrec: Command, place: Path, run: Path, tiny_feed: TinyFeed
    ) -> None:
        again = ["train", place / "c.yaml", "--feed", tiny_feed.prepared, "--out", run, "--set", "train.epochs=1"]
        TestErrors.failed(mmrec(*again), "one that holds a run", "--resume")
        done = mmrec(*again, "--resume", "--device", "cpu")
        assert done.code == 0
        assert "Next: mmrec evaluate" in done.out

    def test_train_with_a_profile(
        self, mmrec: Command, tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path
    ) -> None:
        config = write_config(tmp_path / "c.yaml", tiny_config(tiny_encoders))
        train = ["train", config, "--feed", tiny_feed.prepared, "--device", "cpu", "--profile"]
        train += ["--set", "train.epochs=1", "--set", "train.workers=1"]
        shown = mmrec(*train, "--out", tmp_path / "shown")
        assert shown.code == 0, shown.err
        titles = ["Where the time of a step goes", "Beside it, in the loader's thread", "Profile", "Training"]
        assert [line.strip() for line in shown.out.splitlines() if line.strip() in titles] == titles
        beginnings = {line.split("  ")[0].strip() for line in shown.out.splitlines()}
        wanted = {"text encoder", "fusion", "objective", "optimiser", "validation", "other", "sum", "loader: collation"}
        assert wanted <= beginnings
        written = json.loads((tmp_path / "shown" / "profile.json").read_text(encoding="utf-8"))
        table = shown.out[: shown.out.index("Beside it")]
        assert [row["section"] for row in written["sections"] if f" {row['section']} " not in table] == []
        summary = mmrec(*train, "--out", tmp_path / "json", "--json").json()
        assert summary["profile"] == json.loads((tmp_path / "json" / "profile.json").read_text(encoding="utf-8"))

    def test_evaluate(self, mmrec: Command, run: Path) -> None:
        report = mmrec("evaluate", run, "--device", "cpu", "--no-knockout", "--json").json()
        assert (report["part"], report["knockouts"]) == ("validation", [])
        assert "against" not in report
        done = mmrec("evaluate", run, "--device", "cpu", "--no-knockout", "--against", run)
        assert done.code == 0
        assert "popularity" in done.out
        assert "report.html" in done.out

    def test_score(self, mmrec: Command, run: Path, place: Path) -> None:
        requests = write_lines(place / "r.jsonl", [{"user_id": "u01", "candidates": ["p01", {"caption": "red"}, "x"]}])
        arguments = ["score", run, "--requests", requests, "--out", place / "s.jsonl", "--device", "cpu"]
        summary = mmrec(*arguments, "--json").json()
        assert [summary[key] for key in ("requests", "candidates", "scored", "errors")] == [1, 3, 2, 1]
        assert "Scores" in mmrec(*arguments).out

    def test_recommend(self, mmrec: Command, run: Path, place: Path) -> None:
        arguments = ["recommend", run, "--out", place / "t.csv", "-k", "3", "--new-only", "--device", "cpu"]
        assert mmrec(*arguments, "--json").json()["rows"] == 3 * NUM_USERS

    def test_export_and_search(self, mmrec: Command, run: Path, place: Path, tiny_feed: TinyFeed) -> None:
        vectors = place / "vectors"
        summary = mmrec("export", run, "--out", vectors, "--store", "faiss", "--device", "cpu", "--json").json()
        assert (summary["items"], summary["recall@10"]) == (NUM_ITEMS, 1.0)
        found = mmrec(
            "search", vectors, "--text", "red scarf", "--where", "price<20", "-k", "3", "--device", "cpu", "--json"
        )
        assert len(found.json()["found"]) == 3  # type: ignore[arg-type]
        shown = mmrec("search", vectors, "--item", "p01", "--item", "p04", "-k", "31")
        assert "p01" in shown.out
        assert "31 were asked for" in shown.out
        picture = ["--image", tiny_feed.image("p01"), "--user", "u01", "--device", "cpu"]
        assert "Found" in mmrec("search", vectors, *picture).out
        TestErrors.failed(mmrec("search", vectors, "--item", "p99"), "'p99'", "--item")
        TestErrors.failed(mmrec("search", vectors, "--item", "p01", "--where", "price ?? 3"), "--where")
        summary = mmrec("index", vectors, "--index", "flat", "--json").json()
        assert (summary["index"], summary["items"], summary["recall@10"]) == ("flat", NUM_ITEMS, 1.0)
        assert mmrec("search", vectors, "--item", "p01", "--item", "p04", "-k", "31").out == shown.out
        TestErrors.failed(mmrec("index", vectors, "--index", "ivfpq"), "at least 256 vectors", "hnsw or flat")

    def test_encoders_in_bfloat16(self, mmrec: Command, run: Path, place: Path) -> None:
        narrow = ["--device", "cpu", "--compute-dtype", "bfloat16", "--json"]
        exported = mmrec("export", run, "--out", place / "narrow", *narrow).json()
        manifest = read_json(place / "narrow" / "manifest.json")
        assert manifest["compute_dtype"] == "bfloat16"
        assert exported["items encoded"] == NUM_ITEMS, "none of those in float32"
        requests = write_lines(place / "n.jsonl", [{"user_id": "u01", "candidates": ["p01", {"caption": "red"}]}])
        models = {
            str(mmrec(*verb, *narrow).json()["model"])
            for verb in (
                ("score", run, "--requests", requests, "--out", place / "n.csv"),
                ("recommend", run, "--out", place / "m.csv", "-k", "3"),
            )
        }
        assert models == {manifest["model_hash"]}
        assert mmrec("evaluate", run, "--no-knockout", *narrow).json()["part"] == "validation"
        assert mmrec("export", run, "--compare", *narrow).json()["choices"]
        again = ["export", run, "--out", place / "narrow", "--only-new", "--device", "cpu"]
        TestErrors.failed(mmrec(*again), "ran in float32", "in bfloat16", "--compute-dtype bfloat16")
        assert mmrec(*again, *narrow[2:]).json()["items encoded"] == 0
        found = mmrec("search", place / "narrow", "--text", "red scarf", "-k", "3", "--device", "cpu", "--json")
        assert len(found.json()["found"]) == 3, "in the format of the export"  # type: ignore[arg-type]

    def test_smaller_vectors_from_training_to_search(
        self, mmrec: Command, tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path
    ) -> None:
        config, run = write_config(tmp_path / "c.yaml", tiny_config(tiny_encoders)), tmp_path / "run"
        rest = ["--feed", tiny_feed.prepared, "--out", run, "--device", "cpu", "--json"]
        assert mmrec("train", config, *rest, "--set", "objective.matryoshka_dims=[4,8]").json()["epochs"] == 2
        choices = mmrec("export", run, "--compare", "--device", "cpu", "--json").json()["choices"]
        assert [(row["dim"], row["trained"]) for row in choices] == [  # type: ignore[attr-defined]
            (dim, "yes") for dim in (16, 8, 4) for _ in range(3)
        ]
        shown = mmrec("export", run, "--compare", "--device", "cpu")
        assert "Recall of smaller vectors" in shown.out
        assert not (tmp_path / "v").exists()
        small = ["--dims", "4", "--dtype", "int8", "--device", "cpu", "--json"]
        summary = mmrec("export", run, "--out", tmp_path / "v", *small).json()
        assert (summary["dim"], summary["precision"], summary["bytes a post"]) == (5, "int8", 12)
        assert summary["recall@10, users"] == choices[-1]["recall@10, users"]  # type: ignore[index]
        again = mmrec("export", run, "--out", tmp_path / "v", *small, "--only-new").json()
        assert again["items encoded"] == 0
        wanted = mmrec("recommend", run, "--out", tmp_path / "top.jsonl", "-k", "3", "--device", "cpu")
        assert wanted.code == 0
        top = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
        found = mmrec("search", tmp_path / "v", "--user", "u07", "-k", "3", "--device", "cpu", "--json").json()["found"]
        assert [row["item_id"] for row in found] == [  # type: ignore[attr-defined]
            row["item_id"] for row in top if row["user_id"] == "u07"
        ]
        failed = mmrec("export", run, "--out", tmp_path / "v", "--dim", "4", "--only-new", "--device", "cpu")
        TestErrors.failed(failed, "float32", "int8", "--only-new")


class TestOutside:
    def test_an_error_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        done = outside("train", "no.yaml", "--feed", "f", "--out", "r", cwd=tmp_path)
        TestErrors.failed(done, "a config file")

    def test_a_number_format_that_is_none(self, tiny_run: Path) -> None:
        """Without the tests' checks of types, which would be first to refuse it."""
        code = "import sys; from mmrec import Recommender; Recommender.load(sys.argv[1], compute_dtype='float16')"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_run)], env=environment, capture_output=True, text=True, check=False
        )
        assert "ConfigError: expected a number format to compute in (float32, bfloat16), got 'float16'" in done.stderr

    def test_results_alone_go_to_stdout(self, tiny_run: Path, tmp_path: Path) -> None:
        done = outside("recommend", tiny_run, "--out", tmp_path / "t.jsonl", "-k", "2", "--json", cwd=tmp_path)
        assert done.json()["users"] == NUM_USERS
        assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2 * NUM_USERS
