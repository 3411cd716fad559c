"""Ranks of targets among all candidates: one pass over the scores, no sort, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrec.errors import ArtifactError, FeedError
from mmrec.evaluation.metrics import UNREACHABLE, Places
from mmrec.evaluation.tally import Tally
from mmrec.evaluation.tiles import VectorCaseScorer, rank_tiles
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases

Pool = Literal["all", "cold"]
TOP_K = 20
CHUNK_ELEMENTS = 1 << 24
CACHED_ELEMENTS = 1 << 18
"""Scores compared at once on a CPU: what its cache holds."""


@runtime_checkable
class CaseScorer(Protocol):
    """Whatever can answer cases: a model, a baseline, the true ranker of a synthetic feed."""

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Score the whole catalogue for the given cases (positions in the cases it was built for), higher is better."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a case's targets are ranked among.

    Args:
        name: how reports call it.
        pool: ``all`` items, or ``cold``: those whose role is the one asked about.
        filter_seen: take the history's items out of the candidates, and targets that repeat one out of the targets.
        existing_only: an item is a candidate only if it was first seen by the time of the question.
    """

    name: str
    pool: Pool = "all"
    filter_seen: bool = False
    existing_only: bool = False


@dataclass(frozen=True)
class Ranks:
    """Where a scorer puts the targets of the cases that have any left.

    Args:
        cases: shape (kept,), positions in the cases that were asked.
        places: places of the kept cases' targets.
        targets: shape (targets,), item rows, distinct within a case.
        num_candidates: shape (kept,).
        top_items: shape (kept, top_k), item rows, best first, -1 where there are fewer candidates.
        top_scores: shape (kept, top_k), NaN where there are fewer candidates.
        dropped_cases: cases that lost all their targets to ``filter_seen``.
        dropped_targets: targets that were lost so.
    """

    cases: npt.NDArray[np.int64]
    places: Places
    targets: npt.NDArray[np.int64]
    num_candidates: npt.NDArray[np.int64]
    top_items: npt.NDArray[np.int32]
    top_scores: npt.NDArray[np.float32]
    dropped_cases: int
    dropped_targets: int


