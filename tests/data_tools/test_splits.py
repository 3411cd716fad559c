"""Splits against a twin written with plain loops, against their laws, and against the figures of real feeds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from mmrec.errors import FeedError, RequestError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import DAY_MS, Histories
from mmrec.feed.splits import KINDS, TEST_COLD, VALIDATION_COLD, WARM, Cases, Split
from tests.feeds import write_feed

REAL = Path(__file__).parents[3] / "shared" / "data"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
WARM_SHARE = 0.7
Interactions = list[tuple[str, str, int]]


@st.composite
def interactions(draw: st.DrawFn) -> Interactions:
    """A few users, items and times (a third of a day apart), so that repeats and ties are common."""
    events = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 8)), min_size=3, max_size=30))
    return [(f"u{user}", f"i{item}", time * DAY_MS // 3) for user, item, time in events]


@dataclass(frozen=True)
class Question:
    """One case, spelled out: sorted lists so that order does not matter."""

    user: str
    history: tuple[tuple[int, str], ...]
    targets: tuple[tuple[int, str], ...]


def spelled(cases: Cases, histories: Histories, catalogue: Catalogue) -> set[Question]:
    def events(positions: np.ndarray) -> tuple[tuple[int, str], ...]:
        return tuple(
            sorted((int(histories.timestamps[p]), str(catalogue.item_ids[histories.item_rows[p]])) for p in positions)
        )

    history, targets = cases.histories(histories), cases.targets(histories)
    return {
        Question(str(histories.user_ids[cases.user_rows[c]]), events(history[c]), events(targets[c]))
        for c in range(len(cases))
    }


def by_user(events: Interactions) -> dict[str, list[tuple[int, str]]]:
    users: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in events:
        users.setdefault(user, []).append((time, item))
    return {user: sorted(own, key=lambda event: event[0]) for user, own in users.items()}


def naive(
    events: Interactions,
    kind: str,
    *,
    minimum: int,
    roles: dict[str, int],
    window: tuple[int, int] | None,
    successive: bool,
) -> tuple[set[Question], set[Question]]:
    """Return validation and test questions, one user at a time."""
    parts: tuple[set[Question], set[Question]] = (set(), set())

    def ask(part: int, user: str, targets: list[tuple[int, str]], *, before: int) -> None:
        history = [e for e in by_user(events)[user] if e[0] < before and roles.get(e[1], WARM) == WARM]
        if targets and len(history) >= minimum:
            parts[part].add(Question(user, tuple(sorted(history)), tuple(sorted(targets))))

    for user, own in by_user(events).items():
        if kind == "leave_last_out":
            for part, back in ((1, 1), (0, 2)):
                if len(own) >= back:
                    ask(part, user, [own[-back]], before=own[-back][0])
        elif kind == "last_day":
            days = sorted({time // DAY_MS for time, _ in own})
            for part, back in ((1, 1), (0, 2)):
                if len(days) >= back:
                    day = days[-back]
                    ask(part, user, [e for e in own if e[0] // DAY_MS == day], before=day * DAY_MS)
        elif kind == "global_time":
            assert window is not None
            for part, (start, stop) in enumerate([(window[0], window[1]), (window[1], 10**18)]):
                inside = [e for e in own if start <= e[0] < stop]
                for time in sorted({e[0] for e in inside})[: None if successive else 1]:
                    ask(part, user, [e for e in inside if e[0] == time], before=time)
        else:
            for part, role in ((0, VALIDATION_COLD), (1, TEST_COLD)):
                cold = [e for e in own if roles[e[1]] == role]
                if cold:
                    ask(part, user, [e for e in cold if e[0] == cold[-1][0]], before=cold[-1][0])
    return parts


@given(
    events=interactions(),
    minimum=st.integers(1, 2),
    window=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 3)),
    successive=st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_equals_the_naive_twin_and_keeps_the_laws(
    events: Interactions, minimum: int, window: tuple[int, int] | None, successive: bool
) -> None:
    choices = SplitChoices(
        minimum_history=minimum,
        cold_share=0.3,
        validation_cold_share=0.3,
        warm_share=WARM_SHARE,
        validation_from=window and window[0] * DAY_MS // 3,
        test_from=window and sum(window) * DAY_MS // 3,
        window_targets="successive" if successive else "first",
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        feed = write_feed(Path(folder) / "feed", interactions=events, split=None)
        histories, catalogue = Histories.load(feed), Catalogue.load(feed)
        for kind in KINDS:
            try:
                split = write_split(feed, name=kind, kind=kind, choices=choices)
            except FeedError:
                continue
            _check_against_twin(split, histories, catalogue, events=events, minimum=minimum)
            _check_warm(split, histories, catalogue, events=events, minimum=minimum)
            _check_laws(split, histories)


def _check_against_twin(
    split: Split, histories: Histories, catalogue: Catalogue, *, events: Interactions, minimum: int
) -> None:
    roles = {str(item): int(role) for item, role in zip(catalogue.item_ids, split.item_roles, strict=True)}
    window, successive = None, split.parameters.get("window_targets") == "successive"
    if split.kind == "global_time":
        window = (int(str(split.parameters["validation_from"])), int(str(split.parameters["test_from"])))
    validation, test = naive(events, split.kind, minimum=minimum, roles=roles, window=window, successive=successive)
    assert spelled(split.validation, histories, catalogue) == validation
    assert spelled(split.test, histories, catalogue) == test


def _check_warm(
    split: Split, histories: Histories, catalogue: Catalogue, *, events: Interactions, minimum: int
) -> None:
    """The held-out questions about warm items, one drawn user at a time."""
    assert (split.warm is not None) == (split.calibration is not None) == (split.kind == "cold_items")
    if split.warm is None or split.calibration is None:
        return
    roles = {str(item): int(role) for item, role in zip(catalogue.item_ids, split.item_roles, strict=True)}
    number = len(histories.user_ids)
    drawn = np.random.default_rng(9).choice(number, round(WARM_SHARE * number), replace=False)
    third = round(len(drawn) / 3)
    for cases, users in ((split.calibration, drawn[:third]), (split.warm, drawn[third:])):
        expected = set()
        for user in histories.user_ids[users]:
            warm = [event for event in by_user(events)[str(user)] if roles[event[1]] == WARM]
            before = [event for event in warm if event[0] < warm[-1][0]]
            if len(before) >= minimum:
                targets = [event for event in warm if event[0] == warm[-1][0]]
                expected.add(Question(str(user), tuple(sorted(before)), tuple(sorted(targets))))
        assert spelled(cases, histories, catalogue) == expected


def _check_laws(split: Split, histories: Histories) -> None:
    instants = histories.instants(days=split.kind == "last_day")
    assert not np.any(split.train_events & (split.item_roles[histories.item_rows] != WARM)), "cold items in train"
    for cases in split.parts.values():
        history, targets = cases.histories(histories), cases.targets(histories)
        for case in range(len(cases)):
            assert len(history[case]) >= 1
            assert len(targets[case]) >= 1
            assert not split.train_events[targets[case]].any(), "a target event is trained on"
            assert instants[history[case]].max() < instants[targets[case]].min(), "history sees its target's instant"
            assert np.all(split.item_roles[histories.item_rows[history[case]]] == WARM), "cold items in a history"
            assert set(histories.user_rows[np.append(history[case], targets[case])]) == {cases.user_rows[case]}
    asked = np.stack([split.test.user_rows, split.test.target_starts])
    if split.parameters.get("window_targets") != "successive":
        asked = asked[:1]
    assert np.unique(asked, axis=1).shape[1] == len(split.test), "one test case a user, or a target"


def test_train_is_everything_but_targets(tmp_path: Path) -> None:
    events = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "a", 5), ("w", "b", 1), ("w", "c", 2)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    split = write_split(feed, name="s", kind="leave_last_out", choices=SplitChoices())
    # u: a trains, b validates, c tests; v has one event, so it trains; w: b trains, c tests.
    assert split.train_events.tolist() == [True, False, False, True, True, False]
    assert split.validation.user_rows.tolist() == [0]
    assert split.test.user_rows.tolist() == [0, 2]


def test_simultaneous_last_events_do_not_see_each_other(tmp_path: Path) -> None:
    events = [("u", "a", 1), ("u", "b", 7), ("u", "c", 7), ("v", "a", 3), ("v", "b", 3)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    split = write_split(feed, name="s", kind="leave_last_out", choices=SplitChoices())
    histories = Histories.load(feed)
    assert split.test.user_rows.tolist() == [0], "v's two events are one instant: nothing comes before"
    assert split.test.histories(histories)[0].tolist() == [0]
    assert split.train_events.tolist() == [True, False, False, True, True]


def test_global_time_default_windows_are_whole_instants(tmp_path: Path) -> None:
    # Ten instants of one event: 80 % lie before the ninth, 90 % before the tenth.
    events = [("u", f"i{time}", time) for time in range(10)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    split = write_split(feed, name="s", kind="global_time", choices=SplitChoices())
    assert (split.parameters["validation_from"], split.parameters["test_from"]) == (8, 9)
    assert split.train_events.tolist() == [True] * 8 + [False] * 2
    assert split.existing_only
    given_times = SplitChoices(validation_from=4, test_from=6, existing_only=False)
    other = write_split(feed, name="s", kind="global_time", choices=given_times)
    assert other.train_events.tolist() == [True] * 4 + [False] * 6
    assert other.validation.targets(Histories.load(feed)).values.tolist() == [4]
    assert not Split.load(feed, "s").existing_only


def test_global_time_asks_once_a_window(tmp_path: Path) -> None:
    # The first instant of the window is its very start; the one after it is asked about in no part.
    events = [("u", "a", 0), ("u", "b", 4), ("u", "c", 5), ("u", "d", 6), ("u", "e", 7), ("v", "a", 4), ("v", "b", 6)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    split = write_split(
        feed, name="s", kind="global_time", choices=SplitChoices(validation_from=4, test_from=6, minimum_history=1)
    )
    histories = Histories.load(feed)
    assert split.validation.targets(histories).values.tolist() == [1], "v has nothing before time 4"
    assert split.test.targets(histories).values.tolist() == [3, 6]
    assert split.train_events.tolist() == [True, False, False, False, False, False, False]


def test_cold_draw_is_the_documented_one(tmp_path: Path) -> None:
    ids = [str(number) for number in range(40, 0, -1)]
    events = [("u", item, 10 + time) for time, item in enumerate(ids)] + [("v", item, 1) for item in ids]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    catalogue = Catalogue.load(feed)

    def drawn(split: Split, role: int) -> set[str]:
        return {str(item) for item in catalogue.item_ids[split.item_roles == role]}

    split = write_split(feed, name="s", kind="cold_items", choices=SplitChoices())
    cold = np.random.default_rng(7).choice(np.arange(1, 41), 8, replace=False)
    rest = [number for number in range(1, 41) if number not in cold]
    assert drawn(split, TEST_COLD) == {str(number) for number in cold}
    assert drawn(split, VALIDATION_COLD) == {
        str(number) for number in np.random.default_rng(8).choice(rest, 4, replace=False)
    }
    as_text = write_split(feed, name="t", kind="cold_items", choices=SplitChoices(sort_ids="text", cold_count=5))
    assert drawn(as_text, TEST_COLD) == set(np.random.default_rng(7).choice(sorted(ids), 5, replace=False))


def test_cold_items_by_list(tmp_path: Path) -> None:
    events = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 4)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    choices = SplitChoices(cold_ids=("c",), validation_cold_ids=("d",))
    split = write_split(feed, name="s", kind="cold_items", choices=choices)
    histories = Histories.load(feed)
    assert split.item_roles.tolist() == [WARM, WARM, TEST_COLD, VALIDATION_COLD]
    assert split.test.targets(histories).values.tolist() == [2]
    assert split.validation.histories(histories).values.tolist() == [0, 1], "the test-cold item is hidden"
    with pytest.raises(FeedError, match="'c' in both"):
        write_split(
            feed, name="s", kind="cold_items", choices=SplitChoices(cold_ids=("c",), validation_cold_ids=("c",))
        )
    with pytest.raises(RequestError, match="'z'"):
        write_split(feed, name="s", kind="cold_items", choices=SplitChoices(cold_ids=("z",)))


TWO_EACH: Interactions = [("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "b", 2)]


@pytest.mark.parametrize(
    ("events", "unit", "kind", "choices", "message"),
    [
        ([("u", "a", 1), ("v", "b", 2)], "ms", "leave_last_out", SplitChoices(), "at least two interactions"),
        ([("u", "a", 1), ("u", "a", 2)], "ms", "leave_last_out", SplitChoices(), "at least two items"),
        ([("u", "a", 1), ("u", "b", 1)], "ms", "leave_last_out", SplitChoices(), "at least one test case"),
        (TWO_EACH, "ms", "leave_last_out", SplitChoices(minimum_history=0), "minimum_history"),
        (TWO_EACH, "ms", "global_time", SplitChoices(), "three different times"),
        (TWO_EACH, "ms", "global_time", SplitChoices(test_from=5), "both validation_from and test_from"),
        (TWO_EACH, "ms", "global_time", SplitChoices(validation_from=5, test_from=5), "before test_from"),
        (TWO_EACH, "ms", "global_time", SplitChoices(validation_from=0, test_from=1), "at least one test case|train"),
        (TWO_EACH, "ms", "global_time", SplitChoices(validation_from=-1, test_from=2), "tests all|at least one"),
        (TWO_EACH, "ms", "global_time", SplitChoices(test_share=0.6, validation_share=0.5), "sum below 1"),
        (TWO_EACH, "order", "global_time", SplitChoices(), "real timestamps"),
        (TWO_EACH, "order", "last_day", SplitChoices(), "real timestamps"),
        (TWO_EACH, "order", "leave_last_out", SplitChoices(existing_only=True), "real timestamps"),
        (TWO_EACH, "ms", "cold_items", SplitChoices(cold_count=2), "cold items"),
        (TWO_EACH, "ms", "cold_items", SplitChoices(cold_count=0), "cold items"),
        (TWO_EACH, "ms", "cold_items", SplitChoices(cold_count=1, sort_ids="integer"), "plain integers"),
        (TWO_EACH, "ms", "last_dya", SplitChoices(), "last_day"),
    ],
)
def test_errors(
    tmp_path: Path, events: Interactions, unit: str, kind: str, choices: SplitChoices, message: str
) -> None:
    feed = write_feed(tmp_path / "f", interactions=events, unit=unit, split=None)
    with pytest.raises(FeedError, match=message):
        write_split(feed, name="s", kind=kind, choices=choices)
    assert not (feed / "splits" / "s").exists(), "nothing half-written"


def test_all_tested_and_bad_name(tmp_path: Path) -> None:
    events = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]
    feed = write_feed(tmp_path / "f", interactions=events, split=None)
    with pytest.raises(FeedError, match="tests all of them"):
        write_split(feed, name="s", kind="global_time", choices=SplitChoices(validation_from=0, test_from=2))
    with pytest.raises(FeedError, match="split name"):
        write_split(feed, name="../s", kind="leave_last_out", choices=SplitChoices())


def real_feed(tmp_path: Path, name: str, unit: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip("the real feeds are not on this machine")
    events = pd.read_csv(REAL / name / "interactions.csv", dtype=str)
    items = pd.read_csv(REAL / name / "items.csv", dtype=str, usecols=["item_id"])
    rows = zip(events["user_id"], events["item_id"], events["timestamp"].astype(int), strict=True)
    return write_feed(tmp_path / name, interactions=list(rows), item_ids=list(items["item_id"]), unit=unit, split=None)


def test_hm_protocols(tmp_path: Path) -> None:
    feed = real_feed(tmp_path, "hm", "s")
    histories = Histories.load(feed)
    split = write_split(feed, name="hm-last-day", kind="last_day", choices=SplitChoices())
    assert (len(split.test), len(split.validation)) == (5505, 1259)
    assert np.median(split.test.histories(histories).lengths) == 3
    cold = write_split(feed, name="hm-cold", kind="cold_items", choices=SplitChoices())
    assert np.bincount(cold.item_roles).tolist() == [7167 - 1433 - 717, 717, 1433]
    before = write_split(feed, name="c", kind="cold_items", choices=SplitChoices(validation_cold_count=0))
    assert len(before.test) == 2492


def test_ml1m_protocols(tmp_path: Path) -> None:
    feed = real_feed(tmp_path, "ml1m", "order")
    warm = write_split(feed, name="ml1m-warm", kind="leave_last_out", choices=SplitChoices())
    assert (len(warm.test), len(warm.validation)) == (6040, 6040)
    assert int(warm.train_events.sum()) == 999_609 - 2 * 6040
    choices = SplitChoices(minimum_history=5, validation_cold_count=341)
    cold = write_split(feed, name="ml1m-cold", kind="cold_items", choices=choices)
    assert np.bincount(cold.item_roles).tolist() == [3416 - 683 - 341, 341, 683]
    choices = SplitChoices(minimum_history=5, validation_cold_count=0)
    assert len(write_split(feed, name="c", kind="cold_items", choices=choices).test) == 6034
