"""A prepared feed and one of its splits as plain files that any library can read; see ``peers.runners.plain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmrec.assembly import assemble, choose_device, split_fingerprint
from mmrec.commands.evaluate import content_vectors
from mmrec.config_file import load_config
from mmrec.evaluation.settings import settings_of
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.ids import Ids
from mmrec.feed.splits import Cases, Split
from mmrec.notices import silent_meter
from mmrec.storage import RaggedArray, atomic_file, write_json

ABOUT = "about.json"
CONTENT = ("text", "image")

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: the data folder.
        train_events: events to learn from.
        validation_cases: cases whose targets are given.
        test_cases: cases whose targets are not.
        contents: modalities with vectors.
    """

    folder: Path
    train_events: int
    validation_cases: int
    test_cases: int
    contents: tuple[str, ...]


def export(feed: Path, split_name: str | None, out: Path, *, config: Path | None = None) -> Exported:
    """Write the data folder of a split.

    Args:
        feed: prepared feed.
        split_name: its split; None takes the feed's default.
        out: folder to write.
        config: whose frozen encoders describe the items; None leaves contents out.

    Raises:
        FeedError: not a prepared feed, no such split, or a part without cases.
    """
    catalogue, histories = Catalogue.load(feed), Histories.load(feed)
    split = Split.load(feed, split_name)
    setting = settings_of(split, split.validation, histories)[0]
    out.mkdir(parents=True, exist_ok=True)
    train = np.asarray(split.train_events)
    answered = train.copy()
    answered[split.test.histories(histories).values] = True
    _write_events(out / "train.npz", np.flatnonzero(train), histories)
    _write_events(out / "final.npz", np.flatnonzero(answered), histories)
    _write_cases(out / "validation.npz", split.validation, histories, targets=True)
    _write_cases(out / "test.npz", split.test, histories, targets=False)
    contents = {} if config is None else _contents(feed, config)
    _save(out / "items.npz", {"roles": split.item_roles, **contents})
    about = {
        "feed": str(feed.resolve()),
        "feed_hash": catalogue.feed_hash,
        "split": split.name,
        "split_kind": split.kind,
        "split_hash": split_fingerprint(split),
        "num_users": histories.num_users,
        "num_items": len(catalogue),
        "has_time": histories.has_time,
        "validation": {
            "filter_seen": setting.filter_seen,
            "pool": setting.pool,
            "role": int(split.validation.target_role),
        },
    }
    # Last: a folder without it is not whole.
    write_json(out / ABOUT, about)
    names = tuple(name for name in CONTENT if name in contents)
    return Exported(out, int(train.sum()), len(split.validation), len(split.test), names)


def _write_events(path: Path, events: Integers, histories: Histories) -> None:
    arrays = {
        "users": histories.user_rows[events],
        "items": np.asarray(histories.item_rows)[events],
        "timestamps": np.asarray(histories.timestamps)[events],
    }
    _save(path, arrays)


def _write_cases(path: Path, cases: Cases, histories: Histories, *, targets: bool) -> None:
    """Write what a case shows; the targets of test cases stay with the judge."""
    items, timestamps = np.asarray(histories.item_rows), np.asarray(histories.timestamps)
    before = cases.histories(histories)
    arrays = {
        "users": np.asarray(cases.user_rows),
        "times": cases.times(histories),
        "history_offsets": before.offsets,
        "history_items": items[before.values],
        "history_timestamps": timestamps[before.values],
    }
    if targets:
        asked: RaggedArray = cases.targets(histories)
        arrays |= {"target_offsets": asked.offsets, "target_items": items[asked.values]}
    _save(path, arrays)


def _save(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **cast("dict[str, Any]", arrays))


def _contents(feed: Path, path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the mean token vector of every item from the frozen encoders of a configuration, by modality."""
    config = load_config(path)
    encoders = {name: encoder for name, encoder in config.encoders.items() if name in CONTENT}
    nobody = Ids(np.zeros(0, dtype=object), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    device = choose_device("cpu")
    assembly = assemble(config.model_copy(update={"encoders": encoders}), feed, nobody, device=device)
    vectors, present = content_vectors(assembly, notify=print, meter=silent_meter)
    found: dict[str, npt.NDArray[np.generic]] = {name: vector.numpy() for name, vector in vectors.items()}
    return found | {f"{name}_present": mask.numpy() for name, mask in present.items()}
