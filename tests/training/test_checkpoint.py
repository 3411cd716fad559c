from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from mmrec import storage
from mmrec.errors import ArtifactError
from mmrec.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    checkpoint_name,
    checkpoints,
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    remove_leftovers,
    verify_checkpoint,
    write_best,
    write_checkpoint,
)


def sample(number: int = 1, *, best: str = "") -> Checkpoint:
    weights = torch.arange(6.0).reshape(2, 3) * number
    return Checkpoint(
        tensors={"model": {"weight": weights, "turned": weights.T}, "rng": {"cpu": torch.tensor([1, 255]).byte()}},
        state={"step": number, "share": 0.1, "nested": {"list": [1, None, "ü"]}},
        files={"config.yaml": b"epochs: 3\n"},
        best=best,
    )


def name(number: int) -> str:
    return checkpoint_name(epoch=number, batch=0)


def write(folder: Path, number: int, *, best: str = "") -> Path:
    path = folder / name(number)
    write_checkpoint(path, sample(number, best=best))
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, 3, best="epoch-0002-batch-000000")
    read = read_checkpoint(path)
    assert read.state == sample(3).state
    assert read.files == sample(3).files
    assert read.best == "epoch-0002-batch-000000"
    assert {stem: set(tensors) for stem, tensors in read.tensors.items()} == {
        "model": {"weight", "turned"},
        "rng": {"cpu"},
    }
    for stem, tensors in sample(3).tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(read.tensors[stem][key], tensor)
            assert read.tensors[stem][key].dtype == tensor.dtype


def test_order_is_by_position_not_by_text(tmp_path: Path) -> None:
    for epoch, batch in [(0, 20), (10000, 0), (9999, 3), (0, 3)]:
        write_checkpoint(tmp_path / checkpoint_name(epoch=epoch, batch=batch), sample())
    (tmp_path / "epoch-0001-batch-000000.partial-7").mkdir()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == [
        "epoch-0000-batch-000003",
        "epoch-0000-batch-000020",
        "epoch-9999-batch-000003",
        "epoch-10000-batch-000000",
    ]


def truncate(path: Path) -> None:
    os.truncate(path / "model.safetensors", 40)


def lose_a_file(path: Path) -> None:
    (path / "rng.safetensors").unlink()


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(bytes(data))


def lose_the_state(path: Path) -> None:
    (path / "state.json").unlink()


def change_the_state(path: Path) -> None:
    text = (path / "state.json").read_text()
    assert '"step": 2' in text
    (path / "state.json").write_text(text.replace('"step": 2', '"step": 3'))


def cut_the_state(path: Path) -> None:
    os.truncate(path / "state.json", 30)


def change_the_config(path: Path) -> None:
    (path / "config.yaml").write_text("epochs: 4\n")


@pytest.mark.parametrize(
    "damage",
    [truncate, lose_a_file, flip_a_bit, lose_the_state, change_the_state, cut_the_state, change_the_config],
)
def test_damaged_newest_is_skipped_with_a_word(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    older, newest = write(tmp_path, 1), write(tmp_path, 2)
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warn=warnings.append) == newest
    assert warnings == []

    damage(newest)
    assert latest_checkpoint(tmp_path, warn=warnings.append) == older
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    with pytest.raises(ArtifactError):
        read_checkpoint(newest)


def test_no_whole_checkpoint(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path / "absent", warn=warnings.append) is None
    truncate(write(tmp_path, 1))
    assert latest_checkpoint(tmp_path, warn=warnings.append) is None
    assert len(warnings) == 1


@hypothesis_settings(max_examples=30, deadline=None)
@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_any_flipped_bit_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    path = write(tmp_path_factory.mktemp("flip"), 1)
    files = sorted(path.iterdir())
    sizes = [file.stat().st_size for file in files]
    position %= sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        if position < size:
            data = bytearray(file.read_bytes())
            data[position] ^= 1 << bit
            file.write_bytes(bytes(data))
            break
        position -= size
    try:
        read = read_checkpoint(path)
    except ArtifactError:
        return
    # Only the white space of state.json carries nothing.
    assert file.name == "state.json"
    assert read.state == sample(1).state
    assert torch.equal(read.tensors["model"]["weight"], sample(1).tensors["model"]["weight"])


def test_pruning_keeps_the_last_ones_and_their_bests(tmp_path: Path) -> None:
    for number, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 5)]:
        write(tmp_path, number, best=name(best))
    prune_checkpoints(tmp_path, newest=name(5), keep=2)
    # 4 and 5 are the last; 2 is what 4 calls best, should 5 be damaged.
    assert [path.name for path in checkpoints(tmp_path)] == [name(2), name(4), name(5)]


def test_pruning_does_not_count_damaged_later_ones(tmp_path: Path) -> None:
    for number in range(1, 6):
        write(tmp_path, number)
    prune_checkpoints(tmp_path, newest=name(3), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [name(number) for number in (2, 3, 4, 5)]


def test_best_pointer(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        best_checkpoint(tmp_path)
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    assert best_checkpoint(tmp_path) == second
    write_best(tmp_path, name=first.name, metric="ndcg@10", value=0.25)
    assert best_checkpoint(tmp_path) == first
    write_best(tmp_path, name="../elsewhere", metric="ndcg@10", value=0.25)
    with pytest.raises(ArtifactError, match=r"elsewhere"):
        best_checkpoint(tmp_path)


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    write_best(tmp_path, name=path.name, metric="m", value=1.0)
    half = tmp_path / f"{name(2)}.partial-123"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "best.json.partial-123").write_text("{")
    remove_leftovers(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best.json", path.name]


def full_disk(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("function", ["_flush_file", "_flush_folder", "write_json"])
def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    older = write(tmp_path, 1)
    with monkeypatch.context() as patch:
        module = "mmrec.training.checkpoint" if function == "write_json" else storage.__name__
        patch.setattr(f"{module}.{function}", lambda path, *_: full_disk(path))
        with pytest.raises(ArtifactError, match=r"No space left on device.*--resume"):
            write(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [older]
    assert verify_checkpoint(older)


@contextmanager
def small_files() -> Iterator[None]:
    """Let the kernel itself refuse files over 4 kB, as a full disk would.

    Not a fixture: pytest writes a test's dot before it tears fixtures down, into what may be a long log by then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_kernel_refusing_to_write_tensors(tmp_path: Path) -> None:
    older = write(tmp_path, 1)
    large: dict[str, dict[str, Tensor]] = {"model": {"weight": torch.zeros(10_000)}}
    with small_files(), pytest.raises(ArtifactError, match=r"room to write a checkpoint.*File too large"):
        write_checkpoint(tmp_path / name(2), Checkpoint(tensors=large, state={}))
    assert list(tmp_path.iterdir()) == [older]


def test_state_is_plain_json(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert set(json.loads((path / "state.json").read_text())) == {"digest", "hashes", "best", "state"}
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tmp_path / name(2), Checkpoint(tensors={}, state={"loss": float("nan")}))
    assert not (tmp_path / name(2)).exists()
