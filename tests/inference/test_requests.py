"""Tables of requests in every format and shape: the same questions come out, and a bad row spoils no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec.errors import RequestError
from mmrec.inference.posts import Post
from mmrec.inference.references import Reference, Unusable
from mmrec.inference.requests import read_candidates, read_requests, read_users
from mmrec.inference.scoring import Request


def known(item_id: object) -> bool:
    return str(item_id) in {"007", "42", "red|blue"}


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """Lists and mappings stay what they are in jsonl and parquet, and become JSON text in text files."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        case suffix:
            text = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
            pd.DataFrame(text).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


def plain(reference: Reference) -> object:
    """What a reference says, without the folder of its pictures."""
    if isinstance(reference, Post):
        images = [image if isinstance(image, bytes) else Path(str(image)).name for image in reference.image or []]
        return {"name": reference.name, "caption": reference.caption, "images": images}
    return f"unusable {reference.name}" if isinstance(reference, Unusable) else reference


def read(path: Path, shared: Sequence[Reference] | None = None) -> list[tuple[object, ...]]:
    return [
        (
            request.request_id,
            request.user_id,
            None if request.history is None else [plain(entry) for entry in request.history],
            [plain(entry) for entry in request.candidates],
        )
        for request in read_requests(path, known=known, shared=shared)
    ]


TEXT = [".csv", ".tsv"]
RICH = [".jsonl", ".parquet"]


@pytest.mark.parametrize("suffix", [*TEXT, *RICH])
class TestEveryFormat:
    def test_all_candidates_in_one_row(self, tmp_path: Path, suffix: str) -> None:
        rows = [
            {"request_id": "a", "user_id": "u1", "candidates": ["007", "42"]},
            {"request_id": "b", "user_id": "u1", "candidates": ["nobody"]},
            {"request_id": "b", "user_id": "u1", "candidates": ["007"]},
        ]
        assert read(write(tmp_path / f"r{suffix}", rows)) == [
            ("a", "u1", None, ["007", "42"]),
            ("b", "u1", None, ["nobody"]),
            ("b", "u1", None, ["007"]),
        ]

    def test_one_candidate_a_row(self, tmp_path: Path, suffix: str) -> None:
        rows = [
            {"request_id": "a", "user_id": "u1", "item_id": "007", "caption": None, "image": None},
            {"request_id": "a", "user_id": "u1", "item_id": None, "caption": "red scarf", "image": None},
            {"request_id": "a", "user_id": "u1", "item_id": "new", "caption": "hat", "image": "h.png"},
            {"request_id": "b", "user_id": "u1", "item_id": None, "caption": None, "image": "x.png"},
            {"request_id": "b", "user_id": "u2", "item_id": "42", "caption": "ignored: it is known", "image": None},
        ]
        assert read(write(tmp_path / f"r{suffix}", rows)) == [
            (
                "a",
                "u1",
                None,
                [
                    "007",
                    {"name": "new:1", "caption": "red scarf", "images": []},
                    {"name": "new", "caption": "hat", "images": ["h.png"]},
                ],
            ),
            ("b", "u1", None, [{"name": "new:0", "caption": None, "images": ["x.png"]}]),
            ("b", "u2", None, ["42"]),
        ]

    def test_posts_in_lists_and_histories(self, tmp_path: Path, suffix: str) -> None:
        new = {"item_id": None, "caption": "red scarf", "image": "a.png|b.png"}
        old = {"item_id": "42", "caption": None, "image": None}
        rows: list[dict[str, object]] = [
            {"request_id": "a", "history": [old, new], "candidates": [new, old]},
            {"request_id": "b", "history": [], "candidates": [old]},
        ]
        post = {"caption": "red scarf", "images": ["a.png", "b.png"]}
        assert read(write(tmp_path / f"r{suffix}", rows)) == [
            ("a", None, ["42", post | {"name": "new:1"}], [post | {"name": "new:0"}, "42"]),
            ("b", None, [], ["42"]),
        ]

    def test_a_list_that_all_share(self, tmp_path: Path, suffix: str) -> None:
        rows = [
            {"item_id": "007", "caption": None},
            {"item_id": None, "caption": "silk"},
            {"item_id": "9", "caption": None},
        ]
        shared = read_candidates(write(tmp_path / f"c{suffix}", rows), known=known)
        asked = write(tmp_path / f"r{suffix}", [{"user_id": "u1"}, {"user_id": "u1"}, {"user_id": "u2"}])
        expected = ["007", {"name": "new:1", "caption": "silk", "images": []}, "9"]
        assert read(asked, shared) == [(user, user, None, expected) for user in ("u1", "u1", "u2")]
        requests = list(read_requests(asked, known=known, shared=shared))
        assert all(request.candidates is shared for request in requests), "so that they are resolved once"

    def test_users_for_recommendations(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"u{suffix}", [{"user_id": "u1"}, {"user_id": "u2"}])
        assert list(read_users(path, known=known)) == [
            Request("u1", [], user_id="u1"),
            Request("u2", [], user_id="u2"),
        ]
        path = write(tmp_path / f"h{suffix}", [{"request_id": "x", "history": ["007", "42"]}])
        assert list(read_users(path, known=known)) == [Request("x", [], history=["007", "42"])]

    def test_a_bad_row_spoils_no_other(self, tmp_path: Path, suffix: str) -> None:
        rows = [
            {"request_id": "a", "user_id": "u1", "item_id": "007", "caption": "red"},
            {"request_id": "a", "user_id": "u1", "item_id": None, "caption": None},
            {"request_id": "b", "user_id": None, "item_id": "007", "caption": "red"},
            {"request_id": "c", "user_id": "u2", "item_id": "42", "caption": "red"},
        ]
        assert read(write(tmp_path / f"r{suffix}", rows)) == [
            ("a", "u1", None, ["007", "unusable new:1"]),
            ("b", None, None, ["007"]),
            ("c", "u2", None, ["42"]),
        ]

    def test_tables_that_hold_no_requests(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"r{suffix}", [{"request_id": "a", "item_id": "007"}])
        with pytest.raises(RequestError, match=r"user_id or history, got request_id, item_id, in .*r\."):
            read(path)
        path = write(tmp_path / f"r{suffix}", [{"user_id": "a", "colour": "red"}] * 2)
        with pytest.raises(RequestError, match=r"candidates, or item_id.*--candidates"):
            read(path)
        path = write(tmp_path / f"s{suffix}", [{"colour": "red"}])
        with pytest.raises(RequestError, match="user_id or history"):
            list(read_users(path, known=known))


