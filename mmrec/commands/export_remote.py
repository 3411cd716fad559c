"""An export whose folder is a URL: made whole on this machine, then copied, the manifest last."""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections.abc import Callable
from pathlib import Path

import fsspec

from mmrec.errors import ArtifactError
from mmrec.inference.export import MANIFEST
from mmrec.places import local_path, reach

Summary = dict[str, object]


def export_to(out: str, export: Callable[[Path], Summary]) -> Summary:
    """Export to a path or a URL.

    While files at a URL are replaced there is no manifest: an export there is whole or none.

    Args:
        out: a path, or a URL that fsspec reaches.
        export: exports to a folder of this machine.

    Raises:
        ArtifactError: the URL holds something else.
        RequestError: it cannot be reached.
    """
    here = local_path(out)
    if here is not None:
        return export(here)
    system, root = reach(out, where="--out")
    _check_target(system, root, out)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "export"
        summary = export(made)
        manifest = posixpath.join(root, MANIFEST)
        if system.exists(manifest):
            system.rm_file(manifest)
            system.rm(root, recursive=True)
        names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
        for name in [*sorted({*names} - {MANIFEST}), MANIFEST]:
            place = posixpath.join(root, name)
            system.makedirs(posixpath.dirname(place), exist_ok=True)
            system.put_file(str(made / name), place)
    return summary | {"folder": out}


def _check_target(system: fsspec.AbstractFileSystem, root: str, out: str) -> None:
    """Refuse to replace anything but an export or nothing.

    Raises:
        ArtifactError: there is something else.
    """
    try:
        there = json.loads(system.cat_file(posixpath.join(root, MANIFEST)))
        replaceable = isinstance(there, dict) and "export_version" in there
    except FileNotFoundError:
        replaceable = not system.exists(root) or (system.isdir(root) and not system.ls(root, detail=False))
    except ValueError:
        replaceable = False
    if not replaceable:
        raise ArtifactError(
            "a new place, or an export to replace",
            got="one that holds something else",
            where=out,
            fix="Choose another --out.",
        )
