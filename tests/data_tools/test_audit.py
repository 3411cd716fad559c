"""The audit finds each planted fault, reports ceilings that can be counted by hand, and is silent on clean feeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.audit import AuditReport, audit, percentiles
from data_tools.duplicates import (
    NEAR_BITS,
    components,
    count_bits,
    difference_hash,
    fold,
    near_captions,
    near_pairs,
    near_pictures,
    picture_grids,
    sim_hash,
)
from data_tools.split_checks import gini
from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import DAY_MS
from mmrec.storage import read_array, read_json, write_array, write_json
from tests.feeds import write_feed

CHAIN = [(user, item, time) for user in ("u", "v") for time, item in enumerate("abcd")]


def photo(seed: int, *, height: int = 160, width: int = 120) -> np.ndarray:
    """Blotches of random colours on white, as a product photo has; the same at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 6, 3), dtype=np.uint8)
    coarse[:, [0, 5]] = 255
    return np.ascontiguousarray(coarse[np.arange(height) * 10 // height][:, np.arange(width) * 6 // width])


def codes(report: AuditReport, severity: str) -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in report.findings if finding.severity == severity}


def damage(feed: Path, name: str, array: np.ndarray) -> None:
    write_array(feed / "splits" / "leave_last_out" / name, array)


def test_a_clean_feed_has_no_errors(tmp_path: Path) -> None:
    captions = {item: f"post {item}" for item in "abcd"}
    feed = write_feed(tmp_path / "f", interactions=CHAIN, captions=captions, pictures={"a": photo(0)})
    report = audit(feed)
    assert not report.failed
    assert codes(report, "error") == set()
    assert codes(report, "warning") == {("few-cases", "leave_last_out"), ("future-candidates", "leave_last_out")}


def test_targets_in_training_are_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN)
    damage(feed, "train_events.npy", np.ones(8, dtype=np.bool_))
    report = audit(feed)
    assert report.failed
    assert codes(report, "error") == {("target-in-train", "leave_last_out")}
    found = [finding for finding in report.findings if finding.code == "target-in-train"]
    assert [(finding.count, finding.examples) for finding in found] == [(2, ("u", "v"))] * 2


def test_histories_that_see_their_target_are_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN)
    test = np.array(read_array(feed / "splits" / "leave_last_out" / "test.npy"))
    test[0, 1] += 1
    damage(feed, "test.npy", test)
    assert codes(audit(feed), "error") == {("history-sees-target", "leave_last_out")}
    test[0, 1] = 0
    damage(feed, "test.npy", test)
    assert codes(audit(feed), "error") == {("empty-history", "leave_last_out")}


def test_last_day_histories_are_judged_by_the_day(tmp_path: Path) -> None:
    events = [("u", "a", 0), ("u", "b", DAY_MS), ("u", "c", DAY_MS + 5)]
    feed = write_feed(tmp_path / "f", interactions=events, split="last_day")
    assert not audit(feed).failed
    write_array(feed / "splits" / "last_day" / "test.npy", np.array([[0, 2, 2, 3]]))
    assert codes(audit(feed), "error") == {("history-sees-target", "last_day")}


def test_cold_items_in_training_are_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN, split=None)
    write_split(feed, name="cold", kind="cold_items", choices=SplitChoices(cold_ids=("d",), validation_cold_count=0))
    write_array(feed / "splits" / "cold" / "train_events.npy", np.ones(8, dtype=np.bool_))
    assert codes(audit(feed), "error") == {("cold-in-train", "cold"), ("target-in-train", "cold")}


def test_training_after_the_test_window_opens_is_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=[*CHAIN, ("w", "a", 2), ("w", "b", 3)], split=None)
    write_split(feed, name="t", kind="global_time", choices=SplitChoices(validation_from=2, test_from=3))
    assert not audit(feed).failed
    train = np.array(read_array(feed / "splits" / "t" / "train_events.npy"))
    train[8] = True  # w's first event opens the validation window and is no target: it has no history
    write_array(feed / "splits" / "t" / "train_events.npy", train)
    assert codes(audit(feed), "error") == {("train-after-test", "t")}


