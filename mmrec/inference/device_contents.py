"""Contents that lie on the device from the start of a training, where they fit: a batch then names them by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from mmrec.contents import Content, StoredContent
from mmrec.encoders.work import EncodingWork
from mmrec.feed.items import ContentSource, ItemReader


@runtime_checkable
class WholeSource(ContentSource, Protocol):
    """A source that can give everything it has at once."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        ...

    def whole(self, device: torch.device) -> Content:
        """Return all contents on a device, in the number format in which they are kept."""
        ...


@dataclass(frozen=True)
class DeviceContents:
    """All contents of a source, on a device; a :class:`~mmrec.feed.items.ContentSource` that gives row numbers.

    Args:
        store: the contents by row.
        work: counts what is read from a trunk's cache.
    """

    store: Content
    work: EncodingWork = field(default_factory=EncodingWork)

    def gather(self, rows: npt.NDArray[np.int64]) -> StoredContent:
        """Return the given rows, by number."""
        self.work.add(cache_hits=len(rows))
        return StoredContent(self.store, torch.from_numpy(np.ascontiguousarray(rows)))


def keep_on_device(
    reader: ItemReader, device: torch.device, *, room: int, notify: Callable[[str], None] | None = None
) -> ItemReader:
    """Return a reader whose sources lie on the device as far as they fit, the smallest first.

    Args:
        reader: the items' contents.
        device: where to keep them.
        room: bytes that they may take.
        notify: told in one sentence what was moved.
    """
    modalities, moved = dict(reader.modalities), []
    sizes = {
        name: modality.source.nbytes
        for name, modality in modalities.items()
        if isinstance(modality.source, WholeSource)
    }
    for name in sorted(sizes, key=lambda name: sizes[name]):
        source = modalities[name].source
        if not 0 < sizes[name] <= room or not isinstance(source, WholeSource):
            continue
        room -= sizes[name]
        work = getattr(source, "work", None) or EncodingWork()
        modalities[name] = replace(modalities[name], source=DeviceContents(source.whole(device), work))
        moved.append(f"{name} ({sizes[name] / 1e6:,.0f} MB)")
    if moved and notify is not None:
        notify(f"kept on {device}: {', '.join(moved)}")
    return ItemReader(modalities)


def device_room(device: torch.device, *, share: float) -> int:
    """Return the bytes that a share of a GPU's free memory is; 0 on a CPU, where there is nothing to send."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(share * free)
