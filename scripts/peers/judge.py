"""What a peer scored, measured by the code that measures mmrec's own runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.assembly import split_fingerprint
from mmrec.errors import ArtifactError, FeedError
from mmrec.evaluation.evaluate import MODEL, evaluate
from mmrec.evaluation.ranking import CaseScorer
from mmrec.evaluation.report import write_report
from mmrec.evaluation.results import EvaluationReport
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Part, Split
from mmrec.run_folder import RunFolder
from mmrec.storage import read_array, read_json
from peers.export import ABOUT

BLOCKS = "scores-*.npy"
PART: Part = "test"


class BlockScorer:
    """Scores on disk as a scorer of cases.

    Args:
        folder: holds ``scores-*.npy``, each float32 of shape (cases, items); in the order of their names they answer
            every case.
    """

    def __init__(self, folder: Path) -> None:
        self._blocks = [read_array(path) for path in sorted(folder.glob(BLOCKS))]
        self._starts = np.concatenate([[0], np.cumsum([len(block) for block in self._blocks])]).astype(np.int64)
        if not self._blocks:
            raise ArtifactError("scores", got=f"no {BLOCKS}", where=str(folder), fix="Run the peer again.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Read the rows of some cases."""
        rows = np.empty((len(cases), self._blocks[0].shape[1]), np.float32)
        blocks = np.searchsorted(self._starts, cases, side="right") - 1
        for number in np.unique(blocks):
            chosen = blocks == number
            rows[chosen] = self._blocks[number][cases[chosen] - self._starts[number]]
        return torch.from_numpy(rows)


def load_split(data: Path) -> tuple[Catalogue, Histories, Split]:
    """Return the feed that a data folder was exported from, and its split.

    Raises:
        FeedError: the feed or its split is not what it was.
    """
    about = read_json(data / ABOUT)
    feed = Path(str(about["feed"]))
    catalogue, histories, split = Catalogue.load(feed), Histories.load(feed), Split.load(feed, str(about["split"]))
    if (catalogue.feed_hash, split_fingerprint(split)) != (about["feed_hash"], about["split_hash"]):
        raise FeedError(
            "the feed and the split that were exported",
            got="others of the same name",
            where=str(feed),
            fix="Export again, into an empty folder.",
        )
    return catalogue, histories, split


def judge(data: Path, run: Path, *, title: str, scorer: CaseScorer | None = None) -> EvaluationReport:
    """Rank the catalogue by a peer's scores and write the evaluation where a run of mmrec has its own.

    Args:
        data: data folder.
        run: folder of the peer's run; ``mmrec evaluate RUN --against`` takes it.
        title: of the page.
        scorer: what is measured; None takes the scores in ``run``.

    Raises:
        ArtifactError: scores are missing, NaN, or not those of every case.
        FeedError: the feed is not the one that was exported.
    """
    catalogue, histories, split = load_split(data)
    cases = split.part(PART)
    if scorer is None:
        scorer = BlockScorer(run)
        if len(scorer) != len(cases):
            raise ArtifactError(f"scores of {len(cases)} cases", got=f"of {len(scorer)}", where=str(run))
    report = evaluate({MODEL: scorer}, cases, catalogue, histories, split, part=PART)
    write_report(report, [], [], RunFolder(run).evaluation(PART), title=title)
    return report
