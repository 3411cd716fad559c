"""How many of a batch's items are distinct, under a Zipf feed: by simulation and by closed form.

Post ``i`` of ``N`` is chosen with probability ``i ** -s / sum_j j ** -s``, independently every time.  A history has a
geometric length of a given mean; windows hold at most ``history_length`` of its events.  A batch has B windows and m
negatives, drawn uniformly and without replacement from the catalogue.  With n events in a batch, its distinct items
number ``sum_i 1 - (1 - p_i) ** n (1 - m / N)`` in the mean.

Three ways to encode such a batch are compared: every slot of the padded windows, every named item, every distinct item.

    python scripts/distinct_ratio.py
    python scripts/distinct_ratio.py --windows 64 --exponents 1.0 --posts 7167 --mean-length 5.4
    python scripts/distinct_ratio.py --growth
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HEAD = 10_000
"""Most popular posts whose probabilities are kept one by one."""
STEP = 1.001
"""Growth of the blocks of the tail, in which all posts share one probability: their mean."""
DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Zipf:
    """The law by which posts are chosen, as blocks of posts of one probability, so that 10^9 posts take no memory.

    Args:
        starts: shape (blocks,), first post of each block, from 0, most popular first.
        counts: shape (blocks,), posts of each block.
        probabilities: shape (blocks,), of each post of a block.
    """

    starts: Integers
    counts: Integers
    probabilities: Floats

    @classmethod
    def of(cls, num_items: int, *, exponent: float) -> Zipf:
        """Return the law over a catalogue.

        Args:
            num_items: posts, N.
            exponent: s; 0 chooses uniformly.
        """
        edges = list(range(min(num_items, HEAD) + 1))
        while edges[-1] < num_items:
            edges.append(min(num_items, int(edges[-1] * STEP) + 1))
        starts, stops = np.array(edges[:-1]), np.array(edges[1:])
        # Post i has rank i + 1.  A block's sum is the integral between the half ranks around it, good to 1e-9 past HEAD.
        low, high = starts + 0.5, stops + 0.5
        if exponent == 1:
            sums = np.log(high / low)
        else:
            sums = (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)
        head = min(num_items, HEAD)
        sums[:head] = np.arange(1, head + 1, dtype=np.float64) ** -exponent
        counts = stops - starts
        return cls(starts, counts, sums / sums.sum() / counts)

    @property
    def num_items(self) -> int:
        """Posts of the catalogue."""
        return int(self.counts.sum())

    def draw(self, size: int, generator: np.random.Generator) -> Integers:
        """Return posts chosen independently, shape (size,)."""
        mass = np.cumsum(self.counts * self.probabilities)
        block = np.searchsorted(mass, generator.random(size) * mass[-1], side="right")
        return np.asarray(self.starts[block] + generator.integers(0, self.counts[block]), dtype=np.int64)

    def expected_distinct(self, events: int, *, negatives: int = 0) -> float:
        """Return how many distinct posts some events and some uniform negatives name in the mean.

        Args:
            events: n, independent choices.
            negatives: m, further posts, drawn uniformly without replacement.
        """
        unseen = self._unseen(events) * (1 - negatives / self.num_items)
        return float((self.counts * (1 - unseen)).sum())

    def chance_of_new(self, events: int) -> float:
        """Return how likely the event after some others is to choose a post that none of them chose."""
        return float((self.counts * self.probabilities * self._unseen(events)).sum())

    def _unseen(self, events: int) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(np.exp(events * np.log1p(-self.probabilities)) if events else np.ones(len(self.counts)))


@dataclass(frozen=True)
class Shape:
    """What a batch is made of.

    Args:
        windows: B.
        mean_length: mean length of a whole history, at least 1.
        history_length: events that a window holds at most.
        negatives: m; more than the catalogue holds means all of it.
        bucket: batches whose windows are sorted by length together, as mmrec's loader does; 1 sorts none.
    """

    windows: int
    mean_length: float
    history_length: int
    negatives: int
    bucket: int

    def lengths(self, batches: int, generator: np.random.Generator) -> Iterator[Integers]:
        """Yield the lengths of the windows of some batches, each of shape (windows,).

        A geometric history that is cut into windows of ``history_length`` and a rest gives windows whose lengths are
        again geometric, cut off there: geometric laws forget.
        """
        for start in range(0, batches, self.bucket):
            together = min(self.bucket, batches - start)
            drawn = generator.geometric(1 / self.mean_length, together * self.windows)
            lengths = np.minimum(drawn, self.history_length).astype(np.int64)
            yield from np.sort(lengths).reshape(together, self.windows) if self.bucket > 1 else [lengths]


@dataclass(frozen=True)
class Counted:
    """What a batch holds, in the mean over the simulated ones.

    Args:
        slots: slots of the padded windows.
        events: those that are real.
        negatives: items drawn uniformly beside them.
        distinct: distinct items, counted.
        expected: distinct items by closed form, for the same numbers of events.
    """

    slots: float
    events: float
    negatives: float
    distinct: float
    expected: float

    @property
    def real_share(self) -> float:
        """Share of the padded slots that are real."""
        return self.events / self.slots

    @property
    def named(self) -> float:
        """Items named: one an event, one a negative."""
        return self.events + self.negatives

    @property
    def distinct_share(self) -> float:
        """Distinct items over named items."""
        return self.distinct / self.named

    @property
    def saving(self) -> float:
        """Items that a padded and duplicated batch encodes, over distinct items."""
        return (self.slots + self.negatives) / self.distinct


def simulate(law: Zipf, shape: Shape, *, batches: int, generator: np.random.Generator) -> Counted:
    """Draw batches and count.

    Args:
        law: how posts are chosen.
        shape: what a batch is made of.
        batches: how many.
        generator: where chance comes from.
    """
    negatives = min(shape.negatives, law.num_items)
    rows = []
    for lengths in shape.lengths(batches, generator):
        events = int(lengths.sum())
        drawn = generator.choice(law.num_items, negatives, replace=False)
        items = np.concatenate([law.draw(events, generator), drawn])
        expected = law.expected_distinct(events, negatives=negatives)
        rows.append((lengths.max() * len(lengths), events, negatives, len(np.unique(items)), expected))
    slots, events_mean, negatives_mean, distinct, expected_mean = np.mean(rows, axis=0).tolist()
    return Counted(slots, events_mean, negatives_mean, distinct, expected_mean)


def simulate_named(law: Zipf, events: int, *, generator: np.random.Generator) -> int:
    """Draw events and count the posts that they name."""
    named = np.zeros(0, np.int64)
    for start in range(0, events, DRAWS_AT_ONCE):
        named = np.union1d(named, law.draw(min(DRAWS_AT_ONCE, events - start), generator))
    return len(named)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def print_batches(arguments: argparse.Namespace) -> None:
    """Print one row for each number of windows, exponent and catalogue."""
    print(
        f"mean history {arguments.mean_length:g}, windows of at most {arguments.history_length}, "
        f"{arguments.negatives} negatives, {arguments.bucket} batches sorted by length together, "
        f"{arguments.batches} batches, seed {arguments.seed}\n"
    )
    header = ["B", "s", "N", "real slots", "named", "distinct", "closed form", "distinct / named", "padded / distinct"]
    rows = []
    for windows in arguments.windows:
        shape = Shape(
            windows=windows,
            mean_length=arguments.mean_length,
            history_length=arguments.history_length,
            negatives=arguments.negatives,
            bucket=arguments.bucket,
        )
        for exponent in arguments.exponents:
            for posts in arguments.posts:
                generator = np.random.default_rng([arguments.seed, windows, posts])
                law = Zipf.of(posts, exponent=exponent)
                counted = simulate(law, shape, batches=arguments.batches, generator=generator)
                numbers = [counted.named, counted.distinct, counted.expected]
                shares = [f"{counted.distinct_share:.3f}", f"{counted.saving:.2f}"]
                rows.append(
                    [str(windows), f"{exponent:g}", f"{posts:,}", f"{counted.real_share:.1%}"]
                    + [f"{number:,.0f}" for number in numbers]
                    + shares
                )
    print_table(header, rows)


def print_growth(arguments: argparse.Namespace) -> None:
    """Print, for a catalogue and its events that grow together, how much of the catalogue an epoch names."""
    print(f"{arguments.events_per_post:g} events a post, seed {arguments.seed}\n")
    header = ["s", "N", "events", "posts named", "simulated", "share of the catalogue", "next event names a new post"]
    rows = []
    for exponent in arguments.exponents:
        for posts in arguments.posts:
            events = round(arguments.events_per_post * posts)
            law = Zipf.of(posts, exponent=exponent)
            named, simulated = law.expected_distinct(events), "too many to draw"
            if events <= arguments.most_draws:
                generator = np.random.default_rng([arguments.seed, posts])
                simulated = f"{simulate_named(law, events, generator=generator):,}"
            shares = [f"{named / posts:.1%}", f"{law.chance_of_new(events):.2%}"]
            rows.append([f"{exponent:g}", f"{posts:,}", f"{events:,}", f"{named:,.0f}", simulated, *shares])
    print_table(header, rows)


def _whole(text: str) -> int:
    """Read a whole number, which may be written as 1e9."""
    number = float(text)
    if number != int(number) or number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(number)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Distinct over named items of a batch, under a Zipf feed.")
    parser.add_argument("--windows", type=_whole, nargs="+", default=[64, 256, 1024], metavar="B")
    parser.add_argument("--exponents", type=float, nargs="+", default=[0.8, 1.0, 1.2], metavar="S")
    parser.add_argument("--posts", type=_whole, nargs="+", default=[10**5, 10**7, 10**9], metavar="N")
    parser.add_argument("--mean-length", type=float, default=50.0, help="mean length of a whole history")
    parser.add_argument("--history-length", type=_whole, default=50, help="events that a window holds at most")
    parser.add_argument("--negatives", type=int, default=256, help="uniform negatives of a batch")
    parser.add_argument("--bucket", type=_whole, default=8, help="batches sorted by length together; 1 for none")
    parser.add_argument("--batches", type=_whole, default=32, help="batches to simulate")
    parser.add_argument("--growth", action="store_true", help="print how much of the catalogue an epoch names instead")
    parser.add_argument("--events-per-post", type=float, default=5.0, help="of --growth")
    parser.add_argument("--most-draws", type=_whole, default=10**7, help="events that --growth simulates at most")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was asked for."""
    parsed = parse(arguments)
    if parsed.growth:
        print_growth(parsed)
    else:
        print_batches(parsed)


if __name__ == "__main__":
    main()
