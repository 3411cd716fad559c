"""What the frozen part of an encoder gives, once per distinct content, on disk.

Entries are found by content hash inside a folder named for everything else that decides them: the preprocessing, the
frozen weights, the cut and the number format.  They lie in shards that are whole or absent, so that an interrupted
run goes on where it stopped and a catalogue that grew is encoded only where it is new.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from mmrec.contents import TextContent, TokenStates, read_content
from mmrec.encoders.base import ContentEncoder
from mmrec.encoders.work import EncodingWork
from mmrec.errors import ArtifactError
from mmrec.feed.items import ContentSource
from mmrec.storage import HASH_BYTES, PARTIAL, RaggedArray, atomic_folder, content_hash, read_array, write_array

TrunkDtype = Literal["float32", "float16", "bfloat16"]
SHARD_BYTES = 1 << 28
ROWS_AT_ONCE = 8192
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_Keys = npt.NDArray[np.generic]


@dataclass(frozen=True)
class CacheEstimate:
    """What a cache will cost, told before anything is written.

    Args:
        contents: distinct contents.
        new_contents: those that are not in the cache yet.
        new_bytes: what they will take on disk.
    """

    contents: int
    new_contents: int
    new_bytes: int

    def __str__(self) -> str:
        """Say it as a sentence."""
        if self.new_contents == 0:
            return f"all {self.contents:,} contents are cached"
        return f"{self.new_contents:,} of {self.contents:,} contents to encode, {self.new_bytes / 1e6:,.1f} MB"


@dataclass
class TrunkCache:
    """Trunk states by content row; a :class:`~mmrec.feed.items.ContentSource`.

    Args:
        slots: shape (contents,), where each content row's states are among all entries.
        shards: entries, memory-mapped.
        dtype: number format on disk.
        encoded: contents that had to be encoded when the cache was opened.
        work: counts the contents read.
    """

    slots: npt.NDArray[np.int64]
    shards: tuple[RaggedArray, ...]
    dtype: TrunkDtype
    encoded: int = 0
    work: EncodingWork = field(default_factory=EncodingWork)
    _ends: npt.NDArray[np.int64] = field(init=False, repr=False)
    _lengths: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([len(shard) for shard in self.shards]).astype(np.int64)
        self._lengths = np.concatenate([np.zeros(0, np.int64), *(shard.lengths for shard in self.shards)])

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the states of all content rows."""
        tokens = int(self._lengths[self.slots].sum())
        return sum(shard.values[:1].nbytes for shard in self.shards[:1]) * tokens

    def whole(self, device: torch.device) -> TokenStates:
        """Return the states of all content rows on a device, in the number format of the disk."""
        pieces = [
            self._read(np.arange(start, min(start + ROWS_AT_ONCE, len(self)))).to(device)
            for start in range(0, len(self), ROWS_AT_ONCE)
        ]
        return _join(pieces)

    def gather(self, rows: npt.NDArray[np.int64]) -> TokenStates:
        """Return the states of the given content rows, float32, on the CPU."""
        states = self._read(rows)
        self.work.add(cache_hits=len(rows))
        return TokenStates(states.states.float(), states.lengths)

    def _read(self, rows: npt.NDArray[np.int64]) -> TokenStates:
        assert len(rows), "a trunk cache knows no width for no contents"
        slots = self.slots[rows]
        lengths = self._lengths[slots]
        ends = np.cumsum(lengths)
        number = np.searchsorted(self._ends, slots, side="right")
        first = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1, [len(rows)]])
        values = self.shards[0].values
        gathered = np.empty((int(ends[-1]), *values.shape[1:]), values.dtype)
        # Neighbours mostly lie in one shard: each run of them is copied once, straight to where it belongs.
        for start, stop in zip(first[:-1], first[1:], strict=True):
            shard = int(number[start])
            entries = slots[start:stop] - (int(self._ends[shard]) - len(self.shards[shard]))
            room = gathered[int(ends[start] - lengths[start]) : int(ends[stop - 1])]
            self.shards[shard].gather_into(entries, room)
        return TokenStates(_from_disk(gathered, self.dtype), torch.from_numpy(lengths))


