"""The file of `mmrec serve --config`: everything in it, strict, and the command line over it."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import mmrec.commands.serve
from mmrec import cli
from mmrec.errors import ConfigError
from mmrec.serving.limits import Limits
from mmrec.serving.serve_config import ServeConfig, read_serve_config

SHIPPED = Path(__file__).parent.parent.parent / "configs" / "serve.yaml"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_shows_every_option_with_its_default() -> None:
    config, text = read_serve_config(SHIPPED, {}), SHIPPED.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert config == ServeConfig(run=Path("runs/hm"), vectors=Path("vectors/hm"))
    assert set(values["limits"]) == {field.name for field in fields(Limits)}
    missing = set(ServeConfig.model_fields) - set(values)
    assert all(f"# {name}: " in text for name in missing), missing


def test_the_file_knows_every_option_of_the_command() -> None:
    options = inspect.signature(cli.serving.serve).parameters
    assert set(options) - {"config"} == set(ServeConfig.model_fields) - {"limits"}
    assert all(option.default is None for option in options.values()), "so that the file knows what is not given"


def test_the_command_line_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def listen(run: Path, **options: object) -> None:
        asked.update(options, run=run)

    monkeypatch.setattr(mmrec.commands.serve, "serve_run", listen)
    text = "run: a\nvectors: b\nport: 9000\nserved_log: false\nlimits: {candidates: 5, batch_seconds: 1}\n"
    path = write(tmp_path / "serve.yaml", text)
    done = CliRunner().invoke(cli.app, ["serve", "--config", str(path), "--vectors", "c", "--port", "8000"])
    assert done.exit_code == 0, done.output
    assert (asked["run"], asked["vectors"], asked["port"]) == (Path("a"), Path("c"), 8000)
    assert asked["keep_served"] is False, "not named on the command line"
    assert asked["limits"] == Limits(candidates=5, batch_seconds=1.0)
    assert asked["host"] == "127.0.0.1"
    done = CliRunner().invoke(cli.app, ["serve", "d", "--vectors", "e", "--reveal-ids"])
    assert (asked["run"], asked["reveal_ids"], asked["limits"]) == (Path("d"), True, Limits())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 8000", "unknown key 'prot' .did you mean 'port'"),
        ("limits: {candidate: 3}", "unknown key 'limits.candidate' .did you mean 'candidates'"),
        ("limits: {threads: 0}", "limits.threads: .*greater than 0"),
        ("limits: {threads: many}", "limits.threads"),
        ("limits: {threads: 1.5}", "limits.threads"),
        ("limits: {rate: -1}", "limits.rate"),
        ("limits: {request_seconds: .nan}", "limits.request_seconds"),
        ("limits: 3", "limits"),
        ("port: '8000'", "port: .*integer"),
        ("port: 70000", "port"),
        ("reveal_ids: 1", "reveal_ids"),
        ("host: [a]", "host"),
        ("- port", "a mapping of settings"),
        ("port: [", "a YAML file"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_serve_config(write(tmp_path / "serve.yaml", text), {})


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a config file"):
        read_serve_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="no run"):
        read_serve_config(None, {"vectors": Path("v")}).pair()
    with pytest.raises(ConfigError, match="no vectors"):
        read_serve_config(None, {"run": Path("r")}).pair()
