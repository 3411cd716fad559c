"""Where a run keeps what: one place that knows the names of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrec.errors import ArtifactError
from mmrec.storage import read_json, write_json

RUN_VERSION = 1


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The whole configuration, defaults included."""
        return self.path / "config.yaml"

    @property
    def about(self) -> Path:
        """Feed, hashes and versions."""
        return self.path / "run.json"

    @property
    def ids(self) -> Path:
        """Item ids in the order of the id vectors, and how often training saw each."""
        return self.path / "items.parquet"

    @property
    def preprocessing(self) -> Path:
        """Tokenizer files and picture parameters, one folder a modality."""
        return self.path / "preprocessing"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, and which is best."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def profile(self) -> Path:
        """Where the time of the newest profiled training went."""
        return self.path / "profile.json"

    @property
    def embeddings(self) -> Path:
        """Vectors of the catalogue, by model hash."""
        return self.path / "embeddings"

    def evaluation(self, part: str, compute_dtype: str = "float32") -> Path:
        """Report of one part of the split, by encoders that ran in a number format."""
        return self.path / "evaluation" / (part if compute_dtype == "float32" else f"{part}-{compute_dtype}")

    def write_about(self, about: Mapping[str, object]) -> None:
        """Say what the run is made of."""
        write_json(self.about, {"run_version": RUN_VERSION, **about})

    def read_about(self) -> dict[str, object]:
        """Return what the run is made of.

        Raises:
            ArtifactError: not a run, or one of another version.
        """
        if not self.about.is_file():
            raise ArtifactError(
                "a run folder",
                got="no run.json",
                where=str(self.path),
                fix="Run: mmrec train CONFIG --feed F --out RUN.",
            )
        about = read_json(self.about)
        if about.get("run_version") != RUN_VERSION:
            raise ArtifactError(f"run version {RUN_VERSION}", got=repr(about.get("run_version")), where=str(self.about))
        return about
