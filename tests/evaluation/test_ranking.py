from __future__ import annotations

import numpy as np
import pytest

from mmrec.errors import ArtifactError, FeedError
from mmrec.evaluation.metrics import UNREACHABLE, case_metrics
from mmrec.evaluation.ranking import CaseScorer, Ranks, Setting, rank_cases, rank_settings
from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases
from tests.evaluation.toys import Fixed, cases_of, histories_of

ITEMS = 12
SETTINGS = [
    Setting("all"),
    Setting("filtered", filter_seen=True),
    Setting("cold", pool="cold"),
    Setting("existing", existing_only=True),
    Setting("all at once", pool="cold", filter_seen=True, existing_only=True),
]


def random_feed(seed: int) -> tuple[Cases, Histories, np.ndarray, np.ndarray]:
    """Cases with one to four targets, repeats among them, integer scores with many ties."""
    generator = np.random.default_rng(seed)
    number = [int(generator.integers(1, 5)) for _ in range(9)]
    sequences = [generator.integers(0, ITEMS, size=count + int(generator.integers(0, 5))).tolist() for count in number]
    histories = histories_of(sequences)
    cases = cases_of(histories, number, num_items=ITEMS)
    table = generator.integers(-2, 3, size=(len(cases), ITEMS)).astype(np.float64)
    return cases, histories, table, generator.integers(0, 6, size=ITEMS)


def naive(
    table: np.ndarray, cases: Cases, histories: Histories, setting: Setting, first_seen: np.ndarray
) -> dict[int, dict[int, tuple[int, int, list[int]]]]:
    """Case to target to (above, tied, all candidates sorted) by a full sort and Python loops."""
    result: dict[int, dict[int, tuple[int, int, list[int]]]] = {}
    for case in range(len(cases)):
        seen = {int(histories.item_rows[event]) for event in cases.histories(histories)[case]}
        events = cases.targets(histories)[case]
        time = histories.timestamps[events[0]]
        targets = {int(histories.item_rows[event]) for event in events} - (seen if setting.filter_seen else set())
        candidates = [
            item
            for item in range(ITEMS)
            if not (setting.filter_seen and item in seen)
            and not (setting.existing_only and first_seen[item] > time)
            and not (setting.pool == "cold" and cases.item_roles[item] != cases.target_role)
        ]
        ordered = sorted(candidates, key=lambda item, case=case: -table[case, item])
        for target in targets:
            if target not in candidates:
                entry = (UNREACHABLE, 0, ordered)
            else:
                scores = [table[case, item] for item in ordered]
                own = table[case, target]
                entry = (sum(s > own for s in scores), sum(s == own for s in scores) - 1, ordered)
            result.setdefault(case, {})[target] = entry
    return result


