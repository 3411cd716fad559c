"""Find pictures and captions that are nearly, but not exactly, the same.

Pictures: 64-bit difference hash (horizontal brightness steps on a 9 x 8 grid) to find candidates, then the colours of
the same grid to confirm them, so that colour variants of one product stay apart.  Captions: 64-bit SimHash of
character 4-grams after folding case, accents' forms and punctuation (Charikar 2002).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from mmrec.feed.catalogue import Captions, Pictures

GRID_HEIGHT: Final = 8
GRID_WIDTH: Final = 9
NEAR_BITS: Final = 3
NEAR_LEVELS: Final = 3.0
"""Mean difference of two pictures' grid colours, in 1/255, up to which they count as one: halved and recompressed
product photos differ by 1.1 (99 %: 2.7), different products by 7.7 (1 %: 2.6)."""
RISE_LEVELS: Final = 8
"""Brightness step, in 1/255, that counts as a rise: less is noise of a plain background."""
NEIGHBOURS: Final = 128
CHUNK_BYTES: Final = 1 << 25
SHINGLE: Final = 4
NOT_WORD = re.compile(r"[\W_]+")

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Advance = Callable[[int], None]


def near_pictures(pictures: Pictures, advance: Advance) -> Pairs:
    """Return pairs of rows of near-duplicate pictures, shape (pairs, 2); ``advance`` hears of every chunk read."""
    grids = picture_grids(pictures, advance)

    def alike(left: Rows, right: Rows) -> Mask:
        difference = np.abs(grids[left].astype(np.int16) - grids[right]).mean(axis=(1, 2, 3))
        return np.asarray(difference <= NEAR_LEVELS)

    return near_pairs(difference_hash(grids), confirm=alike)


def near_captions(captions: Captions, advance: Advance) -> Pairs:
    """Return pairs of rows of near-duplicate captions, shape (pairs, 2)."""
    hashes = np.zeros(len(captions), dtype=np.uint64)
    for row in range(len(captions)):
        hashes[row] = sim_hash(fold(captions[row]))
        advance(1)
    return near_pairs(hashes)


def picture_grids(pictures: Pictures, advance: Advance) -> npt.NDArray[np.uint8]:
    """Return the mean colours of an 8 x 9 grid laid over every picture, shape (images, 8, 9, 3)."""
    grids = np.zeros((len(pictures), GRID_HEIGHT, GRID_WIDTH, 3), dtype=np.uint8)
    for rows in _same_shape(pictures):
        height, width = (int(side) for side in pictures.shapes[rows[0]])
        stack = np.stack([pictures[int(row)] for row in rows])
        columns = _block_sums(stack, GRID_WIDTH, axis=2)
        sums = _block_sums(columns, GRID_HEIGHT, axis=1)
        area = np.outer(_block_sizes(height, GRID_HEIGHT), _block_sizes(width, GRID_WIDTH))
        grids[rows] = sums // area[None, :, :, None]
        advance(len(rows))
    return grids


def difference_hash(grids: npt.NDArray[np.uint8]) -> Hashes:
    """Return whether brightness clearly rises from each cell to its right neighbour, 64 bits a picture."""
    brightness = grids @ np.array([299, 587, 114], dtype=np.int64)
    rises = brightness[:, :, 1:] - brightness[:, :, :-1] > RISE_LEVELS * 1000
    return _pack(rises.reshape(len(grids), GRID_HEIGHT * (GRID_WIDTH - 1)))


def fold(caption: str) -> str:
    """Return a caption in one form, without case and punctuation."""
    return NOT_WORD.sub(" ", unicodedata.normalize("NFKC", caption).casefold()).strip()


def sim_hash(text: str) -> int:
    """Return the 64-bit SimHash of a text's character 4-grams; texts with equal grams hash alike."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    codes = np.concatenate([codes, np.zeros(max(0, SHINGLE - len(codes)), dtype=np.uint64)])
    grams = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint64)
    for place in range(SHINGLE):
        grams = _mix(grams ^ codes[place : place + len(grams)])
    bits = np.unpackbits(grams.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    return int(_pack((bits.sum(axis=0, dtype=np.int64) * 2 > len(grams))[None])[0])


def near_pairs(hashes: Hashes, *, confirm: Callable[[Rows, Rows], Mask] | None = None) -> Pairs:
    """Return pairs of rows whose hashes differ in at most ``NEAR_BITS`` bits, each pair once, shape (pairs, 2).

    Two such hashes agree on one of four 16-bit bands, so they are neighbours when sorted by it; each is compared with
    the next ``NEIGHBOURS`` in four such orders.  Work and memory are bounded; in crowded bands some pairs are missed.
    ``confirm`` looks at the rows of candidate pairs and says which to keep.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(4):
        rotated = (hashes << np.uint64(16 * band)) | (hashes >> np.uint64((64 - 16 * band) % 64))
        order = np.argsort(rotated, kind="stable")
        for step in range(1, min(NEIGHBOURS, len(hashes) - 1) + 1):
            left, right = order[:-step], order[step:]
            near = count_bits(hashes[left] ^ hashes[right]) <= NEAR_BITS
            left, right = left[near], right[near]
            kept = confirm(left, right) if confirm is not None and len(left) else np.ones(len(left), dtype=np.bool_)
            found.append(np.stack([left[kept], right[kept]], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def count_bits(values: Hashes) -> npt.NDArray[np.int64]:
    """Return the number of set bits of every value."""
    bits = np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8), axis=1)
    return np.asarray(bits.sum(axis=1), dtype=np.int64)


def components(size: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return the smallest row that each of ``size`` rows is linked to through ``pairs``, shape (size,)."""
    labels = np.arange(size, dtype=np.int64)
    while len(pairs):
        smaller = np.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        linked = labels.copy()
        for side in (0, 1):
            np.minimum.at(linked, pairs[:, side], smaller)
            np.minimum.at(linked, labels[pairs[:, side]], smaller)
        linked = linked[linked]
        if np.array_equal(linked, labels):
            break
        labels = linked
    return labels


def _same_shape(pictures: Pictures) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of pictures of one shape, a bounded number of bytes at a time, in the order of the file."""
    shapes = np.asarray(pictures.shapes).astype(np.int64)
    order = np.lexsort((shapes[:, 1], shapes[:, 0]))
    borders = np.flatnonzero(np.any(np.diff(shapes[order], axis=0) != 0, axis=1)) + 1
    for rows in np.split(order, borders) if len(order) else []:
        height, width = shapes[rows[0]]
        step = max(1, CHUNK_BYTES // int(height * width * 3))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _block_starts(side: int, blocks: int) -> npt.NDArray[np.int64]:
    return np.arange(blocks, dtype=np.int64) * side // blocks


def _block_sizes(side: int, blocks: int) -> npt.NDArray[np.int64]:
    starts = _block_starts(side, blocks)
    return np.maximum(np.diff(np.append(starts, side)), 1)


def _block_sums(stack: npt.NDArray[np.integer], blocks: int, *, axis: int) -> npt.NDArray[np.int64]:
    """Sum blocks along an axis; a side shorter than ``blocks`` repeats its pixels (reduceat's rule for no width)."""
    return np.add.reduceat(stack, _block_starts(stack.shape[axis], blocks), axis=axis, dtype=np.int64)


def _mix(values: Hashes) -> Hashes:
    """Scramble 64-bit values (the finaliser of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _pack(bits: npt.NDArray[np.bool_]) -> Hashes:
    """Pack 64 booleans a row into one integer a row."""
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64).reshape(-1)
