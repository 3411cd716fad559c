"""A catalogue's contents as one encoder wants them, made once and kept beside the prepared feed.

A view lies in ``<prepared feed>/views/<fingerprint>``; the fingerprint covers the preprocessing and the contents, so a
view is never stale.  It is written in chunks that are whole or absent: an interrupted run goes on where it stopped,
and two runs that make the same view do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmrec import columns
from mmrec.contents import IdContent, ImageContent, TextContent, VectorContent
from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.storage import RaggedArray, atomic_folder, content_hash, read_array, read_json, write_array, write_json

CAPTIONS_AT_ONCE = 4096
CHUNK_BYTES = 1 << 28
VIEW = "view.json"
VECTOR = "vector"
Progress = Callable[[int, int], None]
"""Called with how many contents are done, and of how many."""


@dataclass(frozen=True)
class TokenView:
    """Token ids of every distinct caption.

    Args:
        token_ids: one row a caption.
        truncated: how many captions were cut.
    """

    token_ids: RaggedArray
    truncated: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def state_hashes(self, hashes: npt.NDArray[np.uint8], *, window: int) -> npt.NDArray[np.uint8]:
        """Return what an encoder's states of each caption are kept under, shape (captions, 16).

        That of a caption in one window is its content hash, whatever longer ones there are; another number of windows
        makes other states.

        Args:
            hashes: shape (captions, 16), content hashes.
            window: tokens of a full window.
        """
        counts = -(-self.token_ids.lengths // window)
        keys = np.array(hashes, dtype=np.uint8)
        for row in np.flatnonzero(counts > 1):
            digest = content_hash(keys[row].tobytes(), f"{counts[row]} windows")
            keys[row] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        return keys

    @property
    def nbytes(self) -> int:
        """Bytes of all token ids."""
        return int(self.token_ids.values.nbytes)

    def whole(self, device: torch.device) -> TextContent:
        """Return all captions on a device."""
        return self.gather(np.arange(len(self))).to(device)

    def gather(self, rows: npt.NDArray[np.int64]) -> TextContent:
        """Return the captions of the given rows."""
        ragged = self.token_ids.gather(rows)
        return TextContent(torch.from_numpy(ragged.values.astype(np.int32)), torch.from_numpy(ragged.lengths))


@dataclass(frozen=True)
class PixelView:
    """Pixels of every distinct picture, in memory-mapped chunks.

    Args:
        chunks: each of shape (pictures, 3, side, side), uint8; all but the last equally long.
        side: side in pixels.
    """

    chunks: tuple[npt.NDArray[np.uint8], ...]
    side: int

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return sum(chunk.nbytes for chunk in self.chunks)

    def whole(self, device: torch.device) -> ImageContent:
        """Return all pictures on a device."""
        return ImageContent(torch.cat([torch.from_numpy(np.array(chunk)).to(device) for chunk in self.chunks]))

    def gather(self, rows: npt.NDArray[np.int64]) -> ImageContent:
        """Return the pictures of the given rows."""
        pixels = np.empty((len(rows), 3, self.side, self.side), np.uint8)
        if len(rows):
            number, place = np.divmod(rows, len(self.chunks[0]))
            first = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1, [len(rows)]])
            # Neighbours mostly lie in one chunk: each run of them is copied once, straight to where it belongs.
            for start, stop in zip(first[:-1], first[1:], strict=True):
                np.take(self.chunks[number[start]], place[start:stop], axis=0, out=pixels[start:stop], mode="clip")
        return ImageContent(torch.from_numpy(pixels))


@dataclass(frozen=True)
class VectorTable:
    """Precomputed vectors by row.

    Args:
        vectors: shape (vectors, vector_dim), float32.
        rows: shape (items,), row of each item's vector, -1 where it has none.
    """

    vectors: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]

    @property
    def vector_dim(self) -> int:
        """Width of the vectors."""
        return int(self.vectors.shape[1])

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint8]:
        """Content hash of every vector, shape (vectors, 16)."""
        digests = [bytes.fromhex(content_hash(vector.tobytes())) for vector in self.vectors]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)

    def gather(self, rows: npt.NDArray[np.int64]) -> VectorContent:
        """Return the vectors of the given rows."""
        return VectorContent(torch.from_numpy(self.vectors[rows]))

    @classmethod
    def load(cls, path: Path, catalogue: Catalogue) -> VectorTable:
        """Read a Parquet file with ``item_id`` and a list column ``vector``; ids that are not items are ignored.

        Raises:
            FeedError: the file is absent, a column is missing, vectors differ in width, or an id comes twice.
        """
        ids, vectors = _read_vectors(path)
        place = pd.Series(np.arange(len(ids)), index=ids)
        rows = place.reindex(pd.Index(catalogue.item_ids).map(str)).fillna(-1).to_numpy(dtype=np.int64)
        return cls(vectors, rows)


@dataclass(frozen=True)
class IdTable:
    """Known items by row.

    Args:
        counts: shape (items,), how often training saw each item.
        trends: shape (items,), how far each item's popularity rose of late.
    """

    counts: npt.NDArray[np.int64]
    trends: npt.NDArray[np.float32]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row itself for items that training saw, -1 for others; shape (items,)."""
        return np.where(self.counts > 0, np.arange(len(self.counts)), -1)

    def gather(self, rows: npt.NDArray[np.int64]) -> IdContent:
        """Return the ids of the given rows."""
        return IdContent(
            item_rows=torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
            counts=torch.from_numpy(self.counts[rows].astype(np.float32)),
            trends=torch.from_numpy(self.trends[rows]),
        )