def rank_cases(
    scorer: CaseScorer,
    cases: Cases,
    histories: Histories,
    setting: Setting,
    *,
    first_seen: npt.NDArray[np.int64] | None = None,
    top_k: int = TOP_K,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Ranks:
    """Rank under one setting; see :func:`rank_settings`."""
    ranks = rank_settings(
        scorer, cases, histories, [setting], first_seen=first_seen, top_k=top_k, chunk_elements=chunk_elements
    )
    return ranks[setting.name]


def rank_settings(
    scorer: CaseScorer,
    cases: Cases,
    histories: Histories,
    settings: Sequence[Setting],
    *,
    first_seen: npt.NDArray[np.int64] | None = None,
    top_k: int = TOP_K,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[str, Ranks]:
    """Rank every target of every case under several settings, scoring each case once.

    The target's score is read from the same row as the others.  Other targets of the case are candidates like any
    other; an item chosen twice in one case is one target.  Where the scorer gives vectors
    (:class:`~mmrec.evaluation.tiles.VectorCaseScorer`), nobody makes whole rows of scores.

    Args:
        first_seen: shape (items,), needed by settings with ``existing_only``.
        top_k: length of the recommendation lists kept, at most the number of items.
        chunk_elements: scores held at once (at least one case).

    Raises:
        FeedError: a setting asks for existing items and ``first_seen`` is not given.
        ArtifactError: a score is NaN.
    """
    if first_seen is None and any(setting.existing_only for setting in settings):
        raise FeedError("first_seen of every item", got="None", where="a setting with existing_only")
    num_items = len(cases.item_roles)
    tallies = {
        setting.name: Tally(
            cases,
            histories,
            pool=pool_mask(setting, cases),
            filter_seen=setting.filter_seen,
            first_seen=first_seen if setting.existing_only else None,
            top_k=min(top_k, num_items),
        )
        for setting in settings
    }
    wanted = np.flatnonzero(np.any([np.diff(tally.offsets) > 0 for tally in tallies.values()], axis=0))
    if isinstance(scorer, VectorCaseScorer):
        rank_tiles(scorer, list(tallies.values()), wanted, chunk_elements=chunk_elements)
    else:
        size, block = (
            max(1, elements // max(1, num_items)) for elements in (chunk_elements, min(chunk_elements, CACHED_ELEMENTS))
        )
        for chunk in _chunks(wanted, size):
            scores = _checked(scorer.scores(chunk), rows=len(chunk), num_items=num_items)
            for tally in tallies.values():
                _add_rows(tally, chunk, scores, block=block if scores.device.type == "cpu" else size)
    return {name: _ranks(tally) for name, tally in tallies.items()}


def pool_mask(setting: Setting, cases: Cases) -> npt.NDArray[np.bool_]:
    """Return the candidates of a setting before anything that depends on the case, shape (items,)."""
    if setting.pool == "all":
        return np.ones(len(cases.item_roles), bool)
    return np.asarray(cases.item_roles == cases.target_role)


def _chunks(values: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _checked(scores: Float[Tensor, "cases items"], *, rows: int, num_items: int) -> Float[Tensor, "cases items"]:
    assert scores.shape == (rows, num_items), f"scores of shape {tuple(scores.shape)}, not {(rows, num_items)}"
    if bool(torch.isnan(scores).any()):
        raise ArtifactError(
            "scores that can be compared", got="NaN", where="ranking", fix="The model has diverged; train it again."
        )
    # Every candidate stays above the -inf that marks what is not one.
    return scores.clamp(min=torch.finfo(scores.dtype).min)


def _add_rows(tally: Tally, chunk: npt.NDArray[np.int64], scores: Float[Tensor, "cases items"], *, block: int) -> None:
    """Rank the targets of some cases, ``block`` targets at a time."""
    mask = tally.candidates(chunk)
    candidates = torch.from_numpy(mask).to(scores.device)
    offered = scores.masked_fill(~candidates, -torch.inf)
    tally.num_candidates[chunk] = mask.sum(1)
    top = offered.topk(tally.top_k, dim=1)
    real = torch.isfinite(top.values) | (top.values > 0)
    tally.top_items[chunk] = top.indices.masked_fill(~real, -1).cpu().numpy()
    tally.top_scores[chunk] = top.values.float().masked_fill(~real, torch.nan).cpu().numpy()
    places, owners = tally.places(chunk)
    for part in _chunks(np.arange(len(places)), block):
        tally.above[places[part]], tally.tied[places[part]] = _place(
            offered, candidates, owners[part], tally.targets[places[part]]
        )


def _ranks(tally: Tally) -> Ranks:
    """Return what was collected, without the cases that have no target."""
    kept = np.flatnonzero(np.diff(tally.offsets))
    offsets = np.append(tally.offsets[kept], tally.offsets[-1])
    return Ranks(
        cases=kept,
        places=Places(offsets, tally.above, tally.tied),
        targets=tally.targets,
        num_candidates=tally.num_candidates[kept],
        top_items=tally.top_items[kept],
        top_scores=tally.top_scores[kept],
        dropped_cases=tally.dropped_cases,
        dropped_targets=tally.dropped_targets,
    )


def _place(
    offered: Float[Tensor, "cases items"],
    candidates: Bool[Tensor, "cases items"],
    owners: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count the candidates above and level with each target, shapes (targets,)."""
    row = torch.from_numpy(owners).to(offered.device)
    column = torch.from_numpy(targets).to(offered.device)
    rows = offered[row]
    own = offered[row, column].unsqueeze(1)
    reachable = candidates[row, column].cpu().numpy()
    above = np.where(reachable, _count(rows > own), UNREACHABLE)
    return above, np.where(reachable, _count(rows == own) - 1, 0)


def _count(mask: Bool[Tensor, "rows items"]) -> npt.NDArray[np.int64]:
    """Count True in each row; numpy does it on the CPU at a quarter of torch's time."""
    if mask.device.type == "cpu":
        return np.asarray(np.count_nonzero(mask.numpy(), axis=1), dtype=np.int64)
    return torch.count_nonzero(mask, dim=1).cpu().numpy()
