"""Long captions in windows, through the caches of a feed: what fits is neither encoded again nor changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmrec.assembly import assemble
from mmrec.config import validate
from mmrec.feed.ids import Ids
from mmrec.inference.encoding import encode_catalogue
from tests.attribute_run import attribute_config
from tests.feeds import write_feed
from tests.tiny_run import TinyEncoders


def test_windows_of_long_captions_are_encoded_beside_what_is_cached(
    tiny_encoders: TinyEncoders, tmp_path: Path
) -> None:
    """Of three captions two are longer than six tokens; only these are encoded when windows come, once for each number."""
    feed = write_feed(
        tmp_path / "feed",
        interactions=[(f"u{user}", f"i{(user + step) % 3}", step) for user in range(4) for step in range(3)],
        captions={
            "i0": "a red scarf",
            "i1": "a soft wool dress with",
            "i2": "a soft wool dress with silk scarfs and red",
        },
        unit="order",
    )
    notices: dict[int, list[str]] = {}
    states = {}
    for windows in (1, 2, 3, 4):
        values = attribute_config(tiny_encoders, max_tokens=6, windows=windows).model_dump(mode="json")
        del values["encoders"]["attributes"]
        config = validate(values, where="test")
        notices[windows] = []
        ids = Ids(np.array(["i0", "i1", "i2"], dtype=object), np.ones(3, dtype=np.int64), np.zeros(3, dtype=np.float32))
        assembly = assemble(config, feed, ids, device=torch.device("cpu"), notify=notices[windows].append)
        content = assembly.reader.modalities["text"].source.gather(np.arange(3))
        states[windows] = content.states.split(content.lengths.tolist())
        vectors = encode_catalogue(assembly.model, assembly.reader, np.arange(3), device=assembly.device)
        assert vectors.isfinite().all()
    assert [[len(part) for part in states[windows]] for windows in (1, 2, 3)] == [[5, 6, 6], [5, 9, 12], [5, 9, 16]]
    for windows in (2, 3, 4):
        assert torch.equal(states[windows][0], states[1][0])
        assert torch.equal(states[windows][1], states[2][1])
        assert torch.equal(states[windows][1][:6], states[1][1])
    cut, cached = "captions are longer than", "all 3 contents are cached"
    assert [[line.split(",")[0] for line in notices[windows]] for windows in notices] == [
        ["text: 2 of 3 captions are longer than 6 tokens and are cut", "text trunk: 3 of 3 contents to encode"],
        [f"text: 1 of 3 {cut} 2 windows of 6 tokens and are cut", "text trunk: 2 of 3 contents to encode"],
        ["text trunk: 1 of 3 contents to encode"],
        [f"text trunk: {cached}"],
    ]
