"""The one folder that models are loaded from while the service runs; requests name what lies in it, never a place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrec.errors import ArtifactError, ConfigError, near_names
from mmrec.inference.export import MANIFEST
from mmrec.run_folder import RunFolder
from mmrec.serving.deployment.choice import Names
from mmrec.serving.problems import ProblemError
from mmrec.storage import read_json

_PATH = re.compile(r"(?<![\w.])/[^\s,;:()]+")


@dataclass(frozen=True)
class Places:
    """Where the parts of a pair are.

    Args:
        run: run folder.
        vectors: folder of an export.
        feed: prepared feed; None for the one that the export names.
    """

    run: Path
    vectors: Path
    feed: Path | None


class ModelFolder:
    """Runs, exports and prepared feeds side by side in one folder.

    Args:
        folder: where.
        feed: prepared feed where a pair names none; None for the one that its export names.

    Raises:
        ConfigError: no such folder.
    """

    def __init__(self, folder: Path, *, feed: Path | None = None) -> None:
        if not folder.is_dir():
            raise ConfigError("a folder of runs and exports", got="no such folder", where=str(folder), fix="Make it.")
        self._folder, self._feed = folder, feed

    def runs(self) -> list[str]:
        """Return the names of the runs that are there now."""
        return [name for name, path in self._folders() if RunFolder(path).about.is_file()]

    def exports(self) -> list[str]:
        """Return the names of the exports that are there now."""
        return self._with("export_version")

    def feeds(self) -> list[str]:
        """Return the names of the prepared feeds that are there now."""
        return self._with("schema_version")

    def places(self, names: Names) -> Places:
        """Return where the parts of a pair are.

        Raises:
            ProblemError: a name that nothing of that kind in the folder has; a path is no name.
        """
        run = self._place(names.run, self.runs(), "run", "a run")
        vectors = self._place(names.vectors, self.exports(), "vectors", "an export")
        if names.feed is None:
            return Places(run, vectors, self._feed)
        return Places(run, vectors, self._place(names.feed, self.feeds(), "feed", "a prepared feed"))

    def told(self, text: str) -> str:
        """Return a text without places on the disk, but for names in this folder."""
        return _PATH.sub("...", text.replace(f"{self._folder}{os.sep}", ""))

    def _place(self, name: str, there: Sequence[str], where: str, kind: str) -> Path:
        """Return the path of what a list holds under a name; the path is made of the list's entry."""
        for entry in there:
            if entry == name:
                return self._folder / entry
        raise ProblemError(
            422,
            f"the name of {kind} in the folder of --models",
            got=repr(name[:100]),
            where=where,
            fix=near_names(name[:100], there) if there else "Put it there.",
        )

    def _with(self, key: str) -> list[str]:
        """Return the names of the folders whose manifest has a key."""
        found = []
        for name, path in self._folders():
            try:
                manifest = read_json(path / MANIFEST)
            except ArtifactError:
                continue
            if key in manifest:
                found.append(name)
        return found

    def _folders(self) -> list[tuple[str, Path]]:
        """Return name and path of every folder but hidden ones."""
        return sorted((path.name, path) for path in self._folder.glob("[!.]*") if path.is_dir())
