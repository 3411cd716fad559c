"""How much encoding a training asks for and how much of it is saved: for the log, and in one line each at the end."""

from __future__ import annotations

from collections.abc import Mapping

from mmrec.batch import HistoryBatch
from mmrec.build import BuiltEncoder
from mmrec.encoders.work import EncodingWork


class WorkLog:
    """Counts items that batches name, and reads what the encoders of captions and pictures count themselves.

    Everything counts from the start of the process: it is no part of a checkpoint.  What a loader prepares ahead of the
    step, a refresh of the bank and a validation are in the encoders' counts; the names of items are training's alone.

    Args:
        encoders: by modality.
    """

    def __init__(self, encoders: Mapping[str, BuiltEncoder]) -> None:
        self._work = {name: built.work for name, built in encoders.items() if built.work is not None}
        self._logged = self._now()
        self._begin = self._logged
        self._named = self._distinct = 0
        self._batch: dict[str, float] = {}

    def count(self, batch: HistoryBatch) -> None:
        """Count the items that a batch names; the batch is on the CPU, and may be one process's share of it."""
        negatives = len(batch.negatives) // (1 if batch.share is None else len(batch.share.sizes))
        named, distinct = int(batch.users.valid.sum()) + len(batch.targets) + negatives, len(batch.items)
        self._named += named
        self._distinct += distinct
        self._batch = {"items_named": float(named), "items_distinct": float(distinct)}
        for name, part in batch.items.parts.items():
            self._batch[f"{name}_parts"] = float(len(part.item_index))
            self._batch[f"{name}_contents"] = float(len(part.content))

    def read(self) -> dict[str, float]:
        """Return the last batch's items and contents, and since the call before: padding and cache hits by modality."""
        values, now = dict(self._batch), self._now()
        for name, work in now.items():
            new = work.since(self._logged[name])
            if new.padded_tokens:
                values[f"{name}_padding_share"] = new.padding_share
            if new.contents:
                values[f"{name}_cache_hits"] = float(new.cache_hits)
                values[f"{name}_cache_hit_share"] = new.cache_hit_share
        self._logged = now
        return values

    def figures(self) -> dict[str, float]:
        """Return all work since the log was opened by name, what refreshes and validations encoded included."""
        values = {"items_named": float(self._named), "items_distinct": float(self._distinct)}
        for name, work in self._now().items():
            new = work.since(self._begin[name])
            values |= {f"{name}_contents": float(new.contents), f"{name}_cache_hits": float(new.cache_hits)}
            values[f"{name}_cache_hit_share"] = new.cache_hit_share
            if new.padded_tokens:
                values[f"{name}_padding_share"] = new.padding_share
        return values

    def summary(self) -> dict[str, str]:
        """Return a line about the items, and one about each modality that was encoded."""
        ratio = self._named / max(self._distinct, 1)
        lines = {"items named / distinct": f"{self._named:,} / {self._distinct:,} ({ratio:.1f})"}
        for name, work in self._now().items():
            if work.contents:
                padding = f"{work.padding_share:.1%} padding, " if work.padded_tokens else ""
                hits = f"{work.cache_hits:,} cache hits ({work.cache_hit_share:.1%})"
                lines[f"{name} contents"] = f"{work.contents:,}, {padding}{hits}"
        return lines

    def _now(self) -> dict[str, EncodingWork]:
        return {name: work.copy() for name, work in self._work.items()}
