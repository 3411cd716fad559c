"""The folder beside a prepared feed in which preparation keeps what it has done so far."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from data_tools.picture_store import PIXELS
from data_tools.prepare_report import REPORT
from data_tools.quarantine import QUARANTINE
from mmrec.errors import FeedError
from mmrec.feed.catalogue import ITEMS, MANIFEST
from mmrec.storage import HASH_BYTES, PARTIAL, content_hash

_LOCK: Final = "lock"


@contextmanager
def work_folder(out: Path, key: str) -> Iterator[Path]:
    """Lock ``<out>.work``, clear what killed or different runs left, yield the subfolder named by ``key``.

    The subfolder stays when the block raises; :func:`discard` removes it after success.

    Raises:
        FeedError: another process is preparing the same folder.
    """
    root = out.with_name(f"{out.name}.work")
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "Wait for it to end."
            raise FeedError("nobody else preparing this folder", got="another run", where=str(out), fix=fix) from error
        _clear_leftovers(out)
        for other in root.iterdir():
            if other.is_dir() and other.name != key:
                shutil.rmtree(other)
        (root / key).mkdir(exist_ok=True)
        yield root / key


def discard(out: Path) -> None:
    """Remove the work folder of a preparation that is complete."""
    shutil.rmtree(out.with_name(f"{out.name}.work"), ignore_errors=True)


def check_target(out: Path) -> None:
    """Refuse to replace a folder that no preparation has made.

    Raises:
        FeedError: ``out`` is a file, or a folder with other things in it.
    """
    if not out.exists() or (out.is_dir() and _is_prepared(out)):
        return
    raise FeedError(
        "a new folder, an empty one or a prepared feed",
        got="a folder with other files" if out.is_dir() else "a file",
        where=str(out),
        fix="Name another folder.",
    )


def tree_hash(roots: tuple[Path, ...], *, skip: Path, tables: frozenset[str]) -> str:
    """Return a hash of the names, sizes and modification times of all files under ``roots`` but the tables.

    Independent of the order of listing and of constant memory: hashes of the files are added up.  Contents are not
    read; a picture that changes within one tick of the clock and keeps its length goes unnoticed.
    """
    total = 0
    for number, root in enumerate(roots):
        above = len(str(root).rstrip("/")) + 1
        for entry in _files(root, skip):
            try:
                status = entry.stat()
            except OSError:  # a link to nowhere
                continue
            name = entry.path[above:]
            if name in tables:  # known by their content
                continue
            mark = content_hash(f"{number} {status.st_size} {status.st_mtime_ns}", os.fsencode(name))
            total += int(mark, 16)
    return f"{total % (1 << 8 * HASH_BYTES):032x}"


def _files(root: Path, skip: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all files below a folder, but for the prepared feed (and its partial folders) should it lie inside."""
    if not root.is_dir():
        return
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                own = entry.name == skip.name or entry.name.startswith(f"{skip.name}.")
                if own and Path(entry.path).parent.resolve() == skip.parent.resolve():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def _is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared feed, or the report of one that was refused."""
    names = {path.name for path in folder.iterdir()}
    return {MANIFEST, ITEMS, PIXELS} <= names or names <= {REPORT, QUARANTINE}


def _clear_leftovers(out: Path) -> None:
    """Remove partial folders of killed runs; bring back a feed that was moved aside and not yet replaced.

    The lock is held, so nobody is still writing them.
    """
    for partial in out.parent.glob(f"{_escaped(out.name)}{PARTIAL}-*"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in out.parent.glob(f"{_escaped(out.name)}.old-*"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(out)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
