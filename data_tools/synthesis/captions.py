"""Write the caption of a post: natural sentences that name its subject and never its look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np


@dataclass(frozen=True)
class Subject:
    """Something a post is about.

    Args:
        name: for the truth and for reports.
        words: ways of naming it in a caption.
        facts: half-sentences that go with it.
    """

    name: str
    words: tuple[str, ...]
    facts: tuple[str, ...]


SUBJECTS: Final = (
    Subject("owl", ("owl", "barn owl", "night owl"), ("with wide round eyes", "ready for the night hunt")),
    Subject("bicycle", ("bicycle", "bike", "city bike"), ("for Sunday cyclists", "with both wheels turning")),
    Subject("kettle", ("kettle", "teapot", "tea kettle"), ("for the tea table", "just about to whistle")),
    Subject(
        "cactus", ("cactus", "prickly cactus", "desert cactus"), ("with every spine in place", "that needs no water")
    ),
    Subject("guitar", ("guitar", "acoustic guitar", "ukulele"), ("with all its strings", "for campfire songs")),
    Subject("rocket", ("rocket", "space rocket", "spaceship"), ("on its way to orbit", "for young astronauts")),
    Subject(
        "lighthouse", ("lighthouse", "old lighthouse", "harbour beacon"), ("above the cliffs", "guiding the ships")
    ),
    Subject("mushroom", ("mushroom", "wild mushroom", "toadstool"), ("from the forest floor", "for keen foragers")),
    Subject("umbrella", ("umbrella", "rain umbrella", "parasol"), ("for wet afternoons", "opened in the wind")),
    Subject(
        "octopus", ("octopus", "little octopus", "deep-sea octopus"), ("with eight curling arms", "from the sea bed")
    ),
)
"""Every subject that a feed can have; a feed with fewer takes the first ones."""

NAMING: Final = (
    "{word} {thing}",
    "{thing} with a {word}",
    "The {word}, {thing} no. {number}",
    "{word} on a {thing}",
    "Our {word} {thing}",
    "{mood} {word} {thing}",
)
PLAIN: Final = (
    "New in the shop",
    "{mood} {thing}",
    "{thing} no. {number}",
    "Back again: the {thing}",
    "A {thing} from {maker}",
)
ABOUT: Final = (
    "A {mood} {word} {fact}, made by {maker}.",
    "{maker} drew this {word} {fact}.",
    "Shows a {word} {fact}.",
    "You asked for more of the {word}: here is one {fact}.",
    "Here comes the {word}, {fact}.",
)
ASIDE: Final = (
    "Ships within {number} days.",
    "Made by {maker} in small batches.",
    "Fits a frame of {number} cm.",
    "Looks good in the {room}.",
    "A {mood} gift for the {room}.",
    "Signed and numbered, edition of {number}.",
    "Please read the care label before washing.",
    "",
)
THINGS: Final = ("print", "poster", "cushion", "tote bag", "card", "sticker", "badge", "mug", "tea towel", "sketch")
MOODS: Final = ("cheerful", "quiet", "playful", "dreamy", "bold", "tiny", "cosy", "curious")
ROOMS: Final = ("hallway", "kitchen", "nursery", "study", "bedroom", "cabin")
MAKERS: Final = ("Ana Brandt", "Studio Nordlund", "Kofi & Daughters", "Mira Sol", "Tallow Press", "Ilse Okafor")


def write_caption(subject: int, *, generator: np.random.Generator) -> tuple[str, str]:
    """Write title and description; the subject stands in at least one of them, the description may be empty."""
    about = SUBJECTS[subject]
    words = {
        "word": _pick(about.words, generator),
        "fact": _pick(about.facts, generator),
        "thing": _pick(THINGS, generator),
        "mood": _pick(MOODS, generator),
        "room": _pick(ROOMS, generator),
        "maker": _pick(MAKERS, generator),
        "number": str(generator.integers(2, 60)),
    }
    named = generator.random() < 0.75
    title = _pick(NAMING if named else PLAIN, generator)
    sentences = [_pick(ABOUT, generator)] if not named or generator.random() < 0.6 else []
    sentences.append(_pick(ASIDE, generator))
    description = " ".join(sentence for sentence in sentences if sentence)
    return _capital(title.format(**words)), description.format(**words)


def _pick(choices: tuple[str, ...], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
