"""The command line: exit codes, JSON, quick help, defaults that equal those of the work."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from data_tools import cli
from data_tools.cli import main
from data_tools.prepare import PrepareOptions
from data_tools.split_choices import SplitChoices
from data_tools.synthesize import SynthesizeOptions
from mmrec import console
from mmrec.errors import FeedError
from mmrec.feed.splits import KINDS, Split
from mmrec.storage import write_array
from tests.feeds import write_feed

EVENTS = [(user, item, time) for user in "uvw" for time, item in enumerate("abcd")]
COMMANDS = ["prepare", "split", "describe", "audit", "synthesize"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrec-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return int(code or 0), captured.out, captured.err

    return call


def raw_feed(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{item},post {item}\n" for item in "abcd"))
    lines = [f"{user},{item},2024-01-0{time + 1}" for user, item, time in EVENTS]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    Image.fromarray(np.full((8, 6, 3), 90, np.uint8)).save(folder / "images" / "a.png")
    return folder


def test_prepare_split_describe_audit_in_a_row(tmp_path: Path, run: Run) -> None:
    feed, out = raw_feed(tmp_path / "raw"), tmp_path / "work"
    code, text, _ = run(
        "prepare", feed, "--out", out, "--caption", "title", "--split", "leave_last_out", "--workers", 1
    )
    assert (code, "items: kept" in text) == (0, True)
    code, text, _ = run(
        "prepare", feed, "--out", out, "--caption", "title", "--split", "leave_last_out", "--workers", 1, "--json"
    )
    assert (code, json.loads(text)["unchanged"]) == (0, True)
    code, text, _ = run("split", out, "--kind", "last_day", "--name", "days", "--default", "--json")
    assert (code, json.loads(text)["test_cases"]) == (0, 3)
    assert Split.load(out).name == "days"
    code, text, _ = run("describe", out)
    assert code == 0
    assert all(word in text for word in ("leave_last_out", "last_day", "post a", "6 x 8"))
    code, text, _ = run("describe", out, "--json")
    assert json.loads(text)["report"]["items"]["kept"] == 4
    code, text, _ = run("audit", out, "--json")
    assert (code, json.loads(text)["failed"], sorted(json.loads(text)["splits"])) == (
        0,
        False,
        ["days", "leave_last_out"],
    )


def test_audit_exits_with_1_on_errors(tmp_path: Path, run: Run) -> None:
    feed = write_feed(tmp_path / "f", interactions=EVENTS)
    assert run("audit", feed)[0] == 0
    write_array(feed / "splits" / "leave_last_out" / "train_events.npy", np.ones(12, dtype=np.bool_))
    code, text, _ = run("audit", feed)
    assert code == 1
    assert "target-in-train" in text
    code, text, _ = run("audit", feed, "--split", "leave_last_out", "--json")
    assert (code, json.loads(text)["failed"]) == (1, True)


def test_cold_items_from_files_and_times_from_text(tmp_path: Path, run: Run) -> None:
    feed = write_feed(tmp_path / "f", interactions=EVENTS)
    (tmp_path / "cold.txt").write_text("d\n\n")
    listed = ("--cold-list", tmp_path / "cold.txt", "--validation-cold-count", 0)
    code, text, _ = run("split", feed, "--kind", "cold_items", *listed, "--json")
    assert (code, json.loads(text)["parameters"]["cold_count"], json.loads(text)["test_cases"]) == (0, 1, 3)
    window = ("--validation-from", "1970-01-01T00:00:00.002", "--test-from", "3", "--targets", "successive")
    code, text, _ = run("split", feed, "--kind", "global_time", *window, "--json")
    assert json.loads(text)["parameters"] == {
        "validation_from": 2,
        "test_from": 3,
        "window_targets": "successive",
        "minimum_history": 1,
        "existing_only": True,
    }
    (tmp_path / "empty.txt").write_text("\n")
    assert run("split", feed, "--kind", "cold_items", "--cold-list", tmp_path / "empty.txt")[0] == 1
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "UTF-8" in run("split", feed, "--kind", "cold_items", "--cold-list", tmp_path / "latin.txt")[2]
    code, _, complaint = run("split", feed, "--kind", "cold_items", "--cold-list", tmp_path / "absent.txt")
    assert (code, "absent.txt" in complaint) == (1, True)


def test_failures_are_one_paragraph_and_exit_code_1(tmp_path: Path, run: Run) -> None:
    code, out, complaint = run("describe", tmp_path)
    assert (code, out) == (1, "")
    assert complaint.startswith("error: expected a prepared feed, got a folder without manifest.json")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe",),
        ("describe", "f", "--jsn"),
        ("split", "f", "--kind", "last_dya"),
        ("split", "f", "--kind", "last_day", "--minimum-history", "0"),
        ("split", "f", "--kind", "global_time", "--test-from", "yesterday"),
        ("prepare", "f"),
        ("prepare", "f", "--out", "g", "--timestamp-unit", "weeks"),
        ("synthesize", "--out", "g", "--difficulty", "2"),
        ("nothing",),
    ],
)
def test_wrong_use_exits_with_2(arguments: tuple[str, ...], run: Run) -> None:
    code, out, complaint = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: mmrec-data" in complaint


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, run: Run) -> None:
    code, text, _ = run(command, "--help")
    assert code == 0
    assert f"Example: mmrec-data {command}" in text
    assert "--json" in text


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom data_tools.cli import main\nsys.argv = ['mmrec-data', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'torch', 'pyarrow', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in COMMANDS)
    assert time.monotonic() - began < 5, "half a second on an idle machine; tests run on busy ones"


def test_shown_defaults_are_those_of_the_work() -> None:
    shown = {
        name: parameter.default
        for command in (cli.preparing.prepare, cli.splitting.split, cli.sources.synthesize)
        for name, parameter in inspect.signature(command).parameters.items()
    }
    for options in (PrepareOptions(), SplitChoices(), SynthesizeOptions()):
        for name in set(shown) & set(vars(options)) - {"split"}:
            left_to_the_work = shown[name] is None
            assert left_to_the_work or shown[name] == getattr(options, name), name
    assert [kind.value for kind in cli.splitting.Kind] == list(KINDS)


def test_run_app_turns_only_mendable_errors_into_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mendable(*, prog_name: str) -> None:
        raise FeedError("apples", got="pears", fix="Pick apples.")

    def full(*, prog_name: str) -> None:
        raise OSError(28, "No space left on device")

    def stopped(*, prog_name: str) -> None:
        raise KeyboardInterrupt

    def broken(*, prog_name: str) -> None:
        raise KeyError("a fault of the program")

    inside = typer.Typer()

    @inside.command()
    def stopped_inside() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["x"])

    for app, code, words in (
        (mendable, 1, "expected apples, got pears. Pick"),
        (full, 1, "No space"),
        (stopped, 130, "what was finished is kept"),
        (inside, 130, "what was finished is kept"),
    ):
        with pytest.raises(SystemExit) as left:
            console.run_app(app, name="x")
        assert left.value.code == code
        assert words in capsys.readouterr().err
    with pytest.raises(KeyError):
        console.run_app(broken, name="x")


def test_bars_appear_only_for_slow_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("quick", 3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.0)
    with console.stages() as report:
        for done in range(5):
            report("pictures", done, 4)
            time.sleep(0.02)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("pictures", "4/4", "/s", "left"))


def test_tables_wrap_and_align(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table("a title", ["name", "count"], [["[b]x", 1234], ["y" * 300, 0]])
    text = capsys.readouterr().out
    assert text.startswith("a title\n")
    assert "[b]x" in text, "markup in data is text"
    assert text.count("y") == 300, "nothing is cut off"
    assert "1,234" in text
    assert [console.format_cell(value) for value in (None, 0.25, -0.5, 12.34, 1234, True, "0.5")] == [
        "",
        ".2500",
        "-.5000",
        "12.3",
        "1,234",
        "True",
        "0.5",
    ]
