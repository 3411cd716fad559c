"""What README and docs show can be typed, and what they point to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import data_tools.cli
import mmrec.cli
from tests.tiny_run import TinyFeed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS[ROOT / "README.md"]
APPS = {"mmrec": mmrec.cli.app, "mmrec-data": data_tools.cli.app}


def _commands(text: str) -> list[str]:
    return re.findall(r"^    (mmrec(?:-data)? .*?)(?:\s+#.*)?$", text, flags=re.MULTILINE)


COMMANDS = dict.fromkeys(command for text in TEXTS.values() for command in _commands(text))


def test_the_readme_shows_the_main_commands() -> None:
    shown = {tuple(command.split()[:2]) for command in _commands(README)}
    wanted = {("mmrec-data", name) for name in ("prepare", "describe", "audit", "split")}
    wanted |= {("mmrec", name) for name in ("train", "evaluate", "score", "recommend", "export", "search")}
    assert wanted <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines_name_real_options(command: str) -> None:
    program, name, *words = shlex.split(command)
    shown = CliRunner().invoke(APPS[program], [name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown.output), option


def _anchor(heading: str) -> str:
    """Return what a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(_anchor, headings), link


def test_python_block_runs(
    tiny_run: Path, tiny_feed: TinyFeed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.jpg").write_bytes(tiny_feed.image("p01").read_bytes())
    known = iter(["p04", "p07"])
    block = re.sub(r'"\d{10}"', lambda _: repr(next(known)), block).replace('"runs/hm"', repr(str(tiny_run)))
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    table = names["table"]
    assert list(table["rank"]) in ([1, 2], [2, 1])  # type: ignore[index]
    for column in ("candidate", "score", "rank", "present", "error_message"):
        assert column in table  # type: ignore[operator]
        assert f"`{column}`" in README
