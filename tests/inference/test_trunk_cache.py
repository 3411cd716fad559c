"""Frozen blocks run once per distinct content, and a cached run cannot be told from a live one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mmrec.contents import Content, ImageContent, TextContent, TokenStates
from mmrec.encoders.base import ContentEncoder, mean_tokens
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.encoders.work import EncodingWork
from mmrec.errors import ArtifactError
from mmrec.feed.items import ContentSource
from mmrec.inference import trunk_cache
from mmrec.inference.trunk_cache import CacheEstimate, TrunkCache, build_trunk_cache, round_states
from mmrec.storage import RaggedArray
from tests.encoders.tiny_models import VOCABULARY, bert, vit
from tests.products import most_that_differ, rows_keep_their_bits

HALF = (0.5, 0.5, 0.5)


@dataclass
class Texts:
    """Captions of 1 to 17 random tokens; remembers what was asked for."""

    count: int
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 18, self.count)
        ids = generator.integers(5, len(VOCABULARY), lengths.sum()).astype(np.int32)
        self.ragged = RaggedArray(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def gather(self, rows: npt.NDArray[np.int64]) -> Content:
        self.asked += rows.tolist()
        part = self.ragged.gather(rows)
        return TextContent(torch.from_numpy(part.values), torch.from_numpy(part.lengths))


@dataclass
class Pictures:
    count: int

    def __post_init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (self.count, 3, 32, 32)).astype(np.uint8)

    def gather(self, rows: npt.NDArray[np.int64]) -> Content:
        return ImageContent(torch.from_numpy(self.pixels[rows]))


def watched(encoder: ContentEncoder) -> list[int]:
    """Return a list that gains the number of contents whenever the trunk runs."""
    seen: list[int] = []
    trunk = encoder.trunk

    def counting(content: Content) -> TokenStates:
        seen.append(len(content))
        return trunk(content)

    encoder.trunk = counting  # type: ignore[method-assign]
    return seen


def hashes(count: int, *, first: int = 0) -> npt.NDArray[np.uint8]:
    """Distinct hashes, not in ascending order."""
    values = (np.arange(first, first + count, dtype=np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([values, values[::-1] * 0 + 7], axis=1).view(np.uint8).reshape(count, 16)


def text(cut: int = 2) -> ContentEncoder:
    return TextEncoder(TransformersStack(bert()), trunk_blocks=cut).eval()


def image(cut: int = 2) -> ContentEncoder:
    return ImageEncoder(TimmStack(vit(), side=32), trunk_blocks=cut, mean=HALF, std=HALF, token_grid=2).eval()


def build(encoder: ContentEncoder, source: ContentSource, folder: Path, **changes: object) -> TrunkCache:
    settings = {"preprocessing_fingerprint": "p", "batch_size": 7} | changes
    count = settings.pop("count", source.count)  # type: ignore[attr-defined]
    return build_trunk_cache(encoder, source, hashes(count), folder, **settings)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_cache, "SHARD_BYTES", 4_000)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("cut", [1, 3])
def test_cached_equals_live_whatever_the_batch(tmp_path: Path, dtype: str, modality: str, cut: int) -> None:
    encoder, source = (text(cut), Texts(40)) if modality == "text" else (image(cut), Pictures(23))
    cache = build(encoder, source, tmp_path, dtype=dtype)
    assert isinstance(cache, ContentSource)
    assert len(cache.shards) > 1
    rows = np.random.default_rng(1).permutation(source.count)
    cached = cache.gather(rows)
    assert cached.states.dtype == torch.float32
    # Where states differ in the last bit, some are rounded to the next number of the format.
    near = 1e-5 if rows_keep_their_bits() or dtype == "float32" else 3e-3
    with torch.no_grad():
        for place, row in enumerate(rows[:9]):
            live = round_states(encoder.trunk(source.gather(np.array([row]))), dtype)
            kept = cached.states.split(cached.lengths.tolist())[place]
            different = float((live.states != kept).float().mean())
            assert different < most_that_differ(2e-3, rounded=1.0 if dtype == "float32" else 2e-2)
            torch.testing.assert_close(live.states, kept, rtol=1e-2 if dtype == "bfloat16" else 2e-3, atol=1e-4)
            ours = mean_tokens(encoder(cache.gather(np.array([row]))))
            torch.testing.assert_close(ours, mean_tokens(encoder(live)), rtol=near, atol=near)
        together = mean_tokens(encoder(cached))
        everything = mean_tokens(encoder(round_states(encoder.trunk(source.gather(rows)), dtype)))
        torch.testing.assert_close(together, everything, rtol=near, atol=near)


@pytest.mark.parametrize(("dtype", "kept_bits"), [("float16", 10), ("bfloat16", 7)])
def test_rounding_keeps_the_bits_of_the_format(dtype: str, kept_bits: int) -> None:
    exact, between = 1 + 2.0**-kept_bits, 1 + 2.0 ** -(kept_bits + 2)
    rounded = round_states(TokenStates(torch.tensor([[exact, between]]), torch.tensor([1])), dtype)
    assert rounded.states.tolist() == [[exact, 1.0]]
    assert rounded.states.dtype == torch.float32


def test_what_float16_cannot_hold_names_the_way_out(tmp_path: Path) -> None:
    large = TokenStates(torch.tensor([[1.0, 70_000.0]]), torch.tensor([1]))
    with pytest.raises(ArtifactError, match="trunk_dtype=bfloat16"):
        round_states(large, "float16")
    assert round_states(large, "bfloat16").states[0, 1] == pytest.approx(70_000, rel=0.01)
    encoder = text(1)
    with torch.no_grad():
        encoder.model.encoder.layer[0].output.LayerNorm.bias.fill_(1e5)  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match="trunk_dtype=bfloat16"):
        build(encoder, Texts(3), tmp_path)


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    encoder, source = text(), Texts(30)
    contents = watched(encoder)
    first = build(encoder, source, tmp_path)
    assert first.encoded == 30
    # One more: the probe whose size is told beforehand.
    assert sum(contents) == 31
    second = build(encoder, source, tmp_path)
    assert second.encoded == 0
    assert sum(contents) == 31
    rows = np.arange(30)
    assert torch.equal(first.gather(rows).states, second.gather(rows).states)
    assert (first.work.cache_hits, second.work.cache_hits) == (30, 30)


def test_hits_are_counted_beside_what_the_encoder_runs(tmp_path: Path) -> None:
    work = EncodingWork()
    cache = build(text(), Texts(30), tmp_path, work=work)
    cache.gather(np.array([3, 4]))
    cache.gather(np.array([4, 0, 1]))
    assert work == EncodingWork(cache_hits=5)


def test_a_catalogue_that_grew_is_encoded_where_it_is_new(tmp_path: Path) -> None:
    encoder, source = text(), Texts(30)
    build(encoder, source, tmp_path, count=20)
    grown = build(encoder, source, tmp_path)
    assert grown.encoded == 10
    fresh = build(encoder, source, tmp_path / "elsewhere")
    assert torch.equal(grown.gather(np.arange(30)).states, fresh.gather(np.arange(30)).states)


def test_contents_are_found_by_hash_wherever_they_moved(tmp_path: Path) -> None:
    encoder, source = text(), Texts(12)
    before = build(encoder, source, tmp_path)
    order = np.arange(12)[::-1].copy()
    moved = build_trunk_cache(encoder, source, hashes(12)[order], tmp_path, preprocessing_fingerprint="p")
    assert moved.encoded == 0
    assert torch.equal(moved.gather(np.arange(12)).states, before.gather(order).states)


def test_one_hash_is_encoded_once(tmp_path: Path) -> None:
    same = np.concatenate([hashes(4), hashes(4)])
    cache = build_trunk_cache(text(), Texts(8), same, tmp_path, preprocessing_fingerprint="p")
    assert (cache.encoded, len(cache)) == (4, 8)
    assert torch.equal(cache.gather(np.arange(4)).states, cache.gather(np.arange(4, 8)).states)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    encoder, source = text(), Texts(60)
    contents = watched(encoder)

    def stop(done: int, total: int) -> None:
        assert total == 60
        if done >= 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(encoder, source, tmp_path, progress=stop)
    contents.clear()
    cache = build(encoder, source, tmp_path)
    assert 0 < cache.encoded <= 35
    assert sum(contents) == cache.encoded + 1
    whole = build(text(), source, tmp_path / "elsewhere")
    assert torch.equal(cache.gather(np.arange(60)).states, whole.gather(np.arange(60)).states)


def test_half_written_shards_are_not_read(tmp_path: Path) -> None:
    build(text(), Texts(5), tmp_path)
    (place,) = tmp_path.iterdir()
    (place / "shard-ff.partial-1").mkdir()
    (place / "shard-ff.old-1").mkdir()
    assert build(text(), Texts(5), tmp_path).encoded == 0


@pytest.mark.parametrize("change", ["weights", "cut", "preprocessing", "dtype"])
def test_anything_that_changes_the_states_makes_another_cache(tmp_path: Path, change: str) -> None:
    build(text(2), Texts(5), tmp_path)
    encoder, settings = text(3 if change == "cut" else 2), {}
    if change == "weights":
        with torch.no_grad():
            encoder.model.embeddings.word_embeddings.weight[7, 0] += 1e-3  # type: ignore[attr-defined]
    elif change == "preprocessing":
        settings = {"preprocessing_fingerprint": "q"}
    elif change == "dtype":
        settings = {"dtype": "float32"}
    assert build(encoder, Texts(5), tmp_path, **settings).encoded == 5


def test_the_size_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source, told = Texts(30), []

    def notify(estimate: CacheEstimate) -> None:
        assert not any(tmp_path.iterdir())
        told.append(estimate)

    cache = build(text(), source, tmp_path, notify=notify)
    # Tokens x 32 dimensions x 2 bytes.
    assert told == [CacheEstimate(30, 30, len(source.ragged.values) * 32 * 2)]
    assert sum(shard.values.nbytes for shard in cache.shards) == told[0].new_bytes
    assert str(told[0]).startswith("30 of 30 contents to encode")
    build(text(), source, tmp_path, notify=lambda estimate: told.append(estimate))
    assert told[1] == CacheEstimate(30, 0, 0)
    assert str(told[1]) == "all 30 contents are cached"


def test_pictures_are_counted_by_their_patches(tmp_path: Path) -> None:
    told: list[CacheEstimate] = []
    build(image(3), Pictures(10), tmp_path, notify=told.append)
    # A class token and a grid of 2 x 2.
    assert told == [CacheEstimate(10, 10, 10 * 5 * 32 * 2)]


def test_a_full_disk_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_cache.shutil, "disk_usage", lambda _: trunk_cache.shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(ArtifactError, match="trunk_cache=false"):
        build(text(), Texts(30), tmp_path)


def test_the_empty_catalogue(tmp_path: Path) -> None:
    cache = build_trunk_cache(text(), Texts(1), hashes(0), tmp_path, preprocessing_fingerprint="p")
    assert len(cache) == 0
