"""Exports whose vectors workers make: the same files as by this process, and refusals before anything is loaded."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mmrec.cli import app
from mmrec.commands.export import export_run
from mmrec.commands.export_engine import EngineChoice
from mmrec.errors import MissingExtraError, RequestError
from mmrec.inference.blocks import BlockDone, BlockRun, BlockTask, EncodeBlock
from mmrec.inference.export import VectorFolder
from mmrec.inference.recommender import Recommender
from mmrec.storage import read_json
from tests.tiny_run import NUM_ITEMS


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run without a table of vectors, so that there is something to encode."""
    return shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that needs no library: blocks are made in this process, the last one first."""

    def backwards(encode: EncodeBlock, tasks: Sequence[BlockTask]) -> Iterable[BlockDone]:
        return map(encode, tasks[::-1])

    def block_run(self: EngineChoice, recommender: Recommender, out: Path, device: str) -> BlockRun | None:
        return None if self.is_local else BlockRun(recommender, self.place(out), backwards, device, 8)

    monkeypatch.setattr(EngineChoice, "check", lambda self, out: None)
    monkeypatch.setattr(EngineChoice, "block_run", block_run)


def assert_same(one: Path, other: Path) -> None:
    for side in ("items", "users"):
        (ids, found), (expected_ids, expected) = (VectorFolder.open(f).vectors(side) for f in (one, other))  # type: ignore[arg-type]
        assert ids.tolist() == expected_ids.tolist()
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    pd.testing.assert_frame_equal(VectorFolder.open(one).table(), VectorFolder.open(other).table())
    manifests = [read_json(folder / "manifest.json") for folder in (one, other)]
    differ = {name for name in manifests[0] if manifests[0][name] != manifests[1][name]}
    assert differ <= {"run", "files", "index"}
    assert [*manifests[0]["files"]] == [*manifests[1]["files"]]  # type: ignore[misc]


@pytest.mark.usefixtures("here")
class TestWithoutRay:
    def test_the_same_export_and_no_blocks_left(self, run: Path, tiny_run: Path, tmp_path: Path) -> None:
        summary = export_run(run, out=tmp_path / "v", store="faiss", engine=EngineChoice("ray"), device="cpu")
        assert (summary["items encoded"], summary["blocks"], summary["blocks kept"]) == (NUM_ITEMS, 4, 0)
        export_run(tiny_run, out=tmp_path / "local", store="faiss", device="cpu")
        assert_same(tmp_path / "v", tmp_path / "local")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "run", "v"]

    def test_smaller_vectors_and_what_they_lose(self, run: Path, tiny_run: Path, tmp_path: Path) -> None:
        smaller = {"precision": "int8", "dim": 8, "device": "cpu"}
        export_run(run, out=tmp_path / "v", engine=EngineChoice("ray"), **smaller)  # type: ignore[arg-type]
        export_run(tiny_run, out=tmp_path / "local", **smaller)  # type: ignore[arg-type]
        assert_same(tmp_path / "v", tmp_path / "local")

    def test_blocks_stay_where_they_were_asked_for(self, run: Path, tmp_path: Path) -> None:
        engine = EngineChoice("ray", blocks=f"file://{tmp_path}/blocks")
        export_run(run, out=tmp_path / "v", engine=engine, device="cpu")
        (manifest,) = (tmp_path / "blocks").rglob("manifest.json")
        assert read_json(manifest)["items"] == NUM_ITEMS
        shutil.rmtree(run / "embeddings")
        summary = export_run(run, out=tmp_path / "v", engine=engine, device="cpu")
        assert (summary["items encoded"], summary["blocks kept"]) == (0, 4)

    def test_vectors_that_are_kept_are_not_encoded(self, tiny_run: Path, tmp_path: Path) -> None:
        export_run(tiny_run, out=tmp_path / "v", device="cpu")
        summary = export_run(tiny_run, out=tmp_path / "v", only_new=True, engine=EngineChoice("ray"), device="cpu")
        assert (summary["items encoded"], summary["blocks"]) == (0, 0)


MEMORY = fsspec.filesystem("memory")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("folders", [True, False], ids=["folders", "as an object store has none"])
class TestUrls:
    @pytest.fixture(autouse=True)
    def kind_of_place(self, folders: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not folders:
            monkeypatch.setattr(type(MEMORY), "makedirs", lambda *args, **kwargs: None)

    @staticmethod
    def export(run: Path, url: str, *options: str) -> int:
        asked = ["export", str(run), "--out", url, "--engine", "ray", "--device", "cpu", "--json", *options]
        return CliRunner().invoke(app, asked).exit_code

    def test_blocks_beside_it_go_when_it_is_whole(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"memory://{uuid.uuid4().hex}/v"
        put = type(MEMORY).put_file

        def breaks(*args: object) -> None:
            raise OSError("the line is down")

        monkeypatch.setattr(type(MEMORY), "put_file", breaks)
        assert self.export(run, url) == 1
        assert [path.endswith(".parquet") for path in MEMORY.find(f"{url}.blocks")].count(True) == 4
        monkeypatch.setattr(type(MEMORY), "put_file", put)
        assert self.export(run, url) == 0
        assert MEMORY.exists(f"{url}/manifest.json")
        assert not MEMORY.exists(f"{url}.blocks")

    def test_blocks_that_were_asked_for_stay(self, run: Path) -> None:
        place = f"memory://{uuid.uuid4().hex}"
        assert self.export(run, f"{place}/v", "--blocks", f"{place}/v.blocks") == 0
        assert [path.endswith(".parquet") for path in MEMORY.find(f"{place}/v.blocks")].count(True) == 4


class TestRefusals:
    def test_without_ray_before_anything_is_loaded(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "mmrec.inference.ray_engine", raising=False)
        monkeypatch.setattr(Recommender, "load", None)
        with pytest.raises(MissingExtraError, match=r"the optional library 'ray'.*pip install 'mmrec\[ray\]'"):
            export_run(run, out=tmp_path / "v", engine=EngineChoice("ray"), device="cpu")
        assert not (tmp_path / "v").exists()

    def test_the_local_engine_has_no_workers(self) -> None:
        for name, options in {
            "--workers 2": {"workers": 2},
            "--blocks x": {"blocks": "x"},
            "--block-items 9": {"block_items": 9},
        }.items():
            with pytest.raises(RequestError, match=rf"beside --engine ray, got {name} beside --engine local"):
                EngineChoice(**options)  # type: ignore[arg-type]

    def test_a_place_that_cannot_be_reached(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("ray")
        monkeypatch.setattr(Recommender, "load", None)
        with pytest.raises(RequestError, match="got 'nowhere://x'.*--blocks"):
            export_run(run, out=tmp_path / "v", engine=EngineChoice("ray", "nowhere://x"), device="cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_command_on_ray(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    asked = ["export", str(run), "--out", str(tmp_path / "v"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*asked, "--engine", "ray", "--workers", "1", "--block-items", "8", "--json"])
    assert done.exit_code == 0, done.output
    assert '"blocks": 4' in done.stdout
    export_run(tiny_run, out=tmp_path / "local", device="cpu")
    assert_same(tmp_path / "v", tmp_path / "local")
    assert not (tmp_path / "v.blocks").exists()
