"""Put the demo's four models beside popularity and the Bayes-optimal ranker, on warm and on brand-new posts."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from data_tools.synthesis.bayes import BayesRanker
from mmrec.commands.evaluate import model_scorer
from mmrec.console import print_table, print_text
from mmrec.evaluation.baselines import Popularity
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.ranking import CaseScorer, rank_cases
from mmrec.evaluation.settings import settings_of
from mmrec.evaluation.significance import estimates
from mmrec.evaluation.slices import training_counts
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Split
from mmrec.inference.recommender import Recommender
from mmrec.storage import write_json

RUNS = ("text_only", "image_only", "id_only", "fused")


def main() -> None:
    """Print the table and write DEMO/summary.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("--metric", default="hr@10", help="metric of the last column")
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
    setting = settings_of(split, cases, histories)[0]
    summary: dict[str, object] = {}
    for kind, chosen in (("warm", ~new), ("brand-new", new)):
        rows, found = [], {}
        for name, scorer in scorers.items():
            ranks = rank_cases(scorer, cases, histories, setting, first_seen=catalogue.first_seen)
            kept = chosen[ranks.cases]
            values = {key: value[kept] for key, value in case_metrics(ranks.places).items()}
            found[name] = estimates(values, cases.user_rows[ranks.cases][kept])
        low, high = found["popularity"][asked.metric].mean, found["Bayes-optimal"][asked.metric].mean
        for name, figures in found.items():
            way = (figures[asked.metric].mean - low) / max(high - low, 1e-12)
            cells = [f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (figures["hr@10"], figures["ndcg@10"])]
            rows.append([name, *cells, f"{way:.0%}"])
        print_table(
            f"{kind} posts: {int(np.sum(chosen))} cases ({setting.name})",
            ["ranker", "HR@10", "NDCG@10", f"way from popularity to Bayes-optimal ({asked.metric})"],
            rows,
        )
        summary[kind] = {
            name: {key: vars(figures[key]) for key in ("hr@10", "ndcg@10")} for name, figures in found.items()
        }
    write_json(asked.demo / "summary.json", summary)
    print_text(f"Figures: {asked.demo / 'summary.json'}")


if __name__ == "__main__":
    main()
