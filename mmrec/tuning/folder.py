"""Where a tune keeps what, and what it must be the same in when it goes on."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmrec.config import Config, validate
from mmrec.errors import ArtifactError
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json, write_json
from mmrec.tuning.space import Knob, parse_space

TUNE_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a tune varies.

    Args:
        config: what every trial is a variation of.
        space: entries of the space file.
        feed_hash: hash of the feed.
        split_hash: hash of the split.
    """

    config: Config
    space: Mapping[str, object]
    feed_hash: str
    split_hash: str

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """What a trial draws."""
        return parse_space(self.space, self.config, where="space")


@dataclass(frozen=True)
class TuneFolder:
    """The folder of one tune.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def plan(self) -> Path:
        """Configuration, space and feed."""
        return self.path / "plan.json"

    @property
    def journal(self) -> Path:
        """What happened to every trial, one JSON line an event: the study itself."""
        return self.path / "journal.jsonl"

    @property
    def results(self) -> Path:
        """All trials, for reading."""
        return self.path / "tune.json"

    @property
    def best(self) -> Path:
        """Configuration of the best trial."""
        return self.path / "best.yaml"

    def trial(self, number: int) -> RunFolder:
        """Run folder of a trial."""
        return RunFolder(self.path / "trials" / f"{number:04}")

    def log(self, worker: int) -> Path:
        """Output of a worker process."""
        return self.path / "workers" / f"{worker}.log"

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the folder; yields a descriptor that worker processes inherit, so that it is held while one lives.

        Raises:
            ArtifactError: the folder is something else, or another process is tuning in it.
        """
        foreign = [] if self.plan.is_file() or not self.path.exists() else _foreign(self.path)
        if foreign:
            fix = "Choose another --out."
            raise ArtifactError("a new folder", got=f"one that holds {foreign[0]}", where=str(self.path), fix=fix)
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ArtifactError(
                    "nobody else tuning in this folder",
                    got="another process",
                    where=str(self.path),
                    fix="Wait for it to end, or stop it.",
                ) from error
            yield lock.fileno()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other worker is between reading the study and writing to it."""
        with (self.path / "turn").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def begin(self, plan: Plan) -> None:
        """Write the plan."""
        content: dict[str, object] = {"config": plan.config.model_dump(mode="json"), "space": dict(plan.space)}
        content |= {"feed_hash": plan.feed_hash, "split_hash": plan.split_hash}
        write_json(self.plan, {"tune_version": TUNE_VERSION, **content})

    def is_new(self, plan: Plan) -> bool:
        """Say whether there is no plan yet; one that is there must be the same.

        Raises:
            ArtifactError: the folder holds a tune of something else.
        """
        if not self.plan.is_file():
            return True
        before = self.read()
        pairs = {
            "configuration": before.config == plan.config,
            "space": before.knobs == plan.knobs,
            "feed": before.feed_hash == plan.feed_hash,
            "split": before.split_hash == plan.split_hash,
        }
        changed = [name for name, same in pairs.items() if not same]
        if changed:
            raise ArtifactError(
                "the configuration, space, feed and split that the tune was started with",
                got=f"another {' and another '.join(changed)}",
                where=str(self.path),
                fix="Go on with the same settings, or choose another --out.",
            )
        return False

    def read(self) -> Plan:
        """Read the plan.

        Raises:
            ArtifactError: none, or of another version.
        """
        about = read_json(self.plan)
        if about.get("tune_version") != TUNE_VERSION:
            got = repr(about.get("tune_version"))
            raise ArtifactError(f"tune version {TUNE_VERSION}", got=got, where=str(self.plan))
        config = validate(cast("dict[str, object]", about["config"]), where=str(self.plan))
        space = cast("dict[str, object]", about["space"])
        return Plan(config, space, str(about["feed_hash"]), str(about["split_hash"]))

    def strip(self, number: int) -> None:
        """Delete what a trial that is not the best needs no more; its configuration and metrics stay."""
        run = self.trial(number)
        for folder in (run.checkpoints, run.preprocessing):
            shutil.rmtree(folder, ignore_errors=True)
        run.ids.unlink(missing_ok=True)


def _foreign(path: Path) -> list[str]:
    """Names in a folder that a tune which was killed at once would not leave."""
    if not path.is_dir():
        return ["a file"]
    return sorted(entry.name for entry in path.iterdir() if entry.name != "lock" and "plan.json" not in entry.name)
