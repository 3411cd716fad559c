"""Feeds of a few events, built in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.evaluation.crossmodal import FROZEN, CrossModal, Questions, crossmodal_tables, space_scores
from mmrec.evaluation.significance import Bootstrap
from mmrec.feed.catalogue import NO_CAPTION, Captions, Catalogue, Pictures
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Kind, Split
from mmrec.storage import RaggedArray


def histories_of(sequences: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None) -> Histories:
    """One list of item rows a user; times default to 0, 1, 2, ..."""
    lengths = [len(sequence) for sequence in sequences]
    instants = times or [list(range(length)) for length in lengths]
    return Histories(
        user_ids=np.array([f"u{row}" for row in range(len(sequences))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_rows=np.array([item for sequence in sequences for item in sequence], dtype=np.int64),
        timestamps=np.array([time for sequence in instants for time in sequence], dtype=np.int64),
        has_time=True,
        event_names=[],
        event_codes=None,
        values=None,
    )


def cases_of(
    histories: Histories,
    targets: Sequence[int],
    *,
    num_items: int,
    roles: Sequence[int] | None = None,
    target_role: int = 0,
) -> Cases:
    """One case a user: the last ``targets[user]`` events are the targets, what comes before is the history."""
    stops = histories.offsets[1:]
    starts = stops - np.array(targets, dtype=np.int64)
    return Cases(
        user_rows=np.arange(len(stops)),
        history_stops=starts,
        target_starts=starts,
        target_stops=np.array(stops),
        target_role=target_role,
        item_roles=np.array(roles if roles is not None else [0] * num_items, dtype=np.uint8),
    )


def split_of(
    histories: Histories, cases: Cases, *, kind: Kind = "leave_last_out", existing_only: bool = False
) -> Split:
    """Everything before the targets is training, except events of items that are not warm."""
    train = np.zeros(histories.num_events, dtype=np.bool_)
    for user, stop in zip(cases.user_rows, cases.history_stops, strict=True):
        train[histories.offsets[user] : stop] = True
    train &= cases.item_roles[histories.item_rows] == 0
    return Split("toy", kind, {"existing_only": existing_only}, train, cases.item_roles, cases, cases)


def catalogue_of(
    captions: Sequence[str | None],
    pictures: Sequence[npt.NDArray[np.uint8] | None] | None = None,
    *,
    first_seen: Sequence[int] | None = None,
) -> Catalogue:
    """One caption (or None) and one picture (or None) an item."""
    written = [caption.encode() for caption in captions if caption is not None]
    shown = list(pictures or [None] * len(captions))
    real = [picture for picture in shown if picture is not None]
    rows = np.cumsum([caption is not None for caption in captions]) - 1
    has_picture = np.array([picture is not None for picture in shown])
    return Catalogue(
        folder=Path("toy"),
        manifest={"feed_hash": "toyhash"},
        item_ids=np.array([f"i{row}" for row in range(len(captions))], dtype=object),
        caption_rows=np.where([caption is None for caption in captions], NO_CAPTION, rows).astype(np.int64),
        captions=Captions(
            RaggedArray(
                np.frombuffer(b"".join(written), np.uint8),
                np.concatenate([[0], np.cumsum([len(text) for text in written])]).astype(np.int64),
            ),
            np.zeros((len(written), 16), np.uint8),
        ),
        item_images=RaggedArray(np.arange(len(real)), np.concatenate([[0], np.cumsum(has_picture)]).astype(np.int64)),
        pictures=Pictures(
            pixels=np.concatenate([np.zeros(0, np.uint8), *(picture.reshape(-1) for picture in real)]),
            offsets=np.concatenate([[0], np.cumsum([picture.size for picture in real])]).astype(np.int64),
            shapes=np.array([picture.shape[:2] for picture in real], np.int32).reshape(-1, 2),
            hashes=np.zeros((len(real), 16), np.uint8),
        ),
        first_seen=np.array(first_seen if first_seen is not None else [0] * len(captions), dtype=np.int64),
    )


def crossmodal_of(*, unseen: bool = True) -> CrossModal:
    """Twelve posts asked about: the model knows every pair, the frozen features take each for its neighbour."""
    pairs = {"model": torch.eye(12), FROZEN: torch.eye(12).roll(1, dims=0)}
    return crossmodal_tables(
        {name: space_scores(torch.eye(12), image) for name, image in pairs.items()},
        Questions(np.arange(12), np.arange(12, 1512), unseen),
        captions=np.arange(12),
        pictures=np.arange(12),
        bootstrap=Bootstrap(resamples=20),
    )


class Fixed:
    """Scores written down beforehand, shape (cases, items); remembers how many rows were asked at once."""

    def __init__(self, table: Sequence[Sequence[float]] | npt.NDArray[np.float64]) -> None:
        self.table = torch.tensor(np.asarray(table), dtype=torch.float32)
        self.asked: list[int] = []

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        self.asked.append(len(cases))
        return self.table[torch.from_numpy(cases)]
