"""Tables of results: every format reads back, and a file is whole or as it was before."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec.errors import RequestError
from mmrec.inference import tables
from mmrec.inference.tables import FORMATS, column_names, read_rows, row_writer

SCHEMA = pa.schema([("name", pa.string()), ("score", pa.float32()), ("rank", pa.int64())])
ROWS: list[dict[str, object]] = [
    {"name": 'a, "b"', "score": 0.1, "rank": 1},
    {"name": "zwei\nZeilen\t|", "score": None, "rank": 0},
    {"name": "😀 שלום", "score": -2.5e-7, "rank": 10**12},
]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    with row_writer(path, SCHEMA) as writer:
        for row in rows:
            writer.write({name: [value] for name, value in row.items()})
        writer.write({name: [] for name in SCHEMA.names})
    return path


def write_and_fail(path: Path, failure: BaseException) -> None:
    with row_writer(path, SCHEMA) as writer:
        writer.write({"name": ["a"], "score": [1.0], "rank": [1]})
        raise failure


@pytest.mark.parametrize("suffix", FORMATS)
class TestEveryFormat:
    def test_what_was_written_reads_back(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / "new" / f"scores{suffix}")
        rows = [{"score": None, **row} for row in read_rows(path)]
        assert [row["name"] for row in rows] == [row["name"] for row in ROWS]
        assert [int(str(row["rank"])) for row in rows] == [1, 0, 10**12]
        assert rows[1]["score"] is None
        assert [float(str(rows[i]["score"])) for i in (0, 2)] == pytest.approx([0.1, -2.5e-7], rel=1e-6)
        assert column_names(path) == list(SCHEMA.names)

    def test_pandas_reads_it(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"scores{suffix}")
        match suffix:
            case ".parquet":
                table = pd.read_parquet(path)
            case ".jsonl":
                table = pd.read_json(path, lines=True)
            case _:
                table = pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",")
        assert table["name"].tolist() == [row["name"] for row in ROWS]
        assert table["score"].isna().tolist() == [False, True, False]

    def test_no_rows(self, tmp_path: Path, suffix: str) -> None:
        assert list(read_rows(write(tmp_path / f"scores{suffix}", []))) == []

    def test_a_failure_leaves_nothing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail(tmp_path / f"scores{suffix}", RuntimeError("stop"))
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_keeps_the_old_file(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"scores{suffix}")
        before = path.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            write_and_fail(path, KeyboardInterrupt())
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_columns_must_be_those_of_the_schema(tmp_path: Path) -> None:
    for suffix in FORMATS:
        with pytest.raises(KeyError), row_writer(tmp_path / f"scores{suffix}", SCHEMA) as writer:
            writer.write({"name": ["a"], "score": [1.0]})


def test_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [{"name": str(n), "score": 0.0, "rank": n} for n in range(25)]
    assert pq.ParquetFile(write(tmp_path / "a.parquet", rows)).num_row_groups == 1
    monkeypatch.setattr(tables, "_ROWS_OF_A_GROUP", 10)
    file = pq.ParquetFile(write(tmp_path / "b.parquet", rows))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [10, 10, 5]
    assert file.read()["rank"].to_pylist() == list(range(25))


def test_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"an output file \(\.csv"), row_writer(tmp_path / "scores.xls", SCHEMA):
        pass
    assert not list(tmp_path.iterdir())


def test_lines_of_json_are_json(tmp_path: Path) -> None:
    lines = write(tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert "😀" in lines[2]
