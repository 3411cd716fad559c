"""What a training asks of its model after an epoch, and how it sees the whole catalogue meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec.assembly import Assembly
from mmrec.config import Config
from mmrec.errors import ConfigError, near_names
from mmrec.evaluation.calibration import (
    KNOWN_BONUS,
    LATE_SHARE,
    REPEAT_BONUS,
    TREND_WEIGHT,
    Calibration,
    Measure,
    Values,
    calibrated_metrics,
)
from mmrec.evaluation.evaluate import validation_values
from mmrec.evaluation.metrics import metric_names
from mmrec.evaluation.ranking import Setting
from mmrec.evaluation.settings import settings_of
from mmrec.feed.ids import Ids
from mmrec.feed.splits import Cases, Split
from mmrec.inference.encoding import ModelScorer, encode_plain
from mmrec.model.gather import gather_plain, gather_sizes
from mmrec.model.item_encoder import ITEM_ID
from mmrec.notices import Notify
from mmrec.training.ranks import Ranks

VALUE_LOSSES = frozenset({"bce", "mse"})
"""Losses under which a score means a value, to which nothing may be added."""
METRICS = ("hr@10", "ndcg@10", "mrr@10", "recall@10", "hr@20", "ndcg@20")


@dataclass(frozen=True)
class Validation:
    """Ranks the whole catalogue for the validation cases, each rank for some of them, and chooses what only that can teach.

    Args:
        assembly: the model and its feed.
        ids: the items' ids and trends.
        split: whose cases they are.
        cases: the questions.
        ranks: the processes that train together; all of them must ask at once.
        notify: told the metrics.
    """

    assembly: Assembly
    ids: Ids
    split: Split
    cases: Cases
    ranks: Ranks
    notify: Notify

    def __call__(self) -> Mapping[str, float]:
        """Return the metrics by name, the same on all ranks."""
        found = self._measure()
        # Ranks compute alike but not always in the same bits, and must not part ways over it.
        model = self.assembly.model
        self.ranks.agree([*model.scorer.buffers(), *model.late.buffers()])
        found = dict(zip(found, self.ranks.agree_on(list(found.values())), strict=True))
        self.notify("validation " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
        return found

    def encode_catalogue(self) -> Float[Tensor, "items width"]:
        """Return the vectors of the whole catalogue without anything that validation chooses."""
        return self._encode(())[0]

    def _encode(self, modalities: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return these vectors, and what some modalities alone give; each rank encodes a stretch of the catalogue.

        The stretches are equally long, for ranks that run sharded blocks must run them equally often: the last row is
        encoded more than once where the numbers ask for it.
        """
        assembly, ranks = self.assembly, self.ranks
        count = len(assembly.all_rows)
        length = -(-count // ranks.count)
        rows = np.minimum(np.arange(length) + ranks.rank * length, count - 1)
        own, alone = encode_plain(assembly.model, assembly.reader, rows, device=assembly.device, modalities=modalities)
        if ranks.count == 1:
            return own, alone

        def gathered(vectors: Tensor) -> Tensor:
            return gather_plain(vectors.to(assembly.device), [length] * ranks.count)[:count]

        return gathered(own), {name: gathered(vectors) for name, vectors in alone.items()}

    def _measure(self) -> dict[str, float]:
        assembly, split = self.assembly, self.split
        config, histories, ranks = assembly.config, assembly.histories, self.ranks
        names = tuple(dict.fromkeys([config.train.metric, *METRICS]))
        setters, late = self._setters(), self._late_modalities()
        vectors, alone = self._encode(late)

        def measure(cases: Cases) -> Measure:
            own = cases.take(np.arange(ranks.rank, len(cases), ranks.count))
            scorer = ModelScorer(
                assembly.model,
                vectors,
                histories,
                own,
                history_length=config.train.history_length,
                device=assembly.device,
                alone=alone,
                signals=torch.from_numpy(self.ids.signals) if len(setters) > 1 else None,
            )

            def measured(setting: Setting, names: Sequence[str]) -> Values:
                first_seen = assembly.catalogue.first_seen
                return self._of_all_ranks(
                    validation_values(scorer, own, histories, setting, first_seen=first_seen, names=names)
                )

            return measured

        def questions(cases: Cases) -> Calibration:
            return Calibration(measure(cases), settings_of(split, cases, histories), setters=setters, names=names)

        if config.objective.kind in VALUE_LOSSES:
            found = measure(self.cases)(settings_of(split, self.cases, histories)[0], names)
            return {name: float(values.mean()) for name, values in found.items()}
        return calibrated_metrics(
            questions(self.cases),
            metric=config.train.metric,
            names=names,
            warm=None if split.calibration is None else questions(split.calibration),
            cold_cost=config.train.cold_cost,
            late_shares=config.model.late_shares,
        )

    def _of_all_ranks(self, values: Values) -> Values:
        """Return the metrics of the cases of all ranks, in the same order on each; a collective."""
        ranks = self.ranks
        if ranks.count == 1:
            return values
        own = torch.from_numpy(np.stack(list(values.values()), axis=1)).to(ranks.device)
        sizes = gather_sizes(len(own), device=ranks.device)
        if not any(sizes):
            return values
        return dict(zip(values, gather_plain(own, sizes).cpu().numpy().T, strict=True))

    def _late_modalities(self) -> tuple[str, ...]:
        """Return the modalities of which a share may be chosen: alone they must be something else than the whole."""
        config = self.assembly.config
        if not config.model.late_shares or config.objective.kind in VALUE_LOSSES or len(config.encoders) < 2:
            return ()
        return self.assembly.model.late.modalities

    def _setters(self) -> dict[str, Callable[[float], object]]:
        """Return what validation may choose of this model: signals are read off known ids and added to a bias."""
        scorer, late = self.assembly.model.scorer, self.assembly.model.late
        found: dict[str, Callable[[float], object]] = {REPEAT_BONUS: scorer.repeat_bonus.fill_}
        if ITEM_ID in self.assembly.encoders and self.assembly.config.model.item_bias:
            if self.ids.trends.any():
                found[TREND_WEIGHT] = scorer.trend_weight.fill_
            if self.split.calibration is not None:
                found[KNOWN_BONUS] = scorer.known_bonus.fill_
        return found | {LATE_SHARE + name: partial(late.set, name) for name in self._late_modalities()}


def validation_cases(config: Config, split: Split) -> Cases:
    """Return the cases that a configuration asks for.

    Raises:
        ConfigError: the split has none, or none to weigh the cost of cold items by.
    """
    if config.train.cold_cost is not None:
        _check_cold_cost(config, split)
    cases, limit = split.validation, config.train.validation_cases
    if len(cases) == 0:
        raise ConfigError(
            "validation cases", got="none", where=f"split {split.name!r}", fix="Choose a split that has some."
        )
    if not limit or limit >= len(cases):
        return cases
    chosen = np.random.default_rng(config.train.seed).choice(len(cases), limit, replace=False)
    return cases.take(np.sort(chosen))


def _check_cold_cost(config: Config, split: Split) -> None:
    if config.objective.kind in VALUE_LOSSES:
        raise ConfigError(
            "a loss that ranks, to whose scores a bonus can be added",
            got=f"objective.kind={config.objective.kind}",
            where="train.cold_cost",
            fix="Leave it out, or choose another objective.kind.",
        )
    if split.calibration is None:
        raise ConfigError(
            "a split that holds warm cases out",
            got=repr(split.name),
            where="train.cold_cost",
            fix="Make one: mmrec-data split FEED --kind cold_items --warm-share 0.3 --name NAME.",
        )
    if ITEM_ID not in config.encoders or not config.model.item_bias:
        raise ConfigError(
            "item ids and an item bias, to which a bonus can be added",
            got="a model without",
            where="train.cold_cost",
            fix="Leave it out, or take encoders.item_id and model.item_bias.",
        )


def check_metric(name: str) -> None:
    """Refuse a metric that validation does not measure, before any work."""
    base, _, cutoff = name.partition("@")
    known = metric_names()
    if base not in {entry.partition("@")[0] for entry in known} or not cutoff.isdigit() or int(cutoff) < 1:
        raise ConfigError("a metric and a cut-off", got=repr(name), where="train.metric", fix=near_names(name, known))
