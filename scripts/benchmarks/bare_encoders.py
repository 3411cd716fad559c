"""The floor of encoding: networks run forward on tensors that lie ready, in the batches that suit them best."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.measure import wait
from mmrec.contents import ImageContent, TextContent
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder

CAPTIONS_AT_ONCE = {"cpu": (16, 32, 64, 128), "cuda": (128, 512, 2048)}
PICTURES_AT_ONCE = {"cpu": (8, 16, 32, 64), "cuda": (64, 256, 512)}
TRIED = 256
"""Contents that the size of a batch is chosen on."""
Run = Callable[[], None]
Batch = TypeVar("Batch")
Way = TypeVar("Way")


def bare_text(encoder: TextEncoder, captions: TextContent, *, device: str) -> Run:
    """Return what runs captions sorted by length, padded to the longest of a batch, and keeps nothing."""
    model, lengths = encoder.model, captions.lengths.numpy()
    ends = np.cumsum(lengths)
    order = np.argsort(-lengths, kind="stable")

    def batches(rows: npt.NDArray[np.int64], count: int) -> list[tuple[Tensor, Tensor | None]]:
        found: list[tuple[Tensor, Tensor | None]] = []
        for part in _parts(rows, count):
            width = int(lengths[part].max())
            valid = np.arange(width) < lengths[part, None]
            index = np.where(valid, (ends - lengths)[part, None] + np.arange(width), 0)
            mask = None if valid.all() else torch.from_numpy(valid).long().to(device)
            found.append((captions.token_ids[torch.from_numpy(index)].long().to(device), mask))
        return found

    def run(ready: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        with torch.inference_mode():
            for ids, mask in ready:
                model(input_ids=ids, attention_mask=mask)

    return _fastest(order, batches, run, CAPTIONS_AT_ONCE[_kind(device)], device=device)


def bare_image(encoder: ImageEncoder, pictures: ImageContent, *, device: str, network: nn.Module | None = None) -> Run:
    """Return what runs pictures, already floating-point and normalised, and keeps nothing; channels lie as is fastest.

    Args:
        encoder: how pictures are normalised, and the network.
        pictures: what to run.
        device: where.
        network: takes the place of the encoder's.
    """
    features = cast("Callable[[Tensor], Tensor]", (network or encoder.model).forward_features)
    mean, std = encoder.mean.cpu(), encoder.std.cpu()

    def batches(rows: npt.NDArray[np.int64], way: tuple[int, torch.memory_format]) -> list[Tensor]:
        count, layout = way
        return [
            ((pictures.pixels[torch.from_numpy(part)].float() / 255 - mean) / std).to(device, memory_format=layout)
            for part in _parts(rows, count)
        ]

    def run(ready: Iterable[Tensor]) -> None:
        with torch.inference_mode():
            for pixels in ready:
                features(pixels)

    ways = list(itertools.product(PICTURES_AT_ONCE[_kind(device)], (torch.contiguous_format, torch.channels_last)))
    return _fastest(np.arange(len(pictures)), batches, run, ways, device=device)


def _fastest(
    rows: npt.NDArray[np.int64],
    batches: Callable[[npt.NDArray[np.int64], Way], list[Batch]],
    run: Callable[[Iterable[Batch]], None],
    ways: Sequence[Way],
    *,
    device: str,
) -> Run:
    """Try several ways to make batches, such as their size, on an even sample; return the run of all rows in the best."""
    sample = rows[:: max(1, len(rows) // TRIED)]
    seconds: list[float] = []
    for way in [ways[0], *ways]:  # the first warms up
        ready = batches(sample, way)
        wait(device)
        start = time.perf_counter()
        run(ready)
        wait(device)
        seconds.append(time.perf_counter() - start)
    everything = batches(rows, ways[int(np.argmin(seconds[1:]))])
    return lambda: run(everything)


def _parts(rows: npt.NDArray[np.int64], count: int) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def _kind(device: str) -> str:
    return "cuda" if device.startswith("cuda") else "cpu"