def build_trunk_cache(
    encoder: ContentEncoder,
    source: ContentSource,
    hashes: UInt8[np.ndarray, "contents 16"],
    folder: Path,
    *,
    preprocessing_fingerprint: str,
    dtype: TrunkDtype = "float16",
    device: torch.device | None = None,
    batch_size: int = 256,
    work: EncodingWork | None = None,
    notify: Callable[[CacheEstimate], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrunkCache:
    """Open the cache of an encoder's trunk over a source's contents, encoding what it lacks.

    Args:
        encoder: an encoder with a trunk, on ``device``.
        source: raw contents by row.
        hashes: content hash of every row.
        folder: where caches are kept.
        preprocessing_fingerprint: hash of what turned the contents into what ``source`` gives.
        dtype: number format on disk.
        device: where the encoder is; the CPU by default.
        batch_size: contents encoded at once.
        work: counts the contents read from the cache; the encoder's own, where hits are to stand beside what it runs.
        notify: told the cost before anything is written.
        progress: told how many new contents are done, and of how many.

    Raises:
        ArtifactError: a state is too large for float16, or the disk has too little room.
    """
    assert encoder.has_trunk
    place = _place(encoder, folder, preprocessing_fingerprint, dtype)
    keys = _as_keys(hashes)
    known, _ = _open_shards(place)
    missing = _first_rows(keys, known)
    filling = _Filling(encoder, source, device or torch.device("cpu"), dtype, batch_size)
    estimate = CacheEstimate(len(keys), len(missing), filling.estimate_bytes(missing))
    if notify is not None:
        notify(estimate)
    _check_room(place, estimate)
    done = 0
    for rows, states in filling.shards(missing):
        _write_shard(place, keys[rows], states)
        done += len(rows)
        if progress is not None:
            progress(done, len(missing))
    known, shards = _open_shards(place)
    return TrunkCache(_find(keys, known), shards, dtype, encoded=len(missing), work=work or EncodingWork())


def is_cached(
    encoder: ContentEncoder,
    hashes: UInt8[np.ndarray, "contents 16"],
    folder: Path,
    *,
    preprocessing_fingerprint: str,
    dtype: TrunkDtype,
) -> bool:
    """Return whether the cache of an encoder's trunk holds all contents, so that opening it encodes nothing."""
    known, _ = _open_shards(_place(encoder, folder, preprocessing_fingerprint, dtype))
    return len(_first_rows(_as_keys(hashes), known)) == 0


def _place(encoder: ContentEncoder, folder: Path, preprocessing_fingerprint: str, dtype: TrunkDtype) -> Path:
    return folder / content_hash("trunk", encoder.trunk_fingerprint(), preprocessing_fingerprint, dtype)


def round_states(states: TokenStates, dtype: TrunkDtype) -> TokenStates:
    """Round a trunk's output as the cache would, so that cached and uncached runs agree; float32 out.

    Raises:
        ArtifactError: a state is too large for float16.
    """
    return TokenStates(_round(states.states, dtype).float(), states.lengths)


@dataclass(frozen=True)
class _Filling:
    """Encoding of the contents that are missing."""

    encoder: ContentEncoder
    source: ContentSource
    device: torch.device
    dtype: TrunkDtype
    batch_size: int

    def encode(self, rows: npt.NDArray[np.int64]) -> TokenStates:
        """Run the trunk and round."""
        states = self.encoder.trunk(read_content(self.source.gather(rows).to(self.device)))
        return TokenStates(_round(states.states, self.dtype).cpu(), states.lengths)

    def estimate_bytes(self, rows: npt.NDArray[np.int64]) -> int:
        """Encode one content to see how wide and how long states are; captions are counted to the token."""
        if len(rows) == 0:
            return 0
        probe = self.encode(rows[:1])
        tokens = len(rows) * len(probe.states)
        if isinstance(self.source.gather(rows[:1]), TextContent):
            parts = (self.source.gather(rows[i : i + ROWS_AT_ONCE]) for i in range(0, len(rows), ROWS_AT_ONCE))
            tokens = sum(int(part.lengths.sum()) for part in parts if isinstance(part, TextContent))
        return tokens * probe.states.shape[1] * probe.states.element_size()

    def shards(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], TokenStates]]:
        """Encode in batches and give them out in shards of bounded size."""
        batches: list[TokenStates] = []
        start = size = 0
        for stop in range(0, len(rows), self.batch_size):
            batch = self.encode(rows[stop : stop + self.batch_size])
            batches.append(batch)
            size += batch.states.numel() * batch.states.element_size()
            end = min(stop + self.batch_size, len(rows))
            if size >= SHARD_BYTES or end == len(rows):
                yield rows[start:end], _join(batches)
                batches, start, size = [], end, 0


