"""A checkpoint is a folder of safetensors and JSON, written whole or not at all, checked by hash when it is read.

Tensors are plain safetensors files, everything else is ``state.json``, which also holds the hash of every file and of
itself.  Nothing is pickled.  ``best.json`` beside the checkpoints points at the best one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrec.errors import ArtifactError
from mmrec.storage import PARTIAL, atomic_folder, content_hash, file_hash, read_json, write_json

STATE = "state.json"
BEST = "best.json"
MODEL = "model"
OPTIMIZER = "optimizer"
RNG = "rng"
BANK = "bank"
GRADIENTS = "gradients"
_SUFFIX = ".safetensors"
_NAME = re.compile(r"epoch-(\d+)-batch-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        tensors: file stem (``model``, ``optimizer``, ``rng``, ...) to tensors by name.
        state: anything JSON can say without loss.
        files: further files by name, byte for byte (configuration, id map).
        best: name of the checkpoint that was best when this one was written, perhaps itself; empty for none.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, object]
    files: Mapping[str, bytes] = field(default_factory=dict)
    best: str = ""


def checkpoint_name(*, epoch: int, batch: int) -> str:
    """Return the folder name of the checkpoint after ``epoch`` whole epochs and ``batch`` batches of the next."""
    return f"epoch-{epoch:04d}-batch-{batch:06d}"


def position(path: Path) -> tuple[int, int]:
    """Return the whole epochs, and the batches of the next, after which the checkpoint ``path`` was written."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2])


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of ``folder``, oldest position first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=position)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` as the folder ``path``, which appears only when all of it is on the disk.

    Raises:
        ArtifactError: the disk is full or refuses; nothing is left behind, and older checkpoints stay as they are.
    """
    try:
        with atomic_folder(path) as partial:
            for stem, tensors in checkpoint.tensors.items():
                whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
                save_file(whole, partial / f"{stem}{_SUFFIX}")
            for name, data in checkpoint.files.items():
                (partial / name).write_bytes(data)
            hashes = {file.name: file_hash(file) for file in sorted(partial.iterdir())}
            body = {"hashes": hashes, "best": checkpoint.best, "state": checkpoint.state}
            write_json(partial / STATE, {"digest": _digest(body), **body})
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            "room to write a checkpoint",
            got=str(error),
            where=str(path),
            fix="Free some disk space and start again with --resume; older checkpoints are whole.",
        ) from error


def verify_checkpoint(path: Path) -> dict[str, object]:
    """Check every file of the checkpoint ``path`` against its hash and return the content of ``state.json``.

    Raises:
        ArtifactError: a file is missing, damaged or unreadable.
    """
    envelope = read_json(path / STATE)
    body = {key: value for key, value in envelope.items() if key != "digest"}
    hashes = body.get("hashes")
    if envelope.get("digest") != _digest(body) or not isinstance(hashes, dict):
        raise ArtifactError("a state that matches its own digest", got="another", where=str(path / STATE))
    for name, expected in hashes.items():
        try:
            found = file_hash(path / name)
        except OSError as error:
            raise ArtifactError("a file of a checkpoint", got=str(error), where=str(path / name)) from error
        if found != expected:
            raise ArtifactError("a file that matches its hash", got="another content", where=str(path / name))
    return body


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify and load the checkpoint ``path``; tensors are on the CPU.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    body = verify_checkpoint(path)
    names = sorted(cast("dict[str, str]", body["hashes"]))
    return Checkpoint(
        tensors={name.removesuffix(_SUFFIX): _load(path / name) for name in names if name.endswith(_SUFFIX)},
        state=cast("dict[str, object]", body["state"]),
        files={name: (path / name).read_bytes() for name in names if not name.endswith(_SUFFIX)},
        best=str(body["best"]),
    )


def latest_checkpoint(folder: Path, *, warn: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint of ``folder``, or None.

    Args:
        folder: where the checkpoints of one run are.
        warn: called with one sentence for every damaged checkpoint that is passed over.
    """
    for path in reversed(checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except ArtifactError as error:
            warn(f"checkpoint {path.name} is damaged and is skipped: {error}")
        else:
            return path
    return None


def write_best(folder: Path, *, name: str, metric: str, value: float) -> None:
    """Point ``best.json`` at the checkpoint ``name``.

    Raises:
        ArtifactError: the disk is full or refuses; the old pointer stays.
    """
    try:
        write_json(folder / BEST, {"checkpoint": name, "metric": metric, "value": value})
    except OSError as error:
        raise ArtifactError(
            "room to write a file", got=str(error), where=str(folder / BEST), fix="Free some disk space."
        ) from error


def best_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that did best on validation; without any evaluation, the newest.

    Raises:
        ArtifactError: there is none yet, or it has been deleted.
    """
    found = checkpoints(folder)
    if found and not (folder / BEST).exists():
        return found[-1]
    name = read_json(folder / BEST).get("checkpoint")
    if folder / str(name) not in found:
        raise ArtifactError("the name of a checkpoint in this folder", got=repr(name), where=str(folder / BEST))
    return folder / str(name)


def prune_checkpoints(folder: Path, *, newest: str, keep: int) -> None:
    """Of ``newest`` and the checkpoints before it, delete all but the last ``keep`` and whatever those call best.

    The best of an *older* kept checkpoint stays too: should the newest turn out damaged, training goes on from the
    older one, whose best must still be there.  Checkpoints after ``newest`` are damaged ones that a resumed training
    has passed over; they do not count.
    """
    found = checkpoints(folder)
    found = found[: found.index(folder / newest) + 1]
    kept = {path.name for path in found[-keep:]} | {_best_of(path) for path in found[-keep:]}
    for path in found:
        if path.name not in kept:
            shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left half-written in ``folder``."""
    for path in folder.glob(f"*{PARTIAL}-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in folder.glob("epoch-*.old-*"):
        shutil.rmtree(path)


def _load(path: Path) -> dict[str, Tensor]:
    # A mapped tensor may be aligned otherwise than a fresh one, and kernels may then add in another order.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _best_of(path: Path) -> str:
    try:
        return str(read_json(path / STATE).get("best", ""))
    except ArtifactError:
        return ""


def _digest(body: Mapping[str, object]) -> str:
    return content_hash(json.dumps(body, sort_keys=True, allow_nan=False))
