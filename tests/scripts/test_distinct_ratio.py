"""The simulation, its closed form and arithmetic by hand say the same."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "distinct_ratio.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("distinct_ratio", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def test_two_posts_by_hand(script):
    law = script.Zipf.of(2, exponent=1.0)  # 1 : 1/2
    assert law.probabilities == pytest.approx([2 / 3, 1 / 3])
    assert law.expected_distinct(1) == pytest.approx(1)
    # Two events miss the first post with 1/9 and the second with 4/9.
    assert law.expected_distinct(2) == pytest.approx((1 - 1 / 9) + (1 - 4 / 9))
    # One negative of two posts misses each of them half of the time.
    assert law.expected_distinct(2, negatives=1) == pytest.approx((1 - 1 / 18) + (1 - 4 / 18))
    assert law.expected_distinct(0, negatives=1) == pytest.approx(1)
    assert law.expected_distinct(5, negatives=2) == pytest.approx(2)
    # After one event the next names another post where the two differ.
    assert law.chance_of_new(1) == pytest.approx(2 * (2 / 3) * (1 / 3))


def test_one_post_is_always_named(script):
    law = script.Zipf.of(1, exponent=1.0)
    assert law.expected_distinct(0) == 0
    assert law.expected_distinct(3) == 1
    assert law.chance_of_new(3) == 0


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.2])
def test_blocks_of_the_tail_change_nothing(script, exponent):
    num_items = 10 * script.HEAD
    law = script.Zipf.of(num_items, exponent=exponent)
    assert law.num_items == num_items
    assert law.starts[0] == 0
    assert (law.starts[1:] == np.cumsum(law.counts)[:-1]).all()
    weights = np.arange(1, num_items + 1, dtype=np.float64) ** -exponent
    exact = weights / weights.sum()
    assert np.repeat(law.probabilities, law.counts) == pytest.approx(exact, rel=1e-3)
    for events in (1000, 100_000):
        assert law.expected_distinct(events) == pytest.approx((1 - (1 - exact) ** events).sum(), rel=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.3])
@pytest.mark.parametrize("num_items", [50, 30_000, 10**9])
def test_simulation_agrees_with_the_closed_form(script, exponent, num_items):
    law = script.Zipf.of(num_items, exponent=exponent)
    shape = script.Shape(windows=32, mean_length=12.0, history_length=20, negatives=16, bucket=4)
    batches = 60
    counted = script.simulate(law, shape, batches=batches, generator=np.random.default_rng(1))
    # Whether one post is named speaks against another's being named, so the variance is below that of as many coins:
    # below the mean, and below what is left of the catalogue.
    variance = min(counted.expected, num_items - counted.expected)
    assert counted.distinct == pytest.approx(counted.expected, abs=5 * math.sqrt(variance / batches) + 1e-9)
    assert counted.distinct <= counted.named


def test_many_events_agree_with_the_closed_form(script):
    law = script.Zipf.of(10**6, exponent=1.0)
    events = script.DRAWS_AT_ONCE + 1000  # in two pieces
    named = script.simulate_named(law, events, generator=np.random.default_rng(2))
    expected = law.expected_distinct(events)
    assert named == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_slots_and_shares_of_known_lengths(script):
    counted = script.Counted(slots=6, events=4, negatives=2, distinct=3, expected=3)  # lengths 1 and 3
    assert counted.real_share == pytest.approx(4 / 6)
    assert counted.named == 6
    assert counted.distinct_share == pytest.approx(3 / 6)
    assert counted.saving == pytest.approx((6 + 2) / 3)


def test_windows_of_full_length_leave_no_padding(script):
    shape = script.Shape(windows=4, mean_length=1e12, history_length=5, negatives=0, bucket=1)
    law = script.Zipf.of(10, exponent=0.0)
    counted = script.simulate(law, shape, batches=2, generator=np.random.default_rng(0))
    assert counted.slots == counted.events == counted.named == 20
    assert counted.expected == pytest.approx(10 * (1 - 0.9**20))


def test_windows_sorted_by_length_pad_less(script):
    def real_share(bucket):
        shape = script.Shape(windows=16, mean_length=30.0, history_length=50, negatives=0, bucket=bucket)
        law = script.Zipf.of(100, exponent=1.0)
        return script.simulate(law, shape, batches=32, generator=np.random.default_rng(3)).real_share

    assert real_share(8) > real_share(1)


def test_cut_histories_have_windows_of_the_simulated_lengths(script):
    generator = np.random.default_rng(4)
    whole = generator.geometric(1 / 30, 200_000)
    cut = np.concatenate([np.full(((whole - 1) // 20).sum(), 20), (whole - 1) % 20 + 1])
    shape = script.Shape(windows=200_000, mean_length=30.0, history_length=20, negatives=0, bucket=1)
    (lengths,) = shape.lengths(1, generator)
    assert lengths.mean() == pytest.approx(cut.mean(), rel=0.01)
    # The sum over k < 20 of P(length > k) = (29/30) ** k.
    assert lengths.mean() == pytest.approx(30 * (1 - (29 / 30) ** 20), rel=0.01)


def test_both_tables_are_printed(script, capsys):
    script.main(["--windows", "8", "--exponents", "1", "--posts", "1e3", "--batches", "2"])
    script.main(["--growth", "--exponents", "1", "--posts", "1e3", "1e9"])
    batches, growth = capsys.readouterr().out.split("events a post")
    assert "| 8 | 1 | 1,000 |" in batches
    assert "| 1 | 1,000 | 5,000 |" in growth
    assert "too many to draw" in growth


def test_a_count_is_a_whole_number(script):
    with pytest.raises(SystemExit):
        script.parse(["--posts", "2.5"])
