"""Put the demo's four models beside popularity and the Bayes-optimal ranker.

Three questions: the next post among all posts; where it is a post that training saw, among those; where it is one that
nobody had seen, among all posts.  A model of ids never shows a new post, so on the second question alone it is asked no
more than it can answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_tools.synthesis.bayes import BayesRanker
from mmrec.commands.evaluate import model_scorer
from mmrec.console import print_table, print_text
from mmrec.evaluation.baselines import Popularity
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.ranking import CaseScorer, rank_cases
from mmrec.evaluation.settings import settings_of
from mmrec.evaluation.significance import Estimate, estimates
from mmrec.evaluation.slices import training_counts
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Split
from mmrec.inference.recommender import Recommender
from mmrec.storage import write_json

METRICS = ("hr@10", "ndcg@10")
RUNS = ("text_only", "image_only", "id_only", "fused")


class Among:
    """A scorer that offers some posts only.

    Args:
        scorer: scores all posts.
        offered: shape (items,).
    """

    def __init__(self, scorer: CaseScorer, offered: Bool[Tensor, " items"]) -> None:
        self._scorer, self._offered = scorer, offered

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Return the scores, those of other posts below all."""
        return self._scorer.scores(cases).float().masked_fill(~self._offered, -torch.inf)


def main() -> None:
    """Print the table and write DEMO/summary.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of the demo")
    asked = parser.parse_args()
    feed = asked.demo / "prepared"
    catalogue, histories, split = Catalogue.load(feed), Histories.load(feed), Split.load(feed)
    cases = split.test
    counts = training_counts(split.train_events, histories, num_items=len(catalogue))
    scorers: dict[str, CaseScorer] = {"popularity": Popularity(counts)}
    for name in RUNS:
        scorers[name] = model_scorer(Recommender.load(asked.demo / "runs" / name), cases)
    scorers["Bayes-optimal"] = BayesRanker(asked.demo / "feed" / "truth", catalogue, histories, cases)

    targets = cases.targets(histories)
    new = counts[histories.item_rows[targets.values[targets.offsets[:-1]]]] == 0
    seen_posts, all_posts = torch.from_numpy(counts > 0), torch.ones(len(catalogue), dtype=torch.bool)
    setting = settings_of(split, cases, histories)[0]
    summary: dict[str, object] = {}
    for kind, chosen, offered in (
        ("all posts", np.ones_like(new), all_posts),
        ("warm posts, among warm posts", ~new, seen_posts),
        ("brand-new posts, among all posts", new, all_posts),
    ):
        rows, found = [], {}
        for name, scorer in scorers.items():
            ranks = rank_cases(Among(scorer, offered), cases, histories, setting, first_seen=catalogue.first_seen)
            kept = chosen[ranks.cases]
            values = {key: value[kept] for key, value in case_metrics(ranks.places).items()}
            found[name] = estimates(values, cases.user_rows[ranks.cases][kept])
        for name, figures in found.items():
            cells = [_cell(found, figures, metric, name) for metric in METRICS]
            rows.append([name, *cells])
        header = ["ranker", *(f"{metric.upper()} (way from popularity to Bayes-optimal)" for metric in METRICS)]
        print_table(f"{kind}: {int(np.sum(chosen))} cases ({setting.name})", header, rows)
        summary[kind] = {name: {key: vars(figures[key]) for key in METRICS} for name, figures in found.items()}
    write_json(asked.demo / "summary.json", summary)
    print_text(f"Figures: {asked.demo / 'summary.json'}")


def _cell(found: Mapping[str, Mapping[str, Estimate]], figures: Mapping[str, Estimate], metric: str, name: str) -> str:
    low, high = found["popularity"][metric].mean, found["Bayes-optimal"][metric].mean
    own = figures[metric]
    way = "" if name in ("popularity", "Bayes-optimal") else f" ({(own.mean - low) / max(high - low, 1e-12):.0%})"
    return f"{own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]{way}"


if __name__ == "__main__":
    main()
