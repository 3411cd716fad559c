"""Where metrics are sent: a file of JSON lines always, and three experiment trackers beside it."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from mmrec.errors import ArtifactError, MissingExtraError
from mmrec.storage import atomic_file, read_json, write_json


@runtime_checkable
class Tracker(Protocol):
    """Takes numbers as training goes."""

    def start(self, *, step: int, records: int) -> None:
        """Begin, or begin again: what was logged after ``step`` and the first ``records`` calls of ``log`` is void."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one optimiser step."""
        ...

    def close(self) -> None:
        """Hand over what is still held back."""
        ...


class JsonLinesTracker:
    """One JSON object a line: ``step``, then the values; a value that is not finite is null.

    Args:
        path: the file, usually ``metrics.jsonl``.  A resumed training cuts it back, so that nothing appears twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, *, step: int, records: int) -> None:
        """Keep the first ``records`` whole lines."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        kept = [line for line in lines[:records] if line.endswith(b"\n")]
        with atomic_file(self._path) as partial:
            partial.write_bytes(b"".join(kept))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and flush it."""
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise ArtifactError(
                "room to write metrics", got=str(error), where=str(self._path), fix="Free some disk space and --resume."
            ) from error

    def close(self) -> None:
        """Do nothing: every line is on its way already."""


class TensorBoardTracker:
    """Scalars for TensorBoard.

    Args:
        folder: log directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, *, step: int, records: int) -> None:
        """Open an event file that voids what earlier ones hold after ``step``."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, continued when training is resumed.

    Args:
        folder: where wandb keeps its files and ``wandb.json`` remembers the run's id.
        project: name of the project.
        name: name of the run.
        settings: what wandb shows as the run's configuration.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, folder: Path, *, project: str, name: str, settings: Mapping[str, str | int | float]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb") from error
        self._wandb = wandb
        self._folder, self._project, self._name, self._settings = folder, project, name, dict(settings)

    def start(self, *, step: int, records: int) -> None:
        """Open the run, or a new one when training begins at the beginning; wandb itself refuses steps it has seen."""
        self._folder.mkdir(parents=True, exist_ok=True)
        memory = self._folder / "wandb.json"
        known = records > 0 and memory.exists()
        run_id = str(read_json(memory)["id"]) if known else uuid.uuid4().hex[:16]
        write_json(memory, {"id": run_id})
        self._run = self._wandb.init(
            project=self._project,
            name=self._name,
            id=run_id,
            resume="allow",
            dir=str(self._folder),
            config=self._settings,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlflowTracker:
    """An MLflow run, continued when training is resumed.

    Args:
        folder: where ``mlflow.json`` remembers the run's id.
        experiment: name of the experiment; the server is MLflow's own setting (``MLFLOW_TRACKING_URI``).
        name: name of the run.
        settings: logged as the run's parameters.

    Raises:
        MissingExtraError: mlflow is not installed.
    """

    def __init__(self, folder: Path, *, experiment: str, name: str, settings: Mapping[str, str | int | float]) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow") from error
        self._client = mlflow.MlflowClient()
        self._folder, self._experiment, self._name, self._settings = folder, experiment, name, dict(settings)

    def start(self, *, step: int, records: int) -> None:
        """Open the run, or a new one when training begins at the beginning."""
        self._folder.mkdir(parents=True, exist_ok=True)
        memory = self._folder / "mlflow.json"
        if records > 0 and memory.exists():
            self._run_id = str(read_json(memory)["id"])
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=self._name)
        self._run_id = cast("str", run.info.run_id)
        for key, value in self._settings.items():
            self._client.log_param(self._run_id, key, value)
        write_json(memory, {"id": self._run_id})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values; MLflow does not know ``@`` in names, so it is sent as ``_at_``."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name.replace("@", "_at_"), value, step=step)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)
