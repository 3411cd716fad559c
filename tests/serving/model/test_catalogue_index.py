"""What finds candidates: an index that is damaged is made again, one in a database answers like the export's own."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmrec.commands.serving_process import _rebuild
from mmrec.errors import ConfigError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import open_store
from mmrec.search.index import ExactStore, Store
from mmrec.serving.deployment.loading import load_pair
from mmrec.serving.model.catalogue_index import exported_index, stored_index
from mmrec.serving.stores.store_place import StorePlace
from tests.databases import WITHOUT_POSTGRES, WITHOUT_QDRANT, PostgresServer, local_qdrant
from tests.serving.served import Serve


@pytest.fixture
def damaged(served_vectors: Path, tmp_path: Path) -> Path:
    """An export whose index was cut short."""
    export = tmp_path / "vectors"
    shutil.copytree(served_vectors, export)
    index = export / "items.faiss"
    index.write_bytes(index.read_bytes()[:100])
    return export


def same_answers(store: Store, vectors: np.ndarray) -> None:
    exact = ExactStore(vectors).search(vectors, k=5)
    np.testing.assert_allclose(store.search(vectors, k=5).scores, exact.scores, rtol=1e-5, atol=1e-5)


class TestExportedIndex:
    def test_one_that_is_damaged_is_made_again(self, tiny_run: Path, damaged: Path, serve: Serve) -> None:
        said: list[str] = []
        opener = partial(exported_index, rebuild=_rebuild)
        pair = load_pair(tiny_run, damaged, device="cpu", open_index=opener, notify=said.append)
        assert any("cannot be used" in line for line in said)
        assert any("made again" in line for line in said)
        folder = VectorFolder.open(damaged)
        assert folder.manifest["index"]["kind"] == "flat"  # type: ignore[index]
        same_answers(open_store(folder, pair.exported.full), pair.exported.full)
        assert len(serve("again", of=pair).results("recommend", {"user_id": "u01", "k": 9})) == 9

    @pytest.mark.parametrize("change", ["gone", "short"])
    def test_without_one_every_vector_is_looked_at(
        self, tiny_run: Path, damaged: Path, serve: Serve, change: str
    ) -> None:
        if change == "gone":
            (damaged / "items.faiss").unlink()

        def read_only(folder: VectorFolder) -> None:
            raise PermissionError("a folder that is read only")

        said: list[str] = []
        opener = partial(exported_index, rebuild=read_only)
        pair = load_pair(tiny_run, damaged, device="cpu", open_index=opener, notify=said.append)
        assert any("read only" in line for line in said)
        assert isinstance(pair.exported.store, ExactStore)
        body = {"user_id": "u01", "k": 9}
        none, whole = serve("none", of=pair), serve("whole")
        assert none.results("recommend", body) == whole.results("recommend", body)
        assert [server.get("/v1/model")["index"] for server in (none, whole)] == ["exact", "faiss flat"]


@pytest.mark.parametrize(
    "kind", [pytest.param("postgres", marks=WITHOUT_POSTGRES), pytest.param("qdrant", marks=WITHOUT_QDRANT)]
)
def test_the_stores_index_answers_like_the_exports(
    kind: str,
    tiny_run: Path,
    served_vectors: Path,
    serve: Serve,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        place = StorePlace.parse(server.url)
    else:
        from mmrec.search.qdrant_server import Qdrant

        inside = local_qdrant()
        monkeypatch.setattr(Qdrant, "open", lambda url: inside)
        place = StorePlace.parse("qdrant+http://localhost:6333")
    said: list[str] = []
    opener = partial(stored_index, place=place)
    pairs = [load_pair(tiny_run, served_vectors, device="cpu", open_index=opener, notify=said.append) for _ in range(2)]
    assert sum("were written" in line for line in said) == 1
    here, there = serve("whole"), serve("stored", of=pairs[1])
    assert there.get("/v1/model")["index"] == kind
    for where in ("", "colour=red"):
        body = {"user_id": "u01", "k": 9, "where": where}
        wanted = here.results("recommend", body)
        assert there.results("recommend", body) == wanted
        assert wanted


def test_a_folder_searches_no_vectors(tiny_run: Path, served_vectors: Path, tmp_path: Path) -> None:
    opener = partial(stored_index, place=StorePlace.parse(str(tmp_path)))
    with pytest.raises(ConfigError, match="--index store"):
        load_pair(tiny_run, served_vectors, device="cpu", open_index=opener)
