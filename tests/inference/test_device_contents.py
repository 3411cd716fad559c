"""Contents that lie on the device are those that the reader would have sent, and train the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from mmrec.commands import train as command
from mmrec.contents import Content, ImageContent, StoredContent, TextContent, TokenStates, read_content
from mmrec.encoders.work import EncodingWork
from mmrec.feed.items import ItemReader, Modality, optional_links
from mmrec.inference.device_contents import DeviceContents, device_room, keep_on_device
from mmrec.inference.trunk_cache import TrunkCache, TrunkDtype
from mmrec.model.parts import without
from mmrec.preprocessing.views import PixelView, TokenView
from mmrec.run_folder import RunFolder
from mmrec.storage import RaggedArray
from mmrec.training.checkpoint import checkpoints
from tests.tiny_run import TinyEncoders, TinyFeed, tiny_config

CPU = torch.device("cpu")
ROWS = np.array([4, 0, 3, 3])


def ragged(dtype: type[np.generic], *shape: int) -> RaggedArray:
    generator = np.random.default_rng(0)
    lengths = np.array([2, 1, 3, 1, 4])
    values = generator.integers(1, 50, (lengths.sum(), *shape)).astype(dtype)
    return RaggedArray(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def trunk(dtype: TrunkDtype = "float16") -> TrunkCache:
    kinds: dict[TrunkDtype, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
    shards = (ragged(kinds[dtype], 3), ragged(kinds[dtype], 3))
    return TrunkCache(slots=np.array([7, 0, 9, 3, 2]), shards=shards, dtype=dtype)


def pictures() -> PixelView:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    return PixelView((pixels[:2], pixels[2:4], pixels[4:]), side=4)


SOURCES = {
    "tokens": TokenView(ragged(np.int32), truncated=0),
    "pixels": pictures(),
    **{f"states in {dtype}": trunk(dtype) for dtype in ("float32", "float16", "bfloat16")},
}


def same(left: Content, right: Content) -> bool:
    match left, right:
        case (TextContent(), TextContent()):
            return torch.equal(left.token_ids, right.token_ids) and torch.equal(left.lengths, right.lengths)
        case (ImageContent(), ImageContent()):
            return torch.equal(left.pixels, right.pixels)
        case (TokenStates(), TokenStates()):
            same_type = left.states.dtype == right.states.dtype
            return same_type and torch.equal(left.states, right.states) and torch.equal(left.lengths, right.lengths)
    return False


@pytest.mark.parametrize("name", SOURCES)
def test_stored_contents_are_those_of_the_source(name: str) -> None:
    source = SOURCES[name]
    stored = DeviceContents(source.whole(CPU)).gather(ROWS)
    assert len(stored) == len(ROWS)
    assert same(stored.read(), source.gather(ROWS))


def test_states_stay_as_narrow_as_on_disk_until_they_are_read() -> None:
    whole = trunk("bfloat16").whole(CPU)
    assert whole.states.dtype == torch.bfloat16
    assert whole.states.numel() * 2 == trunk("bfloat16").nbytes


def test_pixels_of_several_chunks_in_any_order() -> None:
    view, rows = pictures(), np.array([4, 1, 3, 2, 0, 1])
    everything = torch.from_numpy(np.concatenate(view.chunks))
    assert torch.equal(view.gather(rows).pixels, everything[torch.from_numpy(rows)])


def test_what_is_hidden_is_not_read() -> None:
    reader = ItemReader({"text": Modality(optional_links(np.arange(5)), DeviceContents(trunk().whole(CPU)))})
    part = reader.read(np.array([0, 2, 4])).parts["text"]
    left = without(part, torch.tensor([False, True, False]))
    assert left is not None
    assert isinstance(left.content, StoredContent)
    assert left.content.rows.tolist() == [0, 4]
    assert same(read_content(left.content), trunk().gather(np.array([0, 4])))


def reader() -> ItemReader:
    links = optional_links(np.arange(5))
    return ItemReader({"text": Modality(links, trunk()), "image": Modality(links, pictures())})


@dataclass
class Forgetful:
    """A user's own source, which knows nothing of its size."""

    def gather(self, rows: npt.NDArray[np.int64]) -> Content:
        return ImageContent(torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8))


def test_the_smallest_are_kept_first_as_far_as_they_fit() -> None:
    sizes = {"text": trunk().nbytes, "image": pictures().nbytes}
    assert sizes["text"] < sizes["image"]
    said: list[str] = []
    kept = keep_on_device(reader(), CPU, room=sizes["image"], notify=said.append)
    assert isinstance(kept.modalities["text"].source, DeviceContents)
    assert isinstance(kept.modalities["image"].source, PixelView)
    assert len(said) == 1
    assert said[0].startswith("kept on cpu: text")
    everything = keep_on_device(reader(), CPU, room=sum(sizes.values()))
    assert all(isinstance(modality.source, DeviceContents) for modality in everything.modalities.values())
    own = ItemReader({"image": Modality(optional_links(np.arange(5)), Forgetful())})
    assert isinstance(keep_on_device(own, CPU, room=10**9, notify=said.append).modalities["image"].source, Forgetful)
    assert len(said) == 1


def test_cache_hits_are_counted_on_the_device_too() -> None:
    work = EncodingWork()
    cache = trunk()
    cache.work = work
    kept = keep_on_device(ItemReader({"text": Modality(optional_links(np.arange(5)), cache)}), CPU, room=10**9)
    kept.read(np.array([0, 2, 4]))
    assert work.cache_hits == 3


def test_a_cpu_keeps_nothing() -> None:
    assert device_room(CPU, share=0.5) == 0


def test_training_with_kept_contents_is_the_same_to_the_bit(
    tiny_run: Path, tiny_feed: TinyFeed, tiny_encoders: TinyEncoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(command, "device_room", lambda device, *, share: 10**9)
    out = tmp_path / "kept"
    command.train_run(tiny_config(tiny_encoders), feed=tiny_feed.prepared, out=out, device="cpu", notify=said.append)
    assert any(sentence.startswith("kept on cpu: ") for sentence in said)
    sent, kept = (last_weights(run) for run in (tiny_run, out))
    assert sent.keys() == kept.keys()
    assert all(torch.equal(sent[name], kept[name]) for name in sent)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints(RunFolder(run).checkpoints)[-1]
    return load_file(newest / "model.safetensors")
