"""Another model while the service runs: as one pair, checked, with what was published, disturbing no request."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mmrec.serving.answers.service import Service
from mmrec.serving.deployment import swapping
from mmrec.serving.deployment.choice import Choice, Names, base_of
from mmrec.serving.deployment.deployment import Active, Deployment
from mmrec.serving.deployment.loading import Loader, load_pair
from mmrec.serving.deployment.model_folder import ModelFolder, Places
from mmrec.serving.deployment.swapping import Swaps
from mmrec.serving.http.keys import KeyRing, create_key
from mmrec.serving.model.catalogue_index import exported_index
from mmrec.serving.model.exported import Pair
from mmrec.serving.stores.sqlite_store import SqliteStore
from mmrec.serving.stores.store import StoreFailureError
from tests.serving.served import LIMITS, Serve, Server, in_base64, picture

SCARF = {"caption": "an unheard-of crimson scarf", "image": in_base64(picture(1)), "attributes": {"colour": "red"}}
CONTENT = {"run": "content", "vectors": "content-vectors"}
ONE = {"user_id": "u01", "candidates": ["p01", "p02", "p03"]}


@pytest.fixture(scope="module")
def models(models_folder: Path) -> Path:
    """The folder of two pairs, and beside them runs that do not fit or are damaged."""
    for name in ("stale", "torn"):
        shutil.copytree(models_folder / "content", models_folder / name)
    # Other tests of this process may have encoded other feeds with that run.
    for saved in (models_folder / "stale" / "embeddings").glob("*/vectors.npy"):
        np.save(saved, np.load(saved)[::-1])
    for weights in (models_folder / "torn" / "checkpoints").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    return models_folder


@pytest.fixture
def server(serve: Serve, models: Path) -> Server:
    return serve(models=models)


def admin(server: Server, path: str, body: object, status: int = 200) -> dict[str, dict[str, object]]:
    answer = server.client.post(f"/admin/{path}", json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def hash_of(server: Server) -> object:
    return server.get("/v1/model")["model"]


def finds(server: Server, item_id: str, post: dict[str, object]) -> bool:
    """Whether a post is the first that its own content finds, and scores as its content does."""
    content = {"caption": post["caption"], "image": post["image"]}
    by_id, by_content = server.results("score", {"user_id": "u01", "candidates": [item_id, content]})
    assert by_id["score"] == pytest.approx(by_content["score"], abs=1e-5)
    return server.ids("search", {"text": post["caption"], "image": post["image"], "k": 1}) == [item_id]


def test_there_and_back_with_all_that_was_published(server: Server) -> None:
    first = hash_of(server)
    server.put("new-1", SCARF)
    server.put("p07", {**SCARF, "caption": "published over one of the export"})
    server.client.delete("/v1/items/p05")
    server.post("feedback", {"events": [{"user_id": "newcomer", "item_id": "new-1"}]})

    answer = admin(server, "model", CONTENT)
    second = hash_of(server)
    assert second != first
    assert (answer["current"]["model"], answer["current"]["run"], answer["current"]["vectors"]) == (
        second,
        "content",
        "content-vectors",
    )
    assert answer["previous"]["model"] == first
    assert answer["swap"] == {
        **answer["swap"], "step": "done", "searched": 30, "found": 30, "encoded": 8, "carried_over": 2, "left_out": 0,
    }  # fmt: skip
    about = server.get("/v1/model")
    assert (about["run"], about["vectors"], about["since"]) == (
        "content",
        "content-vectors",
        answer["current"]["since"],
    )
    assert finds(server, "new-1", SCARF)
    assert server.get("/v1/items/p07")["caption"] == "published over one of the export"
    server.get("/v1/items/p05", 404)
    assert server.post("recommend", {"user_id": "newcomer"})["user"]["kind"] == "known"  # type: ignore[index]
    assert server.ids("search", {"text": "scarf", "k": 100, "where": "colour=red"}).count("new-1") == 1

    other = {**SCARF, "caption": "published beside the second", "image": in_base64(picture(2))}
    server.put("new-2", other)
    problem = admin(server, "rollback", {"model": second}, 409)
    assert "the hash of the model before" in str(problem["detail"])
    answer = admin(server, "rollback", {"model": first})
    assert (hash_of(server), answer["swap"]["back"]) == (first, True)
    assert finds(server, "new-1", SCARF)
    assert finds(server, "new-2", other)
    server.client.delete("/v1/items/new-1")
    admin(server, "rollback", {})
    assert hash_of(server) == second
    server.get("/v1/items/new-1", 404)
    assert finds(server, "new-2", other)
    text = server.client.get("/metrics").text
    assert 'mmrec_model_swaps_total{outcome="switched"} 1.0' in text
    assert 'mmrec_model_swaps_total{outcome="rolled_back"} 2.0' in text
    assert f'mmrec_model_info{{hash="{second}"}} 1.0' in text


def test_under_load_no_request_fails_and_none_mixes_models(server: Server) -> None:
    expected = {hash_of(server): server.results("score", ONE)}
    over = threading.Event()

    def ask() -> list[tuple[object, object]]:
        seen = []
        while not over.is_set():
            answer = server.client.post("/v1/score", json=ONE)
            assert answer.status_code == 200, answer.text
            seen.append((answer.json()["model"], answer.json()["results"]))
        return seen

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for path, body in (("model", CONTENT), ("rollback", {}), ("rollback", {})):
            admin(server, path, body)
        over.set()
        answers = [entry for future in asking for entry in future.result()]
    expected[hash_of(server)] = server.results("score", ONE)
    assert {model for model, _ in answers} <= set(expected)
    assert all(results == expected[model] for model, results in answers)


def test_a_request_ends_with_the_model_that_it_began_with(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where that is retired meanwhile; and what it publishes is not lost to those that came after."""
    first, begun, go = hash_of(server), threading.Barrier(3), threading.Event()
    decode = server.service.posts.decode

    def wait(content: object) -> object:
        begun.wait(20)
        assert go.wait(20)
        return decode(content)  # type: ignore[arg-type]

    monkeypatch.setattr(server.service.posts, "decode", wait)
    with ThreadPoolExecutor(2) as pool:
        scored = pool.submit(server.post, "score", {"user_id": "u01", "candidates": [{"caption": "red"}]})
        published = pool.submit(server.put, "late", SCARF)
        begun.wait(20)
        admin(server, "model", CONTENT)
        admin(server, "model", {"run": "tiny", "vectors": "tiny-vectors"})
        admin(server, "model", CONTENT)
        assert server.service.worker.alive, "it has requests still"
        go.set()
        assert scored.result()["model"] == first
        published.result()
    assert not server.service.worker.alive, "and now none"
    assert finds(server, "late", SCARF)


