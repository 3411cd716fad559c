from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmrec.errors import ArtifactError, FeedError
from mmrec.evaluation.baselines import standard_baselines
from mmrec.evaluation.comparison import compare
from mmrec.evaluation.console import comparison_tables, text_tables
from mmrec.evaluation.evaluate import evaluate, validation_values
from mmrec.evaluation.examples import example_users
from mmrec.evaluation.report import write_report
from mmrec.evaluation.results import EvaluationReport
from mmrec.evaluation.settings import settings_of
from mmrec.evaluation.significance import Bootstrap
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases, Kind, Split
from tests.evaluation.toys import Fixed, cases_of, catalogue_of, crossmodal_of, histories_of, split_of
from tests.feeds import write_feed

ITEMS, USERS = 20, 60
CATALOGUE = catalogue_of([f"caption {row}" if row % 3 else None for row in range(ITEMS)])
QUICK = Bootstrap(resamples=200)


def feed(kind: Kind = "leave_last_out", *, repeats: bool = False) -> tuple[Cases, Histories, Split]:
    generator = np.random.default_rng(0)
    cold = kind == "cold_items"
    sequences = []
    for _ in range(USERS):
        warm = generator.choice(ITEMS - 5, size=6, replace=False).tolist()
        last = ITEMS - 1 - int(generator.integers(5)) if cold else warm[0] if repeats else warm.pop()
        sequences.append([*warm, last])
    histories = histories_of(sequences)
    roles = [2 if cold and row >= ITEMS - 5 else 0 for row in range(ITEMS)]
    cases = cases_of(histories, [1] * USERS, num_items=ITEMS, roles=roles, target_role=2 if cold else 0)
    return cases, histories, split_of(histories, cases, kind=kind)


def noisy(cases: Cases, histories: Histories, *, noise: float, seed: int = 1) -> Fixed:
    """Knows the target, up to noise."""
    table = np.random.default_rng(seed).normal(scale=noise, size=(len(cases), ITEMS))
    table[np.arange(len(cases)), histories.item_rows[cases.target_starts]] += 1
    return Fixed(table)


def run(kind: Kind = "leave_last_out", *, noise: float = 0.5, seed: int = 1) -> EvaluationReport:
    cases, histories, split = feed(kind)
    scorers = {"model": noisy(cases, histories, noise=noise, seed=seed)}
    scorers |= standard_baselines(cases, histories, split.train_events, vectors={}, present={})  # type: ignore[arg-type]
    knockouts = {"drop_caption": lambda: noisy(cases, histories, noise=5.0)}
    return evaluate(scorers, cases, CATALOGUE, histories, split, knockouts=knockouts, bootstrap=QUICK)


def test_every_scorer_goes_through_the_same_tables() -> None:
    report = run()
    assert [setting.name for setting in report.settings] == ["all items but the history", "all items"]
    for setting in report.settings:
        assert [row.scorer for row in setting.rows] == ["model", "popularity", "co-occurrence", "transitions"]
        model, popularity = setting.rows[:2]
        assert model.ahead == {}
        gap = model.metrics["ndcg@10"].mean - popularity.metrics["ndcg@10"].mean
        assert popularity.ahead["ndcg@10"].mean == pytest.approx(gap)
        assert popularity.ahead["ndcg@10"].low > 0
        for row in setting.rows:
            for value in row.metrics.values():
                assert value.low <= value.mean <= value.high
            assert row.metrics["hr@20"].mean == 1  # k is the size of the catalogue
    everything = report.settings[1]
    assert everything.chance["hr@10"] == pytest.approx(10 / ITEMS)
    assert everything.ceiling == 1
    assert everything.candidates == ITEMS
    assert report.settings[0].candidates == ITEMS - 5
    assert report.cold_share == 0
    assert report.median_history == 5


def test_validation_values_equal_the_headline() -> None:
    cases, histories, split = feed()
    headline = settings_of(split, cases, histories)[0]
    light = validation_values(noisy(cases, histories, noise=0.5), cases, histories, headline, names=["ndcg@10", "hr@7"])
    assert list(light) == ["ndcg@10", "hr@7"]
    assert light["ndcg@10"].mean() == pytest.approx(run().headline.rows[0].metrics["ndcg@10"].mean)


