"""Captions that fall into topics, as many as are wanted; no library of models is needed for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOPIC_WORDS = 24
COMMON_WORDS = 2_000


@dataclass(frozen=True)
class Language:
    """Captions of a topic: words that only it has, among words that all have.

    Args:
        topics: how many there are.
        mean_words: of a caption.
    """

    topics: int
    mean_words: float

    @property
    def words(self) -> list[str]:
        """All words there are."""
        own = [f"t{topic}w{word}" for topic in range(self.topics) for word in range(TOPIC_WORDS)]
        return own + [f"c{word}" for word in range(COMMON_WORDS)]

    def captions(self, topics: npt.NDArray[np.int64], generator: np.random.Generator) -> list[str]:
        """Draw one caption for each of some topics; a third of its words are the topic's own."""
        lengths = 3 + generator.poisson(self.mean_words - 3, len(topics))
        owner = np.repeat(topics, lengths)
        own = generator.random(len(owner)) < 1 / 3
        number = np.where(own, generator.integers(0, TOPIC_WORDS, len(owner)), _zipf(len(owner), generator))
        stops = np.cumsum(lengths)
        words = np.where(
            own,
            np.char.add(np.char.add("t", owner.astype("U")), np.char.add("w", number.astype("U"))),
            np.char.add("c", number.astype("U")),
        )
        return [" ".join(words[stop - length : stop]) for stop, length in zip(stops, lengths, strict=True)]


def item_id(row: int) -> str:
    """Name an item."""
    return f"p{row:07}"


def _zipf(count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw common words, the first ones most often."""
    drawn = np.exp(generator.random(count) * np.log(COMMON_WORDS)).astype(np.int64) - 1
    return np.asarray(np.minimum(drawn, COMMON_WORDS - 1), np.int64)
