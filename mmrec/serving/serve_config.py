"""The options of ``mmrec serve`` and the limits of the service as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from mmrec.errors import ConfigError
from mmrec.serving.limits import Limits
from mmrec.settings_files import read_settings, settings_error


class ServeConfig(BaseModel):
    """Options of ``mmrec serve``, by the names that they have on the command line; paths start where it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path | None = None
    """Run folder."""
    vectors: Path | None = None
    """Folder of an export of that run."""
    host: StrictStr = "127.0.0.1"
    """Address to listen at; others than this machine's own need keys."""
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] = 8000
    """Port to listen at."""
    data: Path = Path("mmrec-data")
    """Folder of the embedded store."""
    store: StrictStr | None = None
    """Another store in its place: a folder, postgresql://... or qdrant+http://..."""
    index: Literal["export", "store"] = "export"
    """What finds candidates: the export's index, or its vectors in Postgres or Qdrant."""
    workers: Annotated[int, Field(strict=True, ge=1)] = 1
    """Processes that serve, behind one socket."""
    keys: Path | None = None
    """File of keys."""
    models: Path | None = None
    """Folder of runs and exports that may take the place of this pair while it runs."""
    feed: Path | None = None
    """Prepared feed, by default the exported one."""
    device: StrictStr = "auto"
    """Where to compute."""
    served_log: StrictBool = True
    """Keep what every answer shows."""
    reveal_ids: StrictBool = False
    """Log user ids as they are."""
    studio: StrictBool = True
    """Serve the page at / too."""
    limits: Limits = Limits()
    """What one request, and all of them together, may ask."""

    def pair(self) -> tuple[Path, Path]:
        """Return run and export.

        Raises:
            ConfigError: one of them is named nowhere.
        """
        if self.run is None or self.vectors is None:
            missing = "run" if self.run is None else "vectors"
            fix = "Give both: mmrec serve RUN --vectors VECTORS, or in the file of --config."
            raise ConfigError("a run and its export", got=f"no {missing}", fix=fix)
        return self.run, self.vectors


def read_serve_config(path: Path | None, given: Mapping[str, object]) -> ServeConfig:
    """Return the options of a file, with those of the command line over them.

    Args:
        path: of a YAML file; None for none.
        given: options that the command line names.

    Raises:
        ConfigError: no such file, or unknown keys (near names listed), wrong types or values in it.
    """
    values = {} if path is None else read_settings(path)
    where = "the command line" if path is None else str(path)
    try:
        return ServeConfig.model_validate({**values, **given})
    except ValidationError as error:
        raise settings_error(error, known=_known, where=where) from error


def _known(path: Sequence[str | int]) -> list[str]:
    """Names that would have been right beside the last part of a path."""
    if path[0] == "limits" and len(path) > 1:
        return [field.name for field in fields(Limits)]
    return sorted(ServeConfig.model_fields)