def test_targets_that_are_not_candidates_yet_are_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN, split=None)
    write_split(feed, name="t", kind="leave_last_out", choices=SplitChoices(existing_only=True))
    assert not audit(feed).failed
    items = Catalogue.load(feed).attributes
    items.loc[3, "first_seen"] = 99
    items.to_parquet(feed / "items.parquet")
    assert codes(audit(feed), "error") == {("future-target", "t")}


def test_splits_of_another_feed_are_an_error(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN)
    write_json(feed / "manifest.json", {**read_json(feed / "manifest.json"), "feed_hash": "another"})
    assert codes(audit(feed), "error") == {("stale-split", "leave_last_out")}


def test_events_out_of_order_and_doubles(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=[*CHAIN, ("v", "d", 3)])
    assert ("duplicate-events", "feed") in codes(audit(feed), "warning")
    times = np.array(read_array(feed / "events.timestamps.npy"))
    times[:2] = [1, 0]
    write_array(feed / "events.timestamps.npy", times)
    report = audit(feed)
    assert codes(report, "error") == {("unsorted-events", "feed")}
    assert report.findings[0].examples == ("u",)


def test_ceilings_and_shares_by_hand(tmp_path: Path) -> None:
    # Trained: a, b (u, v, w before time 3).  Asked at time 5: u again a (a repeat), v the new c, w both b and c.
    events = [("u", "a", 1), ("u", "a", 5), ("v", "b", 1), ("v", "c", 5), ("w", "a", 2), ("w", "b", 5), ("w", "c", 5)]
    feed = write_feed(tmp_path / "f", interactions=[*events, ("x", "d", 9)], split=None)
    choices = SplitChoices(validation_from=3, test_from=4, existing_only=False)
    write_split(feed, name="t", kind="global_time", choices=choices)
    report = audit(feed)
    test = report.splits["t"]["test"]
    assert isinstance(test, dict)
    assert (test["cases"], test["targets"]) == (3, 4)
    assert test["cold_target_share"] == pytest.approx(2 / 4)
    assert test["repeat_share"] == pytest.approx(1 / 4)
    assert test["hit_rate_ceilings"] == {
        "ids_only": pytest.approx(2 / 3),
        "seen_filtered": pytest.approx(2 / 3),
        "ids_only_seen_filtered": pytest.approx(1 / 3),
        "existing_only": 1.0,
    }
    assert test["not_yet_existing_candidate_share"] == pytest.approx(1 / 4), "d comes at time 9"
    assert codes(report, "warning") >= {("no-validation", "t"), ("future-candidates", "t")}
    assert report.figures["simultaneous_share"] == pytest.approx(2 / 8)
    assert report.figures["neither_share"] == 1.0


def test_cold_posts_that_repeat_trained_ones(tmp_path: Path) -> None:
    captions = {"a": "Red scarf", "b": "blue hat", "c": "red  SCARF!", "d": "blue hat"}
    pictures = {"a": photo(1), "b": photo(2), "c": photo(1, height=240, width=180), "d": photo(3)}
    # u is asked about c, whose content is a's in another form; v about d, which has b's caption and its own picture.
    events = [(user, item, time) for user in ("u", "v") for time, item in enumerate("ab")]
    events += [("u", "c", 2), ("v", "d", 2)]
    feed = write_feed(tmp_path / "f", interactions=events, captions=captions, pictures=pictures, split=None)
    choices = SplitChoices(cold_ids=("c", "d"), validation_cold_count=0)
    write_split(feed, name="cold", kind="cold_items", choices=choices)
    report = audit(feed)
    found = {finding.code: finding for finding in report.findings if finding.where == "cold"}
    assert (found["cold-twins"].severity, found["cold-twins"].examples) == ("warning", ("c",))
    assert (found["cold-shared-caption"].severity, found["cold-shared-caption"].examples) == ("note", ("c", "d"))
    assert found["cold-shared-picture"].examples == ("c",)
    whole = {finding.code: finding.count for finding in report.findings if finding.where == "feed"}
    assert (whole["near-captions"], whole["near-pictures"]) == (2, 2), "Red scarf and red SCARF; a's and c's picture"