def token_view(
    catalogue: Catalogue, preprocessor: TextPreprocessor, *, root: Path | None = None, progress: Progress | None = None
) -> TokenView:
    """Return the catalogue's captions as token ids, tokenising them the first time.

    Args:
        catalogue: whose captions.
        preprocessor: how.
        root: where views are kept; ``views`` in the prepared feed by default.
        progress: told after every chunk.
    """
    hashes = np.ascontiguousarray(catalogue.captions.hashes)
    folder = _view_folder(catalogue, root, "tokens", preprocessor.fingerprint, hashes)
    if not (folder / VIEW).is_file():
        values, lengths, truncated = [], [], 0
        for start, stop in _ranges(len(catalogue.captions), CAPTIONS_AT_ONCE):
            texts = preprocessor.encode([catalogue.captions[row] for row in range(start, stop)])
            values.append(texts.token_ids.values)
            lengths.append(texts.token_ids.lengths)
            truncated += texts.truncated
            if progress is not None:
                progress(stop, len(catalogue.captions))
        offsets = np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64)
        flat = np.concatenate([np.zeros(0, np.int32), *values]).astype(np.int32)
        with atomic_folder(folder) as partial:
            RaggedArray(flat, offsets).save(partial, "tokens")
            write_json(partial / VIEW, {"captions": len(offsets) - 1, "truncated": truncated})
    return TokenView(RaggedArray.load(folder, "tokens"), truncated=int(str(read_json(folder / VIEW)["truncated"])))


def pixel_view(
    catalogue: Catalogue,
    preprocessor: ImagePreprocessor,
    *,
    workers: int = 1,
    root: Path | None = None,
    progress: Progress | None = None,
) -> PixelView:
    """Return the catalogue's pictures at one size, resizing them the first time.

    Args:
        catalogue: whose pictures.
        preprocessor: how.
        workers: threads (Pillow resizes outside the interpreter's lock).
        root: where views are kept; ``views`` in the prepared feed by default.
        progress: told after every chunk.
    """
    pictures, side = catalogue.pictures, preprocessor.side
    folder = _view_folder(catalogue, root, "pixels", preprocessor.fingerprint, np.ascontiguousarray(pictures.hashes))
    ranges = list(_ranges(len(pictures), max(1, CHUNK_BYTES // (3 * side * side))))
    paths = [folder / f"pixels-{number:06d}.npy" for number in range(len(ranges))]
    if not (folder / VIEW).is_file():
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for path, (start, stop) in zip(paths, ranges, strict=True):
                if not path.is_file():
                    chunk = np.empty((stop - start, 3, side, side), np.uint8)
                    for place, pixels in enumerate(pool.map(lambda r: preprocessor(pictures[r]), range(start, stop))):
                        chunk[place] = pixels
                    write_array(path, chunk)
                if progress is not None:
                    progress(stop, len(pictures))
        write_json(folder / VIEW, {"pictures": len(pictures), "preprocessing": preprocessor.to_dict()})
    return PixelView(tuple(np.asarray(read_array(path), dtype=np.uint8) for path in paths), side)


def _view_folder(
    catalogue: Catalogue, root: Path | None, kind: str, fingerprint: str, hashes: npt.NDArray[np.uint8]
) -> Path:
    key = content_hash(kind, fingerprint, hashes.tobytes())
    return (root or catalogue.folder / "views") / f"{kind}-{key}"


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _read_vectors(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    if not path.is_file():
        raise FeedError("a Parquet file of vectors", got="no file", where=str(path))
    try:
        table = pq.read_table(path, columns=[columns.ITEM_ID, VECTOR])
    except (pa.ArrowInvalid, KeyError) as error:
        raise FeedError(f"columns {columns.ITEM_ID} and {VECTOR}", got=str(error)[:200], where=str(path)) from error
    ids = pd.Series(table[columns.ITEM_ID].to_pylist()).map(str)
    if ids.duplicated().any():
        raise FeedError("one vector an item", got=f"{ids[ids.duplicated()].iloc[0]!r} twice", where=str(path))
    rows = table[VECTOR].to_pylist()
    widths = {len(row) if row is not None else 0 for row in rows}
    if len(widths) != 1 or 0 in widths:
        raise FeedError("vectors of one width", got=f"widths {sorted(widths)}", where=str(path))
    return ids.tolist(), np.asarray(rows, dtype=np.float32)