def test_settings_follow_the_split() -> None:
    cases, histories, split = feed("cold_items")
    assert [setting.name for setting in settings_of(split, cases, histories)] == [
        "cold items",
        "all items but the history",
        "all items",
    ]
    cases, histories, split = feed("last_day", repeats=True)
    assert [setting.name for setting in settings_of(split, cases, histories)] == [
        "all items",
        "all items but the history",
    ]


def test_cold_items() -> None:
    report = run("cold_items")
    assert report.cold_share == 1
    assert report.headline.candidates == 5
    assert report.headline.ceiling == 1
    assert report.headline.id_ceiling == 0
    assert report.headline.rows[1].metrics["hr@1"].mean == 0  # popularity ties all cold items, pessimistically
    assert report.headline.rows[1].expected["hr@1"] == pytest.approx(1 / 5)
    assert report.headline.chance["hr@1"] == pytest.approx(1 / 5)


def test_what_cold_items_cost_warm_ones() -> None:
    cases, histories, split = feed("cold_items")
    warm = replace(cases, history_stops=cases.history_stops - 1, target_role=0)
    warm = replace(warm, target_starts=cases.target_starts - 1, target_stops=cases.target_stops - 1)
    table = np.random.default_rng(0).normal(size=(USERS, ITEMS))
    table[:, ITEMS - 5 :] += 2  # this scorer prefers what it never saw
    report = evaluate(
        {"model": Fixed(table)}, warm, CATALOGUE, histories, replace(split, warm=warm), part="warm", bootstrap=QUICK
    )
    assert [(table.name, table.pool) for table in report.settings][-1] == ("warm items", "cold")
    targets = histories.item_rows[warm.target_starts]
    lost = []
    for case, target in enumerate(targets):
        seen = histories.item_rows[histories.offsets[case] : warm.history_stops[case]]
        left = [row for row in range(ITEMS) if row not in seen]
        better = {row for row in left if table[case, row] > table[case, target]}
        lost.append(int(len(better & set(range(ITEMS - 5))) < 10) - int(len(better) < 10))
    assert report.cold_cost["hr@10"].mean == pytest.approx(np.mean(lost))
    assert np.mean(lost) > 0.02
    assert any("cost warm ones" in note for text in text_tables(report) for note in text.notes)
    assert json.loads(json.dumps(report.to_dict()))["cold_cost"]["hr@10"]["mean"] == pytest.approx(np.mean(lost))
    assert run("cold_items").cold_cost == {}


def test_a_setting_without_targets_is_left_out_and_no_cases_at_all_are_an_error() -> None:
    cases, histories, split = feed(repeats=True)
    report = evaluate({"model": noisy(cases, histories, noise=1.0)}, cases, CATALOGUE, histories, split)
    assert [setting.name for setting in report.settings] == ["all items"]
    assert report.repeat_share == 1
    with pytest.raises(FeedError, match="at least one case"):
        evaluate({"model": Fixed([[0.0]])}, cases.take(np.zeros(0, np.int64)), CATALOGUE, histories, split)


def test_knockout_is_the_paired_loss() -> None:
    report = run()
    (entry,) = report.knockouts
    full = report.headline.rows[0].metrics["ndcg@10"].mean
    assert entry.losses["ndcg@10"].mean == pytest.approx(full - entry.metrics["ndcg@10"])
    assert entry.losses["ndcg@10"].low > 0