def test_json_and_selection_of_splits(tmp_path: Path) -> None:
    feed = write_feed(tmp_path / "f", interactions=CHAIN, split=None)
    lacking = {("no-split", "feed"), ("empty-posts", "feed"), ("no-captions", "feed"), ("no-pictures", "feed")}
    assert codes(audit(feed), "warning") == lacking
    write_split(feed, name="one", kind="leave_last_out", choices=SplitChoices())
    seen: list[tuple[int, int]] = []
    report = audit(feed, splits=["one"], progress=lambda done, total: seen.append((done, total)))
    assert list(report.splits) == ["one"]
    write_json(tmp_path / "audit.json", report.to_json())
    assert read_json(tmp_path / "audit.json")["failed"] is False


def test_gini() -> None:
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)
    assert gini(np.array([1, 3])) == pytest.approx(1 / 4)
    assert gini(np.array([0, 0])) == 0


def test_percentiles() -> None:
    assert percentiles(np.array([])) == {}
    figures = percentiles(np.arange(101))
    assert (figures["mean"], figures["p95"], figures["max"]) == (50, 95, 100)


def test_picture_grid_is_the_mean_colour_of_each_cell(tmp_path: Path) -> None:
    ramp = np.zeros((16, 18, 3), dtype=np.uint8)
    ramp[:] = np.arange(18)[None, :, None] * 10
    tiny = np.full((1, 1, 3), 7, dtype=np.uint8)
    feed = write_feed(tmp_path / "f", interactions=CHAIN, pictures={"a": ramp, "b": tiny}, split=None)
    grids = picture_grids(Catalogue.load(feed).pictures, lambda _: None)
    assert grids[0, 0, :, 0].tolist() == [5, 25, 45, 65, 85, 105, 125, 145, 165]
    assert np.all(grids[1] == 7)
    assert count_bits(difference_hash(grids)).tolist() == [64, 0]


def test_pictures_of_other_size_or_noise_are_near_and_colour_variants_are_not(tmp_path: Path) -> None:
    original = photo(4)
    noise = np.random.default_rng(0).integers(-3, 4, original.shape)
    noisy = np.clip(original.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    recoloured = np.ascontiguousarray(original[..., ::-1])
    pictures = {"a": original, "b": photo(4, height=320, width=240), "c": noisy, "d": photo(5), "e": recoloured}
    feed = write_feed(tmp_path / "f", interactions=CHAIN, pictures=pictures, split=None)
    pairs = near_pictures(Catalogue.load(feed).pictures, lambda _: None)
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 1), (0, 2), (1, 2)}


def test_captions_that_differ_in_form_are_near(tmp_path: Path) -> None:
    captions = {
        "a": "Cotton T-shirt, with print.",
        "b": "COTTON t-shirt with print",
        "c": "Wool jumper",
        "d": "",
        "e": "x",
    }
    feed = write_feed(tmp_path / "f", interactions=CHAIN, captions=captions, split=None)
    pairs = near_captions(Catalogue.load(feed).captions, lambda _: None)
    assert pairs.tolist() == [[0, 1]]
    assert fold("Ｆｕｌｌ—width ß") == "full width ss"
    assert sim_hash("日本語のテキスト") != sim_hash("別のテキストです")


@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), flips=st.lists(st.integers(0, 63), max_size=6)
)
@settings(max_examples=50, deadline=None)
def test_near_pairs_equal_the_naive_twin(hashes: list[int], flips: list[int]) -> None:
    changed = hashes[0]
    for bit in flips:
        changed ^= 1 << bit
    values = np.array([*hashes, changed, hashes[-1]], dtype=np.uint64)
    naive = [
        [first, second]
        for first in range(len(values))
        for second in range(first + 1, len(values))
        if (int(values[first]) ^ int(values[second])).bit_count() <= NEAR_BITS
    ]
    assert near_pairs(values).tolist() == naive


@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_components_equal_the_naive_twin(pairs: list[tuple[int, int]]) -> None:
    labels = list(range(10))
    for _ in range(10):
        for first, second in pairs:
            labels[first] = labels[second] = min(labels[first], labels[second])
    assert components(10, np.array(pairs, dtype=np.int64).reshape(-1, 2)).tolist() == labels
