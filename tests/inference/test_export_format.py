"""Vectors on disk: number formats and their errors, cuts, unit length, and files that are whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmrec.errors import ArtifactError
from mmrec.inference.export import VectorFolder, read_vectors, write_arrays, write_vectors
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.search.packed import PackedVectors, Precision, quantise
from mmrec.storage import file_hash, write_json

VECTORS = np.random.default_rng(5).normal(size=(7, 6)).astype(np.float32)
IDS = [f"0{n}" for n in range(7)]


class TestShape:
    def test_as_they_are(self) -> None:
        np.testing.assert_array_equal(VectorFormat(has_bias=True).shape(VECTORS), VECTORS)
        np.testing.assert_array_equal(VectorFormat().shape(VECTORS), VECTORS)

    def test_cut_keeps_the_bias(self) -> None:
        np.testing.assert_array_equal(VectorFormat(dim=3, has_bias=True).shape(VECTORS), VECTORS[:, [0, 1, 2, 5]])
        np.testing.assert_array_equal(VectorFormat(dim=3).shape(VECTORS), VECTORS[:, :3])
        np.testing.assert_array_equal(VectorFormat(dim=5, has_bias=True).shape(VECTORS), VECTORS)

    def test_cut_keeps_the_length_of_a_cosine(self) -> None:
        vectors = np.array([[3, 4, 12, -7], [0, 0, 0, 7]], dtype=np.float32)
        shaped = VectorFormat(dim=2, has_bias=True, keeps_length=True).shape(vectors)
        np.testing.assert_allclose(shaped, [[7.8, 10.4, -7], [0, 0, 7]], rtol=1e-6)
        assert VectorFormat(dim=2).lossy
        assert VectorFormat(precision="float16").lossy
        assert not VectorFormat(normalised=True, has_bias=True).lossy

    def test_unit_vectors_leave_the_bias_out(self) -> None:
        three_four = np.array([[3, 4, 99], [0, 0, 7]], dtype=np.float32)
        shaped = VectorFormat(normalised=True, has_bias=True).shape(three_four)
        np.testing.assert_allclose(shaped, [[0.6, 0.8], [0, 0]], atol=1e-7)
        shaped = VectorFormat(normalised=True, dim=2).shape(three_four)
        np.testing.assert_allclose(shaped, [[0.6, 0.8], [0, 0]], atol=1e-7)


class TestPrecision:
    def test_float32_is_exact(self, tmp_path: Path) -> None:
        ids, vectors = round_trip(tmp_path, "float32", VECTORS)
        np.testing.assert_array_equal(vectors, VECTORS)
        assert ids.tolist() == IDS

    def test_float16_keeps_eleven_bits(self, tmp_path: Path) -> None:
        _, vectors = round_trip(tmp_path, "float16", VECTORS)
        assert (np.abs(vectors - VECTORS) <= np.abs(VECTORS) * 2.0**-11 + 2.0**-25).all()
        assert np.abs(vectors - VECTORS).max() > 0

    def test_int8_is_off_by_half_a_step_at_most(self, tmp_path: Path) -> None:
        given = np.vstack([VECTORS, np.zeros((1, 6), np.float32), 1000 * VECTORS[:1]])
        _, vectors = round_trip(tmp_path, "int8", given)
        step = np.abs(given).max(axis=1, keepdims=True) / 127
        assert (np.abs(vectors - given) <= 0.5001 * step).all()
        np.testing.assert_array_equal(vectors[7], 0)
        assert pq.read_schema(tmp_path / "items.parquet").field("vector").type.value_type == "int8"

    def test_int8_by_hand(self) -> None:
        values, scales = quantise(np.array([[-2.54, 1.27, 0.0]], dtype=np.float32))
        assert values.tolist() == [[-127, 64, 0]]
        assert scales[0] == pytest.approx(0.02)

    def test_a_bias_costs_the_content_no_step(self, tmp_path: Path) -> None:
        given = np.hstack([VECTORS[:, :5], 100 * VECTORS[:, 5:]])
        _, vectors = round_trip(tmp_path, "int8", given, has_bias=True)
        np.testing.assert_array_equal(vectors[:, -1], given[:, -1])
        step = np.abs(given[:, :-1]).max(axis=1, keepdims=True) / 127
        assert (np.abs(vectors - given)[:, :-1] <= 0.5001 * step).all()
        types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "items.parquet")}
        assert types["vector_bias"] == types["scale"] == "float"

    @pytest.mark.parametrize(("precision", "size"), [("float32", 24), ("float16", 12), ("int8", 5 + 4 + 4)])
    def test_arrays_say_what_the_table_says(
        self, tmp_path: Path, precision: Precision, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mmrec.inference.export._ROWS", 3)  # seven rows: two pieces and a short one
        _, expected = round_trip(tmp_path, precision, VECTORS, has_bias=True)
        assert pq.ParquetFile(tmp_path / "items.parquet").num_row_groups == 3
        written = WrittenVectors(VECTORS, VectorFormat(precision=precision, has_bias=True))
        write_arrays(tmp_path, written)
        arrays = {p.name.split(".")[1]: np.load(p, mmap_mode="r") for p in tmp_path.glob("*.npy")}
        packed = PackedVectors(**arrays)
        rows = np.array([6, 0, 3])
        for found in (packed, written):
            assert found.shape == (7, 6)
            np.testing.assert_array_equal(found[:], expected)
            np.testing.assert_array_equal(found[2:5], expected[2:5])
            np.testing.assert_array_equal(found[rows], expected[rows])
        assert packed.bytes_per_vector == written.bytes_per_vector == size
        assert written.bytes_per_vector * 7 == sum(array.nbytes for array in arrays.values())

    def test_integers_come_back_as_integers(self, tmp_path: Path) -> None:
        written = WrittenVectors(VECTORS[:2], VectorFormat())
        write_vectors(tmp_path / "items.parquet", [7, 10**18], written, id_column="item_id")
        assert pq.read_table(tmp_path / "items.parquet")["item_id"].to_pylist() == [7, 10**18]
        assert read_vectors(tmp_path / "items.parquet", id_column="item_id")[0].tolist() == ["7", str(10**18)]


def round_trip(
    folder: Path, precision: Precision, vectors: np.ndarray, *, has_bias: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "items.parquet"
    ids = [f"0{n}" for n in range(len(vectors))]
    written = WrittenVectors(vectors, VectorFormat(precision=precision, has_bias=has_bias))
    write_vectors(path, ids, written, id_column="item_id", extra={"x": ids})
    return read_vectors(path, id_column="item_id")


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        path = tmp_path / "items.parquet"
        layout = VectorFormat(has_bias=True)
        write_vectors(path, IDS, WrittenVectors(VECTORS, layout), id_column="item_id", extra={"colour": ["red"] * 7})
        manifest = {"export_version": 2, "model_hash": "a" * 32, "format": vars(layout), "files": {}}
        write_json(tmp_path / "manifest.json", manifest | {"files": {"items.parquet": file_hash(path)}})
        return tmp_path

    def test_opens(self, folder: Path) -> None:
        found = VectorFolder.open(folder)
        found.verify("items.parquet")
        assert found.format == VectorFormat(has_bias=True)
        assert found.vectors("items")[0].tolist() == IDS
        assert found.table().columns.tolist() == ["item_id", "colour"]

    def test_another_model_is_refused(self, folder: Path) -> None:
        VectorFolder.open(folder).require_model("a" * 32)
        with pytest.raises(
            ArtifactError, match="vectors of the model bbbb.*got vectors of the model aaaa.*Export again"
        ):
            VectorFolder.open(folder).require_model("b" * 32)

    def test_changed_or_missing_files_are_noticed(self, folder: Path) -> None:
        found = VectorFolder.open(folder)
        with (folder / "items.parquet").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ArtifactError, match=r"items\.parquet as it was exported, got a missing or changed file"):
            found.verify("items.parquet")
        (folder / "items.parquet").unlink()
        with pytest.raises(ArtifactError, match=r"items\.parquet as it was exported, got a missing or changed file"):
            found.verify("items.parquet")
        with pytest.raises(ArtifactError, match=r"a file of vectors.*items\.parquet"):
            found.vectors("items")

    def test_a_damaged_file_is_named(self, folder: Path) -> None:
        (folder / "items.parquet").write_bytes(b"PAR1 and nothing more")
        with pytest.raises(ArtifactError, match=r"a file of vectors.*Export again"):
            VectorFolder.open(folder).vectors("items")

    def test_folders_that_are_no_exports(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="mmrec export"):
            VectorFolder.open(tmp_path / "nowhere")
        write_json(tmp_path / "manifest.json", {"schema_version": 1})
        with pytest.raises(ArtifactError, match="export version 2, got None.*Export again"):
            VectorFolder.open(tmp_path)
