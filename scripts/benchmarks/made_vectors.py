"""An export of any size whose vectors a trained model gave: new captions in the topics it was trained on.

Vectors of noise would be unlike any catalogue.  A small caption model is trained on clicks that keep to topics, and
then encodes as many new captions as are wanted.  Its vectors crowd by topic and, within one, by shared words, and end in
a bias, as those of a larger model do; there are fewer words and fewer topics than in a real catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.made_captions import item_id
from benchmarks.made_run import MadeRun, RunShape, make_run
from mmrec.batch import ItemBatch, Parts
from mmrec.commands.export import export_run
from mmrec.inference.encoding import evaluating
from mmrec.inference.export import MANIFEST, write_vectors
from mmrec.inference.post_contents import text_content
from mmrec.inference.recommender import Recommender
from mmrec.inference.vector_format import VectorFormat, WrittenVectors
from mmrec.storage import file_hash, read_json, write_json

ENCODED_AT_ONCE = 8_192
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MadeExport:
    """What was made.

    Args:
        folder: the export.
        recommender: the model behind it.
        vectors: shape (items, width).
        topics: shape (items,).
        language: of the captions.
    """

    folder: Path
    recommender: Recommender
    vectors: Vectors
    topics: npt.NDArray[np.int64]
    made: MadeRun

    def questions(self, count: int) -> Vectors:
        """Return questions as ``mmrec search`` puts them: half of them captions, half users, shape (count, width)."""
        generator = np.random.default_rng(3)
        topics = generator.integers(0, self.made.shape.topics, count // 2)
        words = embed_captions(self.recommender, self.made.language.captions(topics, generator))
        words[:, -1] = 0
        users = generator.integers(0, self.made.shape.users, count - len(words))
        scoring, items = self.recommender.scoring, self.recommender.catalogue_tensor
        asking = np.asarray(scoring.feed_user_vectors(users, items).mean(dim=1).numpy())
        asking /= np.linalg.norm(asking[:, :-1], axis=1, keepdims=True)
        return np.concatenate([words, asking])


def make_export(folder: Path, shape: RunShape, items: int, *, device: str) -> MadeExport:
    """Train a model of captions, and export ``items`` new posts of it; the seed is fixed."""
    made = make_run(folder, shape, device=device)
    export_run(made.run, out=folder / "export", users=False, device=device)
    recommender = Recommender.load(made.run, device=device)
    generator = np.random.default_rng(4)
    topics = generator.integers(0, shape.topics, items)
    captions = made.language.captions(topics, generator)
    vectors = embed_captions(recommender, captions)
    path = folder / "export" / "items.parquet"
    extra: dict[str, Sequence[object]] = {
        "caption": captions,
        "topic": [f"t{topic}" for topic in topics],
        "price": generator.integers(0, 1000, items).tolist(),
    }
    ids = [item_id(row) for row in range(items)]
    write_vectors(path, ids, WrittenVectors(vectors, VectorFormat()), id_column="item_id", extra=extra)
    manifest = read_json(folder / "export" / MANIFEST) | {"items": items, "files": {path.name: file_hash(path)}}
    write_json(folder / "export" / MANIFEST, manifest)
    return MadeExport(folder / "export", recommender, vectors, topics, made)


def embed_captions(recommender: Recommender, captions: Sequence[str]) -> Vectors:
    """Return score-ready vectors of posts that are a caption alone; none is looked up or kept."""
    model, words = recommender.assembly.model, recommender.assembly.words
    assert words is not None
    found = np.empty((len(captions), model.width), np.float32)
    with evaluating(model):
        for start in range(0, len(captions), ENCODED_AT_ONCE):
            part = captions[start : start + ENCODED_AT_ONCE]
            place = torch.arange(len(part))
            batch = ItemBatch(torch.full((len(part),), -1), {"text": Parts(text_content(words, part), place, place)})
            found[start : start + len(part)] = model.encode_items(batch.to(recommender.device)).float().cpu().numpy()
    return found