def _join(batches: Sequence[TokenStates]) -> TokenStates:
    return TokenStates(torch.cat([b.states for b in batches]), torch.cat([b.lengths for b in batches]))


def _round(states: Float[Tensor, "total dim"], dtype: TrunkDtype) -> Float[Tensor, "total dim"]:
    rounded = states.to(_TORCH_DTYPES[dtype])
    if dtype == "float16" and bool((rounded.isinf() & states.isfinite()).any()):
        raise ArtifactError(
            "trunk states that fit float16 (at most 65504)",
            got=f"{float(states.abs().max()):.3g}",
            where="train.trunk_dtype",
            fix="Set train.trunk_dtype=bfloat16 (or float32).",
        )
    return rounded


def _to_disk(states: Shaped[Tensor, "total dim"]) -> npt.NDArray[np.generic]:
    """View as NumPy; bfloat16, which NumPy lacks, as uint16."""
    if states.dtype == torch.bfloat16:
        return np.asarray(states.contiguous().view(torch.int16).numpy()).view(np.uint16)
    return np.asarray(states.contiguous().numpy())


def _from_disk(values: npt.NDArray[np.generic], dtype: TrunkDtype) -> Float[Tensor, "total dim"]:
    if dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _as_keys(hashes: npt.NDArray[np.uint8]) -> _Keys:
    """View hashes as one comparable value each."""
    assert hashes.ndim == 2
    assert hashes.shape[1] == HASH_BYTES
    return np.ascontiguousarray(hashes, dtype=np.uint8).view(f"S{HASH_BYTES}").reshape(-1)


def _first_rows(keys: _Keys, known: _Keys) -> npt.NDArray[np.int64]:
    """Rows whose hash is not known, each hash once."""
    distinct, first = np.unique(keys, return_index=True)
    return np.sort(first[~np.isin(distinct, known)]).astype(np.int64)


def _find(keys: _Keys, known: _Keys) -> npt.NDArray[np.int64]:
    """Position of every key among the known ones, all of which must be there."""
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, keys, sorter=order)
    slots = order[np.minimum(place, max(0, len(order) - 1))] if len(keys) else np.zeros(0, np.int64)
    assert bool(np.all(known[slots] == keys))
    return slots.astype(np.int64)


def _open_shards(place: Path) -> tuple[_Keys, tuple[RaggedArray, ...]]:
    folders = sorted(path for path in place.glob("shard-*") if PARTIAL not in path.name and ".old-" not in path.name)
    hashes = [np.asarray(read_array(folder / "hashes.npy"), dtype=np.uint8) for folder in folders]
    everything = np.concatenate([np.zeros((0, HASH_BYTES), np.uint8), *hashes])
    return _as_keys(everything), tuple(RaggedArray.load(folder, "states") for folder in folders)


def _write_shard(place: Path, keys: _Keys, states: TokenStates) -> None:
    """Write a shard named for its contents, so that two runs that make the same one agree."""
    hashes = keys.view(np.uint8).reshape(-1, HASH_BYTES)
    path = place / f"shard-{content_hash(hashes.tobytes())}"
    offsets = np.concatenate([[0], np.cumsum(states.lengths.numpy())]).astype(np.int64)
    with atomic_folder(path, replace=False) as partial:
        write_array(partial / "hashes.npy", hashes)
        RaggedArray(_to_disk(states.states), offsets).save(partial, "states")


def _check_room(place: Path, estimate: CacheEstimate) -> None:
    if estimate.new_contents == 0:
        return
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if free < estimate.new_bytes:
        raise ArtifactError(
            f"{estimate.new_bytes / 1e9:.1f} GB of room for the trunk cache",
            got=f"{free / 1e9:.1f} GB free",
            where=str(place),
            fix="Free some space, or set train.trunk_cache=false.",
        )
