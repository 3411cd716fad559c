"""Captions to token ids, and a saved preprocessor that needs nothing but its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mmrec.errors import ArtifactError, ConfigError
from mmrec.preprocessing.text import TextPreprocessor
from tests.encoders.tiny_models import CLIP_SHAPE, VOCABULARY, open_clip_folder, wordpiece

ODD = ["", "   ", "🧣 красный", "null", "NA", "red " * 30_000, "مرحبا", "Red SILK scarfs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizers") / "wordpiece"
    wordpiece().save_pretrained(place)
    (place / "config.json").write_text("{}")
    return place


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{open_clip_folder(tmp_path_factory.mktemp('pairs') / 'pair', weights=False)}"


def ids(*words: str) -> list[int]:
    return [VOCABULARY.index(word) for word in words]


def test_ids_of_captions(folder: Path) -> None:
    encoded = TextPreprocessor.from_transformers(str(folder), max_tokens=6).encode(
        ["Red scarfs", "a jumper", "a soft wool dress with silk"]
    )
    assert encoded.token_ids.values.dtype == np.int32
    assert encoded.token_ids[0].tolist() == ids("[CLS]", "red", "scarf", "##s", "[SEP]")
    assert encoded.token_ids[1].tolist() == ids("[CLS]", "a", "jumper", "[SEP]")
    assert encoded.token_ids[2].tolist() == ids("[CLS]", "a", "soft", "wool", "dress", "[SEP]")
    assert encoded.truncated == 1


class TestWindows:
    CAPTION = "a soft wool dress with silk scarfs and a red jumper"

    def test_cut_between_tokens_each_with_its_own_special_ones(self, folder: Path) -> None:
        texts = [self.CAPTION, "red scarf", "a soft wool dress"]
        encoded = TextPreprocessor.from_transformers(str(folder), max_tokens=6, windows=3).encode(texts)
        assert encoded.token_ids[0].tolist() == [
            *ids("[CLS]", "a", "soft", "wool", "dress", "[SEP]"),
            *ids("[CLS]", "with", "silk", "scarf", "##s", "[SEP]"),
            *ids("[CLS]", "and", "a", "red", "jumper", "[SEP]"),
        ]
        assert encoded.token_ids[1].tolist() == ids("[CLS]", "red", "scarf", "[SEP]")
        assert encoded.token_ids[2].tolist() == ids("[CLS]", "a", "soft", "wool", "dress", "[SEP]"), "fits exactly"
        assert encoded.truncated == 0

    def test_what_is_longer_still_is_cut_and_counted(self, folder: Path) -> None:
        texts = [self.CAPTION, "a soft wool dress with", "red"]
        encoded = TextPreprocessor.from_transformers(str(folder), max_tokens=6, windows=2).encode(texts)
        assert encoded.token_ids.lengths.tolist() == [12, 6 + 3, 3]
        assert encoded.truncated == 1

    def test_a_tokenizer_that_cuts_on_the_left_is_read_from_the_beginning(self, tmp_path: Path) -> None:
        wordpiece().save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left"}))
        (tmp_path / "config.json").write_text("{}")
        one, two = (
            TextPreprocessor.from_transformers(str(tmp_path), max_tokens=6, windows=windows) for windows in (1, 2)
        )
        assert one.encode(["a soft wool dress with"]).token_ids[0].tolist()[1] == ids("soft")[0]
        assert two.encode(["a soft wool dress with"]).token_ids.values.tolist() == [
            *ids("[CLS]", "a", "soft", "wool", "dress", "[SEP]"),
            *ids("[CLS]", "with", "[SEP]"),
        ]

    def test_of_an_open_clip_tokenizer(self, pair: str) -> None:
        texts = ["wool " * 30, "a red scarf", ""]
        encoded = TextPreprocessor.from_open_clip(pair, context_length=16, windows=2).encode(texts)
        whole = TextPreprocessor.from_open_clip(pair, context_length=16).encode(texts)
        assert encoded.token_ids.lengths.tolist() == [32, 5, 2]
        assert encoded.truncated == 1
        assert encoded.token_ids[0].tolist() == 2 * whole.token_ids[0].tolist()
        assert encoded.token_ids[1].tolist() == whole.token_ids[1].tolist()

    def test_they_count_in_the_fingerprint_but_not_for_what_fits_one(self, folder: Path, tmp_path: Path) -> None:
        one, two = (
            TextPreprocessor.from_transformers(str(folder), max_tokens=6, windows=windows) for windows in (1, 2)
        )
        assert one.fingerprint == one.window_fingerprint == two.window_fingerprint != two.fingerprint
        two.save(tmp_path)
        loaded = TextPreprocessor.load(tmp_path)
        assert (loaded.windows, loaded.fingerprint) == (2, two.fingerprint)
        assert (
            loaded.encode([self.CAPTION]).token_ids.values.tolist()
            == two.encode([self.CAPTION]).token_ids.values.tolist()
        )


def test_equals_the_library(folder: Path) -> None:
    ours = TextPreprocessor.from_transformers(str(folder), max_tokens=12).encode(ODD)
    theirs = wordpiece()(ODD, truncation=True, max_length=12)["input_ids"]
    assert [row.tolist() for row in (ours.token_ids[i] for i in range(len(ODD)))] == theirs
    assert ours.truncated == 1


def test_no_captions() -> None:
    class Words:
        def encode(self, texts: list[str]) -> tuple[list[list[int]], int]:
            raise AssertionError

        def describe(self) -> dict[str, object]:
            return {}

        def vocabulary(self) -> str:
            return ""

    assert len(TextPreprocessor(Words(), max_tokens=8).encode([]).token_ids) == 0


def test_a_caption_without_tokens_gets_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    encoded = TextPreprocessor.from_transformers(str(tmp_path), max_tokens=4).encode(["", "word"])
    assert encoded.token_ids.lengths.tolist() == [1, 1]
    assert encoded.token_ids.values.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_saved_and_loaded_is_the_same(folder: Path, pair: str, tmp_path: Path, kind: str) -> None:
    if kind == "transformers":
        original = TextPreprocessor.from_transformers(str(folder), max_tokens=9)
    else:
        original = TextPreprocessor.from_open_clip(pair, context_length=16)
    original.save(tmp_path)
    loaded = TextPreprocessor.load(tmp_path)
    assert loaded.fingerprint == original.fingerprint
    assert loaded.max_tokens == original.max_tokens
    first, second = original.encode(ODD), loaded.encode(ODD)
    assert first.token_ids.values.tolist() == second.token_ids.values.tolist()
    assert first.token_ids.offsets.tolist() == second.token_ids.offsets.tolist()
    assert first.truncated == second.truncated == 1


def test_use_does_not_change_the_fingerprint_but_settings_do(folder: Path, tmp_path: Path) -> None:
    first = TextPreprocessor.from_transformers(str(folder), max_tokens=9)
    first.encode(["red scarf"])
    assert first.fingerprint == TextPreprocessor.from_transformers(str(folder), max_tokens=9).fingerprint
    assert first.fingerprint != TextPreprocessor.from_transformers(str(folder), max_tokens=10).fingerprint
    text = (folder / "tokenizer.json").read_text().replace('"scarf"', '"scarv"')
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "tokenizer.json").write_text(text)
    assert first.fingerprint != TextPreprocessor.from_transformers(str(tmp_path), max_tokens=9).fingerprint


def test_open_clip_keeps_real_tokens_only(pair: str) -> None:
    import open_clip

    texts = ["a red scarf", "wool " * 40]
    encoded = TextPreprocessor.from_open_clip(pair, context_length=16).encode(texts)
    padded = open_clip.get_tokenizer(pair)(texts)
    for row, expected in enumerate(padded):
        real = expected[: int((expected != 0).sum())]
        assert torch.equal(torch.from_numpy(encoded.token_ids[row]).long(), real)
    assert encoded.token_ids.lengths.tolist() == [5, 16]
    assert encoded.truncated == 1


def test_open_clip_with_a_tokenizer_of_transformers_that_reads_padding(tmp_path: Path) -> None:
    import open_clip

    text = CLIP_SHAPE["text_cfg"] | {"no_causal_mask": True, "hf_tokenizer_name": "anything", "vocab_size": 30}
    place = open_clip_folder(tmp_path / "pair", weights=False, text_cfg=text)
    wordpiece().save_pretrained(place)
    (place / "config.json").write_text('{"model_type": "bert"}')
    source = f"local-dir:{place}"
    preprocessor = TextPreprocessor.from_open_clip(source, context_length=16, reads_padding=True)
    texts = ["red   scarf &amp; dress", "wool"]
    encoded = preprocessor.encode(texts)
    assert encoded.token_ids.lengths.tolist() == [16, 16]
    expected = open_clip.get_tokenizer(source)(texts)
    assert torch.equal(torch.from_numpy(encoded.token_ids.values).long().view(2, 16), expected)
    preprocessor.save(tmp_path / "saved")
    again = TextPreprocessor.load(tmp_path / "saved").encode(texts)
    assert again.token_ids.values.tolist() == encoded.token_ids.values.tolist()


def test_damaged_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        TextPreprocessor.load(tmp_path)
    TextPreprocessor.from_transformers(str(folder), max_tokens=9).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="a saved tokenizer"):
        TextPreprocessor.load(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="a tokenizer"):
        TextPreprocessor.from_transformers(str(tmp_path), max_tokens=8)
