"""``mmrec export`` of a feed whose trunks have no cache yet, against the networks alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from benchmarks.encode import Networks, least
from benchmarks.made_run import TINY, MadeRun, RunShape, make_run
from benchmarks.measure import Row
from mmrec.commands.export import export_run
from mmrec.contents import Content, ImageContent, TextContent
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.inference.live_trunk import LiveTrunk
from mmrec.inference.recommender import Recommender

SHAPES = {
    "small": TINY,
    "cpu": RunShape(3_000, 300, 8, 20, 24.0, (384, 6, 12), "tf_efficientnet_lite0", 128, 128),
    "gpu": RunShape(20_000, 300, 8, 20, 24.0, (768, 12, 12), "vit_base_patch32_224", 224, 256),
}
"""Encoders of random weights, frozen: those of the README's first configuration; BERT-base and ViT-B/32."""


@dataclass(frozen=True)
class Exporting:
    """An export as the command makes it: in float32, without an index and without users.

    Args:
        made: the run, and the feed it is exported for.
        out: folder of vectors.
        device: where to compute.
    """

    made: MadeRun
    out: Path
    device: str

    def forget(self) -> None:
        """Delete the export, and whatever else was encoded: trunk states beside the feed, vectors beside the run."""
        for folder in (self.out, self.made.feed / "trunks", self.made.run / "embeddings"):
            shutil.rmtree(folder, ignore_errors=True)

    def run(self) -> None:
        """Load the run, encode every post, write the vectors."""
        found = export_run(self.made.run, out=self.out, users=False, device=self.device)
        assert found["items encoded"] == self.made.shape.items, found

    def networks(self) -> Networks:
        """Return the networks alone, over each distinct caption and picture of the feed."""
        self.forget()
        assembly = Recommender.load(self.made.run, device=self.device, fill_caches=False).assembly
        contents: dict[str, Content] = {}
        for name, modality in assembly.reader.modalities.items():
            raw = cast("LiveTrunk", modality.source).source
            assert raw is not None
            contents[name] = cast("Content", raw.gather(np.unique(modality.links.values).astype(np.int64)))
        encoders = {name: built.module for name, built in assembly.encoders.items()}
        return Networks.make(
            cast("TextEncoder", encoders["text"]),
            cast("TextContent", contents["text"]),
            cast("ImageEncoder", encoders["image"]),
            cast("ImageContent", contents["image"]),
            device=self.device,
        )


def export(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Time whole exports, each to a fresh folder and with no trunk cached, over the networks alone."""
    shape = SHAPES[size]
    with TemporaryDirectory() as folder:
        exporting = Exporting(make_run(Path(folder), shape, device=device), Path(folder) / "vectors", device)
        speed, details = exporting.networks().speed(
            exporting.run, rounds=rounds, device=device, before=exporting.forget
        )
    yield Row(
        "export",
        "posts a second of the whole command, trunk cache written and no index, over those of the networks alone, "
        f"{shape.items:,} captions and {shape.side} px pictures",
        speed,
        target=least(size, device),
        details=details,
    )