def test_compare_gives_the_paired_difference(tmp_path: Path) -> None:
    better, worse = run(noise=0.4), run(noise=2.0)
    write_report(better, [], [], tmp_path / "a")
    write_report(worse, [], [], tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b", bootstrap=QUICK)
    assert list(found.settings) == ["all items but the history", "all items"]
    entry = found.settings["all items"]["ndcg@10"]
    assert entry.first == pytest.approx(better.settings[1].rows[0].metrics["ndcg@10"].mean)
    assert entry.second == pytest.approx(worse.settings[1].rows[0].metrics["ndcg@10"].mean)
    assert entry.difference.mean == pytest.approx(entry.first - entry.second)
    assert entry.difference.p_value < 0.05
    json.dumps(found.to_dict())
    same = compare(tmp_path / "a", tmp_path / "a").settings["all items"]["hr@10"].difference
    assert (same.mean, same.p_value) == (0, 1)
    table = comparison_tables(found, first="a", second="b")[0]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_compare_refuses_other_cases(tmp_path: Path) -> None:
    write_report(run(), [], [], tmp_path / "a")
    write_report(run("cold_items"), [], [], tmp_path / "cold")
    with pytest.raises(ArtifactError, match="same cases"):
        compare(tmp_path / "a", tmp_path / "cold")
    with pytest.raises(ArtifactError):
        compare(tmp_path / "a", tmp_path / "nothing")
    table = pd.read_parquet(tmp_path / "a" / "cases.parquet")
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "report.json").write_bytes((tmp_path / "a" / "report.json").read_bytes())
    table.iloc[1:].to_parquet(tmp_path / "fewer" / "cases.parquet")
    with pytest.raises(ArtifactError, match="cases that differ"):
        compare(tmp_path / "a", tmp_path / "fewer")


def test_text_tables_are_whole() -> None:
    report = run()
    tables = text_tables(report)
    assert [table.title for table in tables] == [
        "toy test: all items but the history",
        "toy test: all items",
        "what each knock-out costs",
    ]
    for table in tables:
        assert all(len(row) == len(table.header) for row in table.rows)
    first = report.headline.rows[0].metrics["hr@10"]
    assert first.high == 1
    assert tables[0].rows[0][:2] == ["model", f".{first.mean * 1e4:04.0f} [.{first.low * 1e4:04.0f}, 1.0000]"]
    assert tables[0].rows[-1][0] == "chance"


def test_text_table_of_captions_against_pictures() -> None:
    table = text_tables(replace(run(), crossmodal=crossmodal_of(unseen=False)))[-1]
    assert table.title == "a caption finds its own picture"
    assert all(len(row) == len(table.header) for row in table.rows)
    for rows, direction in ((table.rows[:3], "caption to picture"), (table.rows[3:], "picture to caption")):
        model, frozen, chance = rows
        sure, never = "1.0000 [1.0000, 1.0000]", ".0000 [.0000, .0000]"
        assert model == [direction, "model", sure, sure, sure, "1"]
        assert frozen == [direction, "frozen features + ridge", never, never, sure, "12"]
        assert chance == [direction, "chance", ".0833", ".8333", "1.0000", "6"]
    assert "12 posts are asked about" in table.notes[0]
    assert "Fewer than 100 posts are new to training" in table.notes[0]
    assert "from 1,500 other posts" in table.notes[2]
    assert table.notes[3].startswith(
        "recall@10, caption to picture: model minus frozen features + ridge +1.0000 [+1.0000"
    )


def test_a_feed_on_disk(tmp_path: Path) -> None:
    interactions = [(f"u{user}", f"i{(user + step) % 7}", 10 * user + step) for user in range(6) for step in range(5)]
    folder = write_feed(tmp_path / "feed", interactions=interactions, captions={"i0": "red", "i1": "blue"})
    catalogue, histories, split = Catalogue.load(folder), Histories.load(folder), Split.load(folder)
    cases = split.test
    found = standard_baselines(
        cases,
        histories,
        split.train_events,
        vectors={"text": torch.eye(7)},
        present={"text": torch.from_numpy(catalogue.caption_rows >= 0)},
    )
    scorers = {"model": Fixed(np.zeros((len(cases), 7))), **found}
    report = evaluate(scorers, cases, catalogue, histories, split, bootstrap=QUICK)
    assert report.headline.cases == 6
    model = report.headline.rows[0]
    assert model.expected["hr@1"] == pytest.approx(report.headline.chance["hr@1"])
    assert model.metrics["hr@1"].mean == 0
    page = write_report(
        report, example_users(report.ranks[report.headline.name], cases, histories, catalogue), [], tmp_path
    )
    assert "blue" in page.read_text(encoding="utf-8")
