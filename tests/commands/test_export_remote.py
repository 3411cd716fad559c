"""Exports to URLs: whole or none, and never in the place of something else."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from mmrec.cli import app
from mmrec.commands.export_remote import export_to
from mmrec.errors import ArtifactError, RequestError
from mmrec.inference.export import VectorFolder
from mmrec.storage import write_json

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/v"


def small(folder: Path, **files: str) -> dict[str, object]:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / name).write_text(text)
    write_json(folder / "manifest.json", {"export_version": 2})
    return {"folder": str(folder), "items": len(files)}


def contents(url: str) -> dict[str, str]:
    root = MEMORY._strip_protocol(url)
    return {path.removeprefix(f"{root}/"): MEMORY.cat_file(path).decode() for path in MEMORY.find(root)}


class TestUrls:
    def test_get_every_file(self, url: str) -> None:
        assert export_to(url, lambda folder: small(folder, a="1", b="2")) == {"folder": url, "items": 2}
        found = contents(url)
        assert (found["deep/a"], found["deep/b"]) == ("1", "2")
        assert "export_version" in found["manifest.json"]

    def test_an_export_is_replaced_whole(self, url: str) -> None:
        export_to(url, lambda folder: small(folder, a="1", b="2"))
        export_to(url, lambda folder: small(folder, a="3"))
        assert {name: text for name, text in contents(url).items() if name != "manifest.json"} == {"deep/a": "3"}

    def test_a_copy_that_breaks_off_leaves_no_manifest(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        export_to(url, lambda folder: small(folder, a="1"))
        put = type(MEMORY).put_file

        def breaks(self: object, source: str, place: str) -> None:
            if place.endswith("/b"):
                raise OSError("the line is down")
            put(self, source, place)

        monkeypatch.setattr(type(MEMORY), "put_file", breaks)
        with pytest.raises(OSError, match="the line"):
            export_to(url, lambda folder: small(folder, a="1", b="2"))
        assert "manifest.json" not in contents(url)

    @pytest.mark.parametrize("text", [None, b"{}", b"[]", b"{"])
    def test_something_else_is_never_replaced(self, url: str, text: bytes | None) -> None:
        MEMORY.pipe_file(f"{url}/{'photo.jpg' if text is None else 'manifest.json'}", text or b"dear")
        before = contents(url)
        with pytest.raises(ArtifactError, match=r"something else, in memory://.*Choose another --out"):
            export_to(url, lambda folder: pytest.fail("was asked to export"))
        assert contents(url) == before

    def test_unknown_ones(self) -> None:
        with pytest.raises(RequestError, match=r"got 'nowhere://x': Protocol not known.*--out.*s3fs for s3://"):
            export_to("nowhere://x", lambda folder: pytest.fail("was asked to export"))


def test_paths_and_file_urls_are_folders_here(tmp_path: Path) -> None:
    for out in (str(tmp_path / "a"), f"file://{tmp_path}/a"):
        assert export_to(out, lambda folder: {"folder": folder}) == {"folder": tmp_path / "a"}


def test_the_command(tiny_run: Path, tmp_path: Path, url: str) -> None:
    done = CliRunner().invoke(app, ["export", str(tiny_run), "--out", url, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    MEMORY.get(url, str(tmp_path / "v"), recursive=True)
    folder = VectorFolder.open(tmp_path / "v")
    for name in ("items.parquet", "users.parquet"):
        folder.verify(name)
