"""Tables of requests in, tables of scores out: every row answered, files whole, the same scores as in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec import Post
from mmrec.commands.score import recommend_file, score_file
from mmrec.errors import RequestError
from mmrec.inference.recommender import Recommender
from mmrec.inference.scoring import Scoring
from mmrec.inference.tables import FORMATS, read_rows
from tests.tiny_run import NUM_ITEMS, NUM_USERS, TinyFeed, draw, write_lines


def score(run: Path, requests: Path, out: Path, **options: object) -> pd.DataFrame:
    score_file(run, requests=requests, out=out, device="cpu", **options)  # type: ignore[arg-type]
    return pd.read_parquet(out)


class TestScore:
    def test_rows_in_the_order_asked_and_scores_of_python(
        self, tiny_run: Path, recommender: Recommender, tmp_path: Path
    ) -> None:
        draw(20, second=True).save(tmp_path / "new.png")
        new = {"item_id": "brand-new", "caption": "a soft red scarf", "image": "new.png"}
        requests: list[dict[str, object]] = [
            {"request_id": "r1", "user_id": "u03", "candidates": ["p01", new, "p02"]},
            {"user_id": "u04", "candidates": ["p02"]},
            {"request_id": "r3", "history": ["p05", new], "candidates": [new]},
            {"request_id": "r4", "history": [], "candidates": ["p00"]},
        ]
        found = score(tiny_run, write_lines(tmp_path / "r.jsonl", requests), tmp_path / "s.parquet")
        assert found.columns.tolist() == ["request_id", "candidate", "score", "rank", "present", "error_message"]
        assert found["request_id"].tolist() == ["r1", "r1", "r1", "u04", "r3", "r4"]
        assert found["candidate"].tolist() == ["p01", "brand-new", "p02", "p02", "brand-new", "p00"]
        assert found["present"].tolist()[:3] == ["text+image+item_id", "text+image", "text+item_id"]
        post = Post("a soft red scarf", tmp_path / "new.png")
        expected = [
            *recommender.score(user_id="u03", candidates=["p01", post, "p02"])["score"],
            *recommender.score(user_id="u04", candidates=["p02"])["score"],
            *recommender.score(history=["p05", post], candidates=[post])["score"],
            *recommender.score(history=[], candidates=["p00"])["score"],
        ]
        np.testing.assert_allclose(found["score"], expected, atol=1e-5, rtol=1e-6)
        assert found["error_message"].isna().all()

    def test_every_bad_candidate_has_its_row(self, tiny_run: Path, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        data = tiny_feed.image("p01").read_bytes()
        (tmp_path / "cut.png").write_bytes(data[:80])
        (tmp_path / "empty.png").touch()
        (tmp_path / "text.png").write_text("no picture")
        bad: dict[str, object] = {
            "cut": {"caption": "fine", "image": "cut.png"},
            "empty": {"image": "empty.png"},
            "text": {"image": "text.png"},
            "missing": {"image": "missing.png"},
            "folder": {"image": "."},
            "blank": {"caption": "  "},
            "nothing": {"image": []},
        }
        entries = [{"item_id": name, **entry} for name, entry in bad.items()]  # type: ignore[dict-item]
        requests = [{"request_id": "mixed", "user_id": "u01", "candidates": ["p01", *entries, "nobody", "p02"]}]
        requests += [{"request_id": "good", "user_id": "u01", "candidates": ["p01", "p02"]}]
        found = score(tiny_run, write_lines(tmp_path / "r.jsonl", requests), tmp_path / "s.parquet")  # type: ignore[arg-type]
        mixed, good = (found[found["request_id"] == name].set_index("candidate") for name in ("mixed", "good"))
        assert mixed.index.tolist() == ["p01", *bad, "nobody", "p02"]
        errors = mixed["error_message"].dropna()
        assert errors.index.tolist() == [*bad, "nobody"]
        assert mixed.loc[errors.index, "score"].isna().all()
        assert set(mixed.loc[errors.index, "rank"]) == {0}
        for name, word in {"cut": "truncat", "empty": "no bytes", "missing": "no file", "blank": "neither"}.items():
            assert word in errors[name].lower()
        np.testing.assert_allclose(mixed.loc[["p01", "p02"], "score"], good["score"], atol=1e-5)
        assert mixed.loc[["p01", "p02"], "rank"].tolist() == good["rank"].tolist()

    def test_bad_requests_have_rows_too(self, tiny_run: Path, tmp_path: Path) -> None:
        requests = tmp_path / "r.csv"
        requests.write_text(
            "request_id,user_id,item_id\na,u01,p01\nb,u99,p01\nb,u99,p02\nc,,p01\nd,u01,\ne,u02,p03\n", encoding="utf-8"
        )
        found = score(tiny_run, requests, tmp_path / "s.parquet")
        assert found["request_id"].tolist() == ["a", "b", "b", "c", "d", "e"]
        assert found["score"].notna().tolist() == [True, False, False, False, False, True]
        errors = found["error_message"].tolist()
        assert "'u99'" in errors[1]
        assert "'u99'" in errors[2]
        assert "either user_id or history" in errors[3]
        assert "neither" in errors[4]

    def test_shared_candidates(self, tiny_run: Path, tmp_path: Path) -> None:
        users = tmp_path / "u.csv"
        users.write_text("user_id\n" + "".join(f"u{n:02}\n" for n in range(NUM_USERS)), encoding="utf-8")
        shared = tmp_path / "c.tsv"
        shared.write_text("item_id\tcaption\np01\t\n\ta red dress\nnobody\t\n", encoding="utf-8")
        summary = score_file(tiny_run, requests=users, out=tmp_path / "s.parquet", candidates=shared, device="cpu")
        assert [summary[key] for key in ("requests", "candidates", "scored", "errors", "posts encoded")] == [
            NUM_USERS,
            3 * NUM_USERS,
            2 * NUM_USERS,
            NUM_USERS,
            summary["posts encoded"],
        ]
        found = pd.read_parquet(tmp_path / "s.parquet")
        assert found["candidate"].tolist() == ["p01", "new:1", "nobody"] * NUM_USERS

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_every_output_format(self, tiny_run: Path, tmp_path: Path, suffix: str) -> None:
        requests = write_lines(tmp_path / "r.jsonl", [{"user_id": "u01", "candidates": ["p01", "x", "p02"]}])
        score_file(tiny_run, requests=requests, out=tmp_path / f"s{suffix}", device="cpu")
        rows = list(read_rows(tmp_path / f"s{suffix}"))
        assert [row["candidate"] for row in rows] == ["p01", "x", "p02"]
        assert ["score" in row for row in rows] == [True, False, True]
        assert sorted(int(str(row["rank"])) for row in rows) == [0, 1, 2]


class TestNothingHalfWritten:
    @pytest.fixture
    def requests(self, tmp_path: Path) -> Path:
        rows: list[dict[str, object]] = [{"user_id": f"u{n:02}", "candidates": ["p01"]} for n in range(NUM_USERS)]
        return write_lines(tmp_path / "r.jsonl", rows)

    def test_a_failure_keeps_the_old_scores(
        self, tiny_run: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out" / "s.parquet"
        score(tiny_run, requests, out)
        before = out.read_bytes()
        group = Scoring._group
        calls = []

        def fail(self: Scoring, *arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return group(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Scoring, "_group", fail)
        monkeypatch.setattr("mmrec.commands.score._GROUP", 8)
        with pytest.raises(KeyboardInterrupt):
            score(tiny_run, requests, out)
        assert out.read_bytes() == before
        assert [path.name for path in out.parent.iterdir()] == ["s.parquet"]

    def test_a_table_without_rows(self, tiny_run: Path, tmp_path: Path) -> None:
        (tmp_path / "r.csv").write_text("user_id,item_id\n", encoding="utf-8")
        with pytest.raises(RequestError, match="at least one request"):
            score(tiny_run, tmp_path / "r.csv", tmp_path / "s.parquet")
        with pytest.raises(RequestError, match="at least one user"):
            recommend_file(tiny_run, users=tmp_path / "r.csv", out=tmp_path / "s.parquet", device="cpu")
        assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]

    def test_wrong_files_are_refused_before_the_model_is_loaded(self, requests: Path, tmp_path: Path) -> None:
        nowhere = tmp_path / "no run"
        with pytest.raises(RequestError, match="an output file"):
            score(nowhere, requests, tmp_path / "s.xlsx")
        with pytest.raises(RequestError, match="a table, got no file"):
            score(nowhere, tmp_path / "no.csv", tmp_path / "s.csv")
        with pytest.raises(RequestError, match="an output file"):
            recommend_file(nowhere, out=tmp_path / "s", device="cpu")


class TestRecommend:
    def test_every_user_of_the_feed(self, tiny_run: Path, recommender: Recommender, tmp_path: Path) -> None:
        out = tmp_path / "top.parquet"
        summary = recommend_file(tiny_run, out=out, k=3, device="cpu")
        assert (summary["users"], summary["rows"], summary["errors"]) == (NUM_USERS, 3 * NUM_USERS, 0)
        found = pd.read_parquet(out)
        assert found["user_id"].tolist() == [f"u{n:02}" for n in range(NUM_USERS) for _ in range(3)]
        one, expected = found[found["user_id"] == "u07"], recommender.recommend(user_id="u07", k=3)
        assert one["item_id"].tolist() == expected["item_id"].tolist()
        np.testing.assert_allclose(one["score"], expected["score"], atol=1e-5)

    def test_some_users_some_strange(self, tiny_run: Path, tmp_path: Path) -> None:
        users = write_lines(
            tmp_path / "u.jsonl",
            [
                {"user_id": "u01"},
                {"user_id": "u99"},
                {"request_id": "guest", "history": ["p01", {"caption": "red scarf"}]},
                {"request_id": "broken", "history": [{"image": "no.png"}]},
                {"request_id": "new", "history": []},
            ],
        )
        summary = recommend_file(tiny_run, users=users, out=tmp_path / "t.csv", k=1000, new_only=True, device="cpu")
        found = pd.read_csv(tmp_path / "t.csv")
        counts = found.groupby("user_id", sort=False)["item_id"].count().to_dict()
        assert counts == {"u01": NUM_ITEMS - 6, "u99": 0, "guest": NUM_ITEMS - 1, "broken": 0, "new": NUM_ITEMS}
        errors = found.set_index("user_id")["error_message"].dropna()
        assert errors.index.tolist() == ["u99", "broken"]
        assert summary["errors"] == 2
        assert found[found["user_id"] == "new"]["rank"].tolist() == list(range(1, NUM_ITEMS + 1))
