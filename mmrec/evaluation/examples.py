"""Example users to look at: what they had, what they were recommended, what they chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmrec.evaluation.ranking import Ranks
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases

NUM_EXAMPLES = 10
SHOWN_HISTORY = 8
SHOWN_ITEMS = 10


@dataclass(frozen=True)
class ExampleItem:
    """One post as the report shows it.

    Args:
        item_id: external id.
        caption: its caption, None where it has none.
        picture: shape (height, width, 3), uint8 RGB, None where it has none.
        score: what the model said of it, where it was recommended.
        rank: its pessimistic rank, where it was chosen; None: it was not among the candidates.
        hit: recommended and chosen.
        repeat: it is also in the history.
    """

    item_id: str
    caption: str | None
    picture: npt.NDArray[np.uint8] | None
    score: float | None = None
    rank: int | None = None
    hit: bool = False
    repeat: bool = False


@dataclass(frozen=True)
class ExampleUser:
    """One case: the end of the history (oldest first), the list (best first), the targets."""

    user_id: str
    history_length: int
    history: Sequence[ExampleItem]
    recommended: Sequence[ExampleItem]
    chosen: Sequence[ExampleItem]


def example_users(
    ranks: Ranks,
    cases: Cases,
    histories: Histories,
    catalogue: Catalogue,
    *,
    number: int = NUM_EXAMPLES,
    seed: int = 0,
) -> list[ExampleUser]:
    """Draw cases at random (not by how well they went) and collect what there is to see of them."""
    drawn = np.random.default_rng(seed).permutation(len(ranks.cases))[:number]
    return [_example(int(position), ranks, cases, histories, catalogue) for position in drawn]


def _example(position: int, ranks: Ranks, cases: Cases, histories: Histories, catalogue: Catalogue) -> ExampleUser:
    case = ranks.cases[position]
    events = cases.take(np.array([case])).histories(histories).values
    seen = [int(row) for row in np.asarray(histories.item_rows)[events]]
    own = slice(ranks.places.offsets[position], ranks.places.offsets[position + 1])
    targets = [int(row) for row in ranks.targets[own]]
    top = [int(row) for row in ranks.top_items[position] if row >= 0][:SHOWN_ITEMS]
    placed = zip(targets, ranks.places.ranks[own], ranks.places.reachable[own], strict=True)

    def item(row: int, *, score: float | None = None, rank: int | None = None, hit: bool = False) -> ExampleItem:
        pictures = catalogue.images(row)
        return ExampleItem(
            item_id=str(catalogue.item_ids[row]),
            caption=catalogue.caption(row),
            picture=np.asarray(pictures[0]) if pictures else None,
            score=score,
            rank=rank,
            hit=hit,
            repeat=score is not None and row in seen,
        )

    return ExampleUser(
        user_id=str(histories.user_ids[cases.user_rows[case]]),
        history_length=len(seen),
        history=[item(row) for row in seen[-SHOWN_HISTORY:]],
        recommended=[
            item(row, score=float(score), hit=row in targets)
            for row, score in zip(top, ranks.top_scores[position], strict=False)
        ],
        chosen=[item(row, rank=int(rank) if reachable else None, hit=row in top) for row, rank, reachable in placed],
    )