def test_what_is_written_while_a_model_is_loaded_appears_in_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, go = threading.Event(), threading.Event()

    def slow(*arguments: object, **named: object) -> Pair:
        loading.set()
        assert go.wait(20)
        return load_pair(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("mmrec.serving.deployment.loading.load_pair", slow)
    server.put("early", {**SCARF, "caption": "early"})
    answer = admin(server, "model", {**CONTENT, "wait": False}, 202)
    assert answer["swap"]["step"] == "loading"
    assert loading.wait(20)
    assert "one swap at a time" in str(admin(server, "model", CONTENT, 409)["detail"])
    server.put("meanwhile", SCARF)
    server.put("p09", {**SCARF, "caption": "over one of both exports"})
    server.client.delete("/v1/items/early")
    go.set()
    while (answer := server.get("/admin/model"))["swap"]["step"] != "done":  # type: ignore[index]
        assert answer["swap"]["step"] != "failed", answer  # type: ignore[index]
    assert finds(server, "meanwhile", SCARF)
    assert server.get("/v1/items/p09")["caption"] == "over one of both exports"
    server.get("/v1/items/early", 404)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"run": "content", "vectors": "tiny-vectors"}, "vectors of the model"),
        ({"run": "stale", "vectors": "content-vectors"}, "items whose saved vectors are those of the model"),
        ({"run": "torn", "vectors": "content-vectors"}, "expected"),
        ({"run": "contents", "vectors": "content-vectors"}, "did you mean 'content'"),
        ({"run": "content-vectors", "vectors": "content"}, "the name of a run in the folder of --models"),
        ({"run": "../models/content", "vectors": "content-vectors"}, "the name of a run"),
        ({"run": "content/", "vectors": "content-vectors"}, "the name of a run"),
        ({"run": "/etc", "vectors": "content-vectors"}, "the name of a run"),
        ({"run": "..", "vectors": "content-vectors"}, "the name of a run"),
        ({"run": "content", "vectors": "content-vectors", "feed": "tiny"}, "the name of a prepared feed"),
        ({"run": "", "vectors": "content-vectors"}, "at least 1 character"),
        ({"run": "content"}, "Field required"),
        ({}, "Field required"),
    ],
)
def test_what_does_not_fit_leaves_the_old_one_answering(
    server: Server, models: Path, body: dict[str, str], words: str
) -> None:
    before = server.results("score", ONE)
    answer = server.client.post("/admin/model", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert words in answer.text
    assert str(models.parent) not in answer.text, "no place on the disk"
    assert server.results("score", ONE) == before
    assert server.get("/admin/model")["previous"] is None
    problem = admin(server, "rollback", {}, 409)
    assert "a model that answered before" in str(problem["detail"])


def test_a_pair_that_breaks_the_program_leaves_the_old_one_answering(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> Pair:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("mmrec.serving.deployment.loading.load_pair", fail)
    problem = admin(server, "model", CONTENT, 500)
    assert "ZeroDivisionError" in str(problem["detail"])
    assert "secret" not in str(problem)
    assert server.get("/admin/model")["swap"]["step"] == "failed"  # type: ignore[index]
    assert 'mmrec_model_swaps_total{outcome="failed"} 1.0' in server.client.get("/metrics").text
    monkeypatch.undo()
    admin(server, "model", CONTENT)


def test_a_fault_after_the_switch_ends_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap is over by then: what answers goes on, whatever becomes of the rest."""

    def fail(*given: object) -> None:
        raise ZeroDivisionError

    server.put("new-1", SCARF)
    monkeypatch.setattr(swapping, "keep_vectors", fail)
    assert admin(server, "model", CONTENT)["swap"]["step"] == "done"
    assert finds(server, "new-1", SCARF)
    monkeypatch.undo()
    admin(server, "rollback", {})
    retire, retired = Active.retire, list[Active]()

    def fail_at_first(active: Active) -> None:
        retire(active)
        retired.append(active)
        if len(retired) == 1:  # the oldest, which is let go of
            raise ZeroDivisionError

    monkeypatch.setattr(Active, "retire", fail_at_first)
    admin(server, "model", CONTENT, 500)
    monkeypatch.undo()
    assert server.get("/v1/model")["run"] == "content"
    assert server.get("/health/ready")["status"] == "ready"


def test_only_where_enabled_and_with_a_key_of_scope_admin(serve: Serve, models: Path, tmp_path: Path) -> None:
    closed = serve("closed")
    for method, path in (("GET", "model"), ("POST", "model"), ("POST", "rollback")):
        assert closed.client.request(method, f"/admin/{path}").status_code == 404
    keys = {
        scope: create_key(tmp_path / "keys.toml", name=scope, scope=scope)  # type: ignore[arg-type]
        for scope in ("write", "admin")
    }
    open_ = serve("open", models=models, keys=KeyRing.load(tmp_path / "keys.toml"))
    for key, statuses in (("", [401] * 3), (keys["write"], [403] * 3), (keys["admin"], [200, 422, 409])):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        found = [
            open_.client.get("/admin/model", headers=headers),
            open_.client.post("/admin/model", headers=headers, json={}),
            open_.client.post("/admin/rollback", headers=headers, json={}),
        ]
        assert [answer.status_code for answer in found] == statuses
    assert found[0].json()["available"] == {
        "runs": ["content", "stale", "tiny", "torn"], "vectors": ["content-vectors", "tiny-vectors"], "feeds": [],
    }  # fmt: skip


def test_a_page_of_another_origin_cannot_roll_back(server: Server) -> None:
    """Without JSON, which browsers ask leave for, nothing happens."""
    answer = server.client.post("/admin/rollback", content=b"", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_a_model_is_let_go_of_when_a_third_comes(tiny_run: Path, models: Path, tmp_path: Path, serve: Serve) -> None:
    def running() -> int:
        return sum(thread.name == "mmrec-model" for thread in threading.enumerate())

    before = running()
    server = serve(models=models, of=load_pair(models / "tiny", models / "tiny-vectors", device="cpu"))
    first = weakref.ref(server.service.recommender)
    del server.service
    admin(server, "model", CONTENT)
    gc.collect()
    assert first() is not None, "it can be rolled back to"
    admin(server, "model", CONTENT)
    gc.collect()
    assert first() is None
    assert running() - before == 6, "three of what answers, three of the one before; those of the first have ended"


class TestRestart:
    @pytest.fixture
    def loader(self, models: Path, tmp_path: Path) -> Loader:
        store = SqliteStore(tmp_path / "data")
        given = Places(models / "tiny", models / "tiny-vectors", None)
        return Loader(
            given, ModelFolder(models), "cpu", exported_index, lambda pair: Service(pair, store, limits=LIMITS)
        )

    @staticmethod
    def first(loader: Loader, notes: list[str]) -> tuple[str, Choice]:
        store = loader.load(None).store
        service, choice = loader.first(store, notify=notes.append)
        return service.recommender.run.path.name, choice

    def test_what_was_switched_to_answers_again(self, loader: Loader, models: Path) -> None:
        service, given = loader.first(loader.load(None).store)
        assert given.names is None
        swaps = Swaps(Deployment(service, choice=given), loader.models(given), on_swap=lambda outcome: None)  # type: ignore[arg-type]
        notes: list[str] = []
        swaps.begin(Names("content", "content-vectors")).result()
        assert self.first(loader, notes) == ("content", swaps.deployment.current.choice)
        swaps.back().result()
        assert self.first(loader, notes) == ("tiny", given)
        swaps.back().result()
        elsewhere = Loader(
            Places(models / "content", models / "content-vectors", None),
            loader.folder,
            "cpu",
            exported_index,
            loader.serve,
        )
        name, choice = self.first(elsewhere, notes)
        assert (name, choice.names) == ("content", None), "started with another pair, it serves that"
        assert not [note for note in notes if "cannot be loaded" in note]

    def test_a_pair_that_is_gone_keeps_nobody_from_answering(self, loader: Loader, models: Path) -> None:
        store = loader.load(None).store
        Choice(Names("gone", "content-vectors"), "x", base_of(models / "tiny-vectors")).record(store)
        notes: list[str] = []
        name, choice = self.first(loader, notes)
        assert (name, choice.names) == ("tiny", None)
        assert any("gone" in note and "cannot be loaded" in note for note in notes)

    def test_other_processes_follow(self, loader: Loader) -> None:
        swaps, outcomes, given = self.following(loader)
        store = swaps.deployment.current.service.store
        assert self.follow(swaps) == "tiny", "nothing was chosen"
        Choice(Names("content", "content-vectors"), "a", given.base).record(store)
        assert self.follow(swaps) == "content"
        given.record(store)
        assert self.follow(swaps) == "tiny", "the one before"
        Choice(Names("torn", "content-vectors"), "b", given.base).record(store)
        assert self.follow(swaps) == self.follow(swaps) == "tiny", "tried once"
        assert outcomes == ["switched", "rolled_back", "failed"]

    def test_they_try_again_where_the_store_failed_but_not_at_once(
        self, loader: Loader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swaps, outcomes, given = self.following(loader)

        def fail(*arguments: object, **named: object) -> None:
            raise StoreFailureError("away")

        Choice(Names("content", "content-vectors"), "a", given.base).record(swaps.deployment.current.service.store)
        with monkeypatch.context() as patched:
            patched.setattr(swapping, "carry_over", fail)
            assert self.follow(swaps) == "tiny"
        assert self.follow(swaps) == self.follow(swaps) == "tiny"
        assert outcomes == ["failed"], "each try loads a model"
        monkeypatch.setattr(swapping, "_STORE_SECONDS", 0.0)
        assert self.follow(swaps) == "content"
        assert outcomes == ["failed", "switched"]

    def test_another_choice_need_not_wait(self, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
        swaps, outcomes, given = self.following(loader)

        def fail(*arguments: object, **named: object) -> None:
            raise StoreFailureError("away")

        for token, run in (("a", "tiny"), ("b", "content")):
            Choice(Names(run, f"{run}-vectors"), token, given.base).record(swaps.deployment.current.service.store)
            with monkeypatch.context() as patched:
                if token == "a":
                    patched.setattr(swapping, "carry_over", fail)
                self.follow(swaps)
        assert outcomes == ["failed", "switched"]

    @staticmethod
    def following(loader: Loader) -> tuple[Swaps, list[str], Choice]:
        """What follows other processes, what its swaps came to, and the choice to start with."""
        service, given = loader.first(loader.load(None).store)
        outcomes: list[str] = []
        swaps = Swaps(Deployment(service, choice=given), loader.models(given), on_swap=outcomes.append)  # type: ignore[arg-type]
        return swaps, outcomes, given

    @staticmethod
    def follow(swaps: Swaps) -> str:
        """Have it look once, and return which run answers then."""
        swaps.follow()
        while swaps.last is not None and swaps.last.ended is None:
            time.sleep(0.01)
        return swaps.deployment.current.service.recommender.run.path.name