class TestText:
    def test_bars_between_ids(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("request_id,history,candidates\na,007|42,007| new one |42\nb,[],007\n", encoding="utf-8")
        assert read(path) == [("a", None, ["007", "42"], ["007", "new one", "42"]), ("b", None, [], ["007"])]

    def test_byte_order_mark_quotes_and_line_breaks(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_bytes(b'\xef\xbb\xbfuser_id,caption\r\nu1,"red, ""soft""\r\nscarf"\r\n')
        assert read(path) == [("u1", "u1", None, [{"name": "new:0", "caption": 'red, "soft"\r\nscarf', "images": []}])]

    def test_a_hundred_thousand_candidates_in_a_cell(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        ids = [f"{number:010d}" for number in range(100_000)]
        path.write_text("user_id,candidates\nu1," + "|".join(ids) + "\n", encoding="utf-8")
        ((_, _, _, candidates),) = read(path)
        assert candidates == ids

    def test_ids_keep_their_zeros(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("user_id,item_id\n00012,007\n", encoding="utf-8")
        assert read(path) == [("00012", "00012", None, ["007"])]


class TestRich:
    def test_pictures_as_bytes(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [
            {"user_id": "u1", "caption": "red", "image": b"\x89PNG"},
            {"user_id": "u1", "caption": None, "image": b"\xff\xd8"},
        ]
        ((_, _, _, candidates),) = read(write(tmp_path / "r.parquet", rows))
        assert candidates == [
            {"name": "new:0", "caption": "red", "images": [b"\x89PNG"]},
            {"name": "new:1", "caption": None, "images": [b"\xff\xd8"]},
        ]
        several: list[dict[str, object]] = [{"user_id": "u1", "candidates": [{"image": [b"a", b"b"]}]}]
        ((_, _, _, candidates),) = read(write(tmp_path / "s.parquet", several))
        assert candidates == [{"name": "new:0", "caption": None, "images": [b"a", b"b"]}]

    def test_integers_are_ids_too(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [{"user_id": 12, "history": [42, 7], "candidates": [42, 10**18]}]
        for suffix in RICH:
            path = write(tmp_path / f"r{suffix}", rows)
            assert read(path) == [("12", None, ["42", "7"], ["42", str(10**18)])]

    def test_an_id_in_a_list_may_hold_a_bar(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [{"user_id": "u1", "candidates": ["red|blue", "[odd"]}]
        for suffix in RICH:
            assert read(write(tmp_path / f"r{suffix}", rows))[0][3] == ["red|blue", "[odd"]

    def test_candidates_that_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        entries = '[null, {}, {"caption": " "}, {"item_id": "x", "image": []}, {"caption": "\\ud83d"}, "007"]'
        path.write_text(f'{{"user_id": "u1", "candidates": {entries}}}\n', encoding="utf-8")
        assert read(path)[0][3] == [
            *(f"unusable new:{number}" for number in range(3)),
            "unusable x",
            "unusable new:4",
            "007",
        ]

    def test_paths_start_at_the_tables_folder(self, tmp_path: Path) -> None:
        path = write(tmp_path / "r.jsonl", [{"user_id": "u1", "candidates": [{"image": "sub/a.png"}]}])
        (request,) = read_requests(path, known=known)
        (post,) = request.candidates
        assert isinstance(post, Post)
        assert post.image == [tmp_path / "sub" / "a.png"]


class TestFilesThatCannotBeRead:
    @pytest.mark.parametrize("name", ["r.xlsx", "r", "r.json"])
    def test_format(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(RequestError, match=r"\.csv, \.tsv, \.jsonl, \.parquet"):
            read(tmp_path / name)

    @pytest.mark.parametrize("suffix", [*TEXT, *RICH])
    def test_absent(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(RequestError, match="no file"):
            read(tmp_path / f"r{suffix}")

    @pytest.mark.parametrize("suffix", [*TEXT, *RICH])
    def test_damaged(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"r{suffix}"
        path.write_bytes(b"user_id,item_id\nu1,\xff\xfe\n")
        with pytest.raises(RequestError, match=path.name):
            read(path)

    def test_a_parquet_file_that_is_cut_in_the_middle(self, tmp_path: Path) -> None:
        path = write(tmp_path / "r.parquet", [{"user_id": f"u{n}", "item_id": "007"} for n in range(2000)])
        data = bytearray(path.read_bytes())
        data[40:400] = b"\xff" * 360
        path.write_bytes(bytes(data))
        with pytest.raises(RequestError, match=r"parquet file.*r\.parquet"):
            read(path)

    def test_a_line_that_is_no_object(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text('{"user_id": "u1", "item_id": "007"}\n\n[1]\n', encoding="utf-8")
        with pytest.raises(RequestError, match=r"got list, in .*r\.jsonl:3"):
            read(path)
        path.write_text('{"user_id": "u1"\n', encoding="utf-8")
        with pytest.raises(RequestError, match=r"r\.jsonl:1"):
            read(path)
