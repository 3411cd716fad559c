"""Captions to token ids; a saved preprocessor needs neither a hub nor the library its tokenizer came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from mmrec.encoders.weights import resolve_model, unusable_model
from mmrec.errors import ArtifactError, ConfigError
from mmrec.storage import RaggedArray, atomic_file, content_hash, read_json, write_json

SETTINGS = "text_preprocessing.json"
TOKENIZER = "tokenizer.json"
WINDOWS = "windows"
WHERE = "encoders.text.model"


@dataclass(frozen=True)
class TokenisedTexts:
    """Token ids of captions.

    Args:
        token_ids: one row a caption, int32, special tokens included; no row is empty.  Of several windows all but the last
            are as long as the limit.
        truncated: how many captions were cut.
    """

    token_ids: RaggedArray
    truncated: int


@runtime_checkable
class _Words(Protocol):
    """A tokenizer with its limit already set."""

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of each text, and how many texts were cut."""
        ...

    def describe(self) -> dict[str, object]:
        """Return everything that decides the ids, but for the vocabulary."""
        ...

    def vocabulary(self) -> str:
        """Return the vocabulary and its rules as text."""
        ...


class TextPreprocessor:
    """Turns captions into token ids; one object for training, scoring and export.

    Args:
        words: the tokenizer.
        max_tokens: longest caption, special tokens included.
        windows: a longer one becomes so many windows of that length at most, each with special tokens of its own, end to
            end; what is longer still is cut and counted.
    """

    def __init__(self, words: _Words, *, max_tokens: int, windows: int = 1) -> None:
        self.max_tokens, self.windows = max_tokens, windows
        self._words = words

    @classmethod
    def from_transformers(cls, name: str, *, max_tokens: int, windows: int = 1) -> TextPreprocessor:
        """Take the tokenizer of a transformers model: hub name, folder or ``package:IMPORT_NAME``.

        Raises:
            ConfigError: there is none, or only one without a fast implementation.
        """
        from transformers import AutoTokenizer

        source = resolve_model(name, where=WHERE)
        try:
            loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise unusable_model("a tokenizer", name, error, where=WHERE) from error
        words = _FileTokenizer.of(loaded, name=name, max_tokens=max_tokens, windows=windows)
        return cls(words, max_tokens=max_tokens, windows=windows)

    @classmethod
    def from_open_clip(
        cls, source: str, *, context_length: int, reads_padding: bool = False, windows: int = 1
    ) -> TextPreprocessor:
        """Take the tokenizer of an open_clip pair.

        Args:
            source: ``OpenClipPair.source``.
            context_length: ``OpenClipPair.context_length``.
            reads_padding: ``OpenClipPair.reads_padding``; then every window is padded to the context length, and the
                padding counts as text.
            windows: windows of a long caption, at most.

        Raises:
            ConfigError: there is no such tokenizer.
        """
        import open_clip

        try:
            loaded = open_clip.get_tokenizer(source)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise unusable_model("an open_clip tokenizer", source, error, where=WHERE) from error
        if isinstance(loaded, open_clip.tokenizer.SimpleTokenizer):
            config = open_clip.get_model_config(source) or {}
            clean = str(config.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("clean", "lower"))
            bpe = _OpenClipBpe(max_tokens=context_length, windows=windows, clean=clean)
            return cls(bpe, max_tokens=context_length, windows=windows)
        words = _FileTokenizer.of(
            loaded.tokenizer,
            name=source,
            max_tokens=context_length,
            windows=windows,
            clean=loaded.clean_fn.__name__.removeprefix("_clean_"),
            pad_to_limit=reads_padding,
        )
        return cls(words, max_tokens=context_length, windows=windows)

    def encode(self, texts: Sequence[str]) -> TokenisedTexts:
        """Return the token ids of captions, in their order."""
        rows, truncated = self._words.encode(texts) if texts else ([], 0)
        offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
        values = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=int(offsets[-1]))
        return TokenisedTexts(RaggedArray(values, offsets), truncated)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary, the rules and the limits."""
        return content_hash(json.dumps(self._settings(), sort_keys=True), self._words.vocabulary())

    @cached_property
    def window_fingerprint(self) -> str:
        """Hash of all that decides the ids of a caption that fits one window, the number of windows left out."""
        settings = {name: value for name, value in self._settings().items() if name != WINDOWS}
        return content_hash(json.dumps(settings, sort_keys=True), self._words.vocabulary())

    def save(self, folder: Path) -> None:
        """Write everything :meth:`load` needs."""
        with atomic_file(folder / TOKENIZER) as partial:
            partial.write_text(self._words.vocabulary(), encoding="utf-8")
        write_json(folder / SETTINGS, self._settings())

    @classmethod
    def load(cls, folder: Path) -> TextPreprocessor:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        settings = read_json(folder / SETTINGS)
        try:
            max_tokens, kind = cast("int", settings["max_tokens"]), settings["kind"]
            windows = cast("int", settings.get(WINDOWS, 1))
            if kind == "open_clip_bpe":
                bpe = _OpenClipBpe(max_tokens=max_tokens, windows=windows, clean=cast("str", settings["clean"]))
                if bpe.vocabulary() != (folder / TOKENIZER).read_text(encoding="utf-8"):
                    raise ValueError("open_clip now has another vocabulary")
                return cls(bpe, max_tokens=max_tokens, windows=windows)
            words = _FileTokenizer(
                Tokenizer.from_file(str(folder / TOKENIZER)),
                max_tokens=max_tokens,
                windows=windows,
                truncation_side=cast("str", settings["truncation_side"]),
                clean=cast("str | None", settings["clean"]),
                filler=cast("int", settings["filler"]),
                pad_to_limit=cast("bool", settings["pad_to_limit"]),
            )
        except Exception as error:  # tokenizers raises bare Exception for damaged files
            raise ArtifactError(
                "a saved tokenizer", got=f"{type(error).__name__}: {error}", where=str(folder)
            ) from error
        return cls(words, max_tokens=max_tokens, windows=windows)

    def _settings(self) -> dict[str, object]:
        several = {WINDOWS: self.windows} if self.windows > 1 else {}
        return {"max_tokens": self.max_tokens} | several | self._words.describe()


class _FileTokenizer:
    """A tokenizer of the ``tokenizers`` library, which one JSON file holds wholly.

    Args:
        tokenizer: it is changed (limit and padding).
        max_tokens: longest window.
        windows: windows of a text, at most; several are counted from its beginning, whatever the side.
        truncation_side: ``right`` or ``left``.
        clean: name of open_clip's cleaning of texts, None for none.
        filler: id that stands for a text without tokens, and that pads.
        pad_to_limit: pad every window to the limit.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        windows: int,
        truncation_side: str,
        clean: str | None,
        filler: int,
        pad_to_limit: bool,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._vocabulary = str(tokenizer.to_str())
        tokenizer.enable_truncation(max_tokens, direction=truncation_side if windows == 1 else "right")
        self._tokenizer, self._windows = tokenizer, windows
        self._length = max_tokens if pad_to_limit else 1
        self._filler = filler
        self._clean = _cleaner(clean)
        self._description: dict[str, object] = {
            "kind": "tokenizers",
            "truncation_side": truncation_side,
            "clean": clean,
            "filler": filler,
            "pad_to_limit": pad_to_limit,
        }

    @classmethod
    def of(
        cls,
        loaded: object,
        *,
        name: str,
        max_tokens: int,
        windows: int,
        clean: str | None = None,
        pad_to_limit: bool = False,
    ) -> _FileTokenizer:
        """Take the fast implementation out of a tokenizer of the transformers library."""
        backend = getattr(loaded, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ConfigError("a tokenizer with a fast implementation", got=repr(name), where=WHERE)
        filler = getattr(loaded, "pad_token_id", None)
        return cls(
            Tokenizer.from_str(backend.to_str()),
            max_tokens=max_tokens,
            windows=windows,
            truncation_side=str(getattr(loaded, "truncation_side", "right")),
            clean=clean,
            filler=0 if filler is None else int(filler),
            pad_to_limit=pad_to_limit,
        )

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of each text, and how many texts were cut."""
        encodings = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        rows = [
            [i for window in (encoding, *encoding.overflowing[: self._windows - 1]) for i in self._filled(window.ids)]
            for encoding in encodings
        ]
        return rows, sum(len(encoding.overflowing) >= self._windows for encoding in encodings)

    def describe(self) -> dict[str, object]:
        """Return everything that decides the ids, but for the vocabulary."""
        return self._description

    def vocabulary(self) -> str:
        """Return the tokenizer's file."""
        return self._vocabulary

    def _filled(self, ids: list[int]) -> list[int]:
        return ids + [self._filler] * (self._length - len(ids))


class _OpenClipBpe:
    """open_clip's own byte-pair tokenizer; only the real tokens up to the end-of-text token are kept.

    Args:
        max_tokens: longest window.
        windows: windows of a text, at most.
        clean: name of open_clip's cleaning of texts.
    """

    def __init__(self, *, max_tokens: int, windows: int, clean: str) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer(context_length=max_tokens, clean=clean)
        self._clean = clean
        self._max_tokens, self._windows = max_tokens, windows

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of each text, and how many texts were cut."""
        start, end = int(self._tokenizer.sot_token_id), int(self._tokenizer.eot_token_id)
        room = self._max_tokens - 2
        pieces = [self._tokenizer.encode(text) for text in texts]
        most = room * self._windows
        rows = [
            [i for at in range(0, max(1, min(len(piece), most)), room) for i in (start, *piece[at : at + room], end)]
            for piece in pieces
        ]
        return rows, sum(len(piece) > most for piece in pieces)

    def describe(self) -> dict[str, object]:
        """Return everything that decides the ids, but for the vocabulary."""
        return {"kind": "open_clip_bpe", "clean": self._clean}

    def vocabulary(self) -> str:
        """Return the hash of open_clip's vocabulary."""
        return content_hash(*self._tokenizer.encoder)


def _cleaner(name: str | None) -> Callable[[str], str]:
    if name is None:
        return str
    from open_clip.tokenizer import get_clean_fn

    return cast("Callable[[str], str]", get_clean_fn(name))