@pytest.mark.parametrize("chunk_elements", [1, 5 * ITEMS, 1 << 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_full_sort(seed: int, chunk_elements: int) -> None:
    cases, histories, table, first_seen = random_feed(seed)
    found = rank_settings(
        Fixed(table), cases, histories, SETTINGS, first_seen=first_seen, top_k=5, chunk_elements=chunk_elements
    )
    for setting in SETTINGS:
        ranks = found[setting.name]
        expected = naive(table, cases, histories, setting, first_seen)
        assert ranks.cases.tolist() == sorted(expected)
        assert len(ranks.cases) + ranks.dropped_cases == len(cases)
        for position, case in enumerate(ranks.cases):
            own = slice(ranks.places.offsets[position], ranks.places.offsets[position + 1])
            triples = zip(ranks.targets[own], ranks.places.above[own], ranks.places.tied[own], strict=True)
            assert {int(t): (int(a), int(e)) for t, a, e in triples} == {
                target: (above, tied) for target, (above, tied, _) in expected[case].items()
            }
            ordered = next(iter(expected[case].values()))[2]
            assert ranks.num_candidates[position] == len(ordered)
            top = [int(item) for item in ranks.top_items[position] if item >= 0]
            assert len(top) == min(5, len(ordered))
            assert set(top) <= set(ordered)
            assert [table[case, item] for item in top] == [table[case, item] for item in ordered[:5]]
            assert ranks.top_scores[position, : len(top)].tolist() == [table[case, item] for item in top]


def simple(scores: list[float], *, history: list[int], targets: list[int], **choices: object) -> Ranks:
    histories = histories_of([[*history, *targets]])
    cases = cases_of(histories, [len(targets)], num_items=len(scores))
    setting = Setting("one", filter_seen=bool(choices.get("filter_seen", False)))
    return rank_cases(Fixed([scores]), cases, histories, setting)


def test_history_stays_a_candidate_unless_filtered() -> None:
    scores = [9.0, 8.0, 7.0, 6.0]
    assert simple(scores, history=[0, 1], targets=[2]).places.ranks.tolist() == [3]
    assert simple(scores, history=[0, 1], targets=[2], filter_seen=True).places.ranks.tolist() == [1]


def test_filter_drops_repeated_targets_and_cases_without_another() -> None:
    mixed = simple([1.0, 2.0, 3.0], history=[0], targets=[0, 1], filter_seen=True)
    assert mixed.targets.tolist() == [1]
    assert (mixed.dropped_targets, mixed.dropped_cases) == (1, 0)
    none = simple([1.0, 2.0, 3.0], history=[0], targets=[0], filter_seen=True)
    assert len(none.cases) == 0
    assert (none.dropped_targets, none.dropped_cases) == (1, 1)
    kept = simple([1.0, 2.0, 3.0], history=[0], targets=[0])
    assert kept.places.ranks.tolist() == [3]


def test_other_targets_are_candidates_and_an_item_chosen_twice_is_one_target() -> None:
    ranks = simple([5.0, 4.0, 3.0], history=[], targets=[1, 0, 1])
    assert ranks.targets.tolist() == [0, 1]
    assert ranks.places.ranks.tolist() == [1, 2]


def test_catalogue_of_one_item_and_k_larger_than_the_catalogue() -> None:
    ranks = simple([0.5], history=[0], targets=[0])
    assert ranks.places.ranks.tolist() == [1]
    assert ranks.top_items.tolist() == [[0]]
    assert case_metrics(ranks.places)["hr@50"].tolist() == [1]


def test_infinite_scores_of_candidates_do_not_tie_with_what_is_no_candidate() -> None:
    ranks = simple([0.0, float("-inf"), 1.0], history=[0], targets=[1], filter_seen=True)
    assert ranks.places.ranks.tolist() == [2]
    assert ranks.top_items[0].tolist() == [2, 1, -1]


def test_nan_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="NaN"):
        simple([0.0, float("nan")], history=[], targets=[0])


def test_existing_only_needs_first_seen() -> None:
    histories = histories_of([[0, 1]])
    cases = cases_of(histories, [1], num_items=2)
    with pytest.raises(FeedError, match="first_seen"):
        rank_cases(Fixed([[0.0, 1.0]]), cases, histories, Setting("x", existing_only=True))


def test_scores_are_asked_for_in_bounded_chunks_and_never_for_dropped_cases() -> None:
    histories = histories_of([[0, 1], [1, 1], [2, 0], [0, 2]])
    cases = cases_of(histories, [1, 1, 1, 1], num_items=3)
    scorer = Fixed(np.zeros((4, 3)))
    assert isinstance(scorer, CaseScorer)
    ranks = rank_cases(scorer, cases, histories, Setting("f", filter_seen=True), chunk_elements=6)
    assert scorer.asked == [2, 1]
    assert ranks.cases.tolist() == [0, 2, 3]


def test_expanded_scores_are_not_written_to() -> None:
    histories = histories_of([[0, 1], [1, 0]])
    cases = cases_of(histories, [1, 1], num_items=2)
    scorer = Fixed(np.array([[1.0, 2.0]]))
    scorer.scores = lambda chosen: scorer.table.expand(len(chosen), -1)  # type: ignore[method-assign]
    ranks = rank_cases(scorer, cases, histories, Setting("f", filter_seen=True))
    assert ranks.places.ranks.tolist() == [1, 1]
    assert scorer.table.tolist() == [[1.0, 2.0]]
