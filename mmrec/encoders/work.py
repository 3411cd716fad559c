"""Counts of what an encoder was spared and what it had to run, for the log; no part of any state."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

_COUNTING = threading.Lock()
"""A loader's thread and the training step may count at once; one lock for all, so that counters stay plain to copy."""


@dataclass
class EncodingWork:
    """What an encoder has run so far.

    Args:
        encoded: captions or pictures that went in raw.
        cache_hits: captions or pictures whose trunk states were read from a cache instead.
        real_tokens: tokens of contents that went through the network, or through a part of it.
        padded_tokens: the same, padding included.
    """

    encoded: int = 0
    cache_hits: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0

    @property
    def contents(self) -> int:
        """Captions or pictures that were asked for."""
        return self.encoded + self.cache_hits

    @property
    def padding_share(self) -> float:
        """Share of the tokens run that were padding."""
        return 1.0 - self.real_tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def cache_hit_share(self) -> float:
        """Share of the contents asked for that came from a cache."""
        return self.cache_hits / self.contents if self.contents else 0.0

    def add(self, *, encoded: int = 0, cache_hits: int = 0, real_tokens: int = 0, padded_tokens: int = 0) -> None:
        """Count some work; may be called from any thread."""
        with _COUNTING:
            self.encoded += encoded
            self.cache_hits += cache_hits
            self.real_tokens += real_tokens
            self.padded_tokens += padded_tokens

    def copy(self) -> EncodingWork:
        """Return the counts as they are now."""
        with _COUNTING:
            return replace(self)

    def since(self, earlier: EncodingWork) -> EncodingWork:
        """Return what was added after ``earlier`` was copied."""
        return EncodingWork(
            encoded=self.encoded - earlier.encoded,
            cache_hits=self.cache_hits - earlier.cache_hits,
            real_tokens=self.real_tokens - earlier.real_tokens,
            padded_tokens=self.padded_tokens - earlier.padded_tokens,
        )
