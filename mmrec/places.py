"""Places for files that may be on other machines: paths, and URLs that fsspec reaches."""

from __future__ import annotations

from pathlib import Path

import fsspec.core

from mmrec.errors import RequestError


def full_place(place: str | Path) -> str:
    """Return a place as every process understands it: a URL as it is, a local path made absolute."""
    return str(place) if "://" in str(place) else str(Path(place).resolve())


def reach(place: str, *, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a place, and the path in it; fsspec keeps the connections.

    Args:
        place: a path or a URL.
        where: who asked for it, for the error.

    Raises:
        RequestError: fsspec knows no such place, or lacks the library for it.
    """
    try:
        system, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise RequestError(
            "a place that fsspec reaches (a path, file://, s3://, gs://, ...)",
            got=f"{place!r}: {error}",
            where=where,
            fix="Install what is missing (s3fs for s3://, gcsfs for gs://), or choose another place.",
        ) from error
    return system, str(path)


def local_path(place: str) -> Path | None:
    """Return the path of a place on this machine; None for any other."""
    if "://" not in place:
        return Path(place)
    name, _, path = place.partition("://")
    return Path(path) if name == "file" else None
