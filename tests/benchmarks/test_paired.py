"""Statistics with known answers."""

import math

import pytest
from scipy import stats

from benchmarks.paired import Difference, difference, holm, summary_of


def test_an_interval_with_a_known_answer():
    # Student's t with 4 degrees of freedom: 2.776445; spread sqrt(2.5), n = 5.
    found = summary_of([1.0, 2.0, 3.0, 4.0, 5.0])
    margin = 2.7764451052 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.num_runs, found.mean) == (5, 3.0)
    assert found.spread == pytest.approx(math.sqrt(2.5))
    assert (found.low, found.high) == pytest.approx((3 - margin, 3 + margin))


def test_students_sleep_data():
    # Student (1908): hours of sleep gained under two drugs, ten patients; t = -4.0621, p = 0.00283.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = difference(dict(enumerate(first)), dict(enumerate(second)))
    assert found.mean == pytest.approx(-1.58)
    assert found.p == pytest.approx(0.00283, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found.verdict == "below"


def test_only_common_seeds_are_paired():
    found = difference({0: 1.0, 1: 2.0, 7: 50.0}, {1: 1.0, 0: 0.5, 3: -50.0})
    assert (found.num_pairs, found.mean) == (2, 0.75)
    with pytest.raises(ValueError, match="a seed in common"):
        difference({0: 1.0}, {1: 1.0})


def test_what_the_spread_swallows_is_unresolved():
    assert difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.9, 1: 2.2, 2: 2.8}).verdict == "unresolved"
    assert Difference(5, 0.2, 0.1, 0.07, 0.33, 0.01).verdict == "above"


def test_one_pair_resolves_nothing():
    found = difference({0: 5.0}, {0: 1.0})
    assert (found.mean, found.verdict) == (4.0, "unresolved")
    assert math.isnan(summary_of([1.0]).spread)


def test_equal_gaps_leave_no_doubt():
    assert difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).verdict == "above"
    same = difference({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0})
    assert (same.verdict, same.p) == ("unresolved", 1.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_a_failed_run_is_not_left_out(values):
    with pytest.raises(ValueError, match="values must be finite"):
        summary_of(values)


def test_holm_with_a_known_answer():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.5, math.nan, 0.9])
    assert corrected[0] == 1.0
    assert math.isnan(corrected[1])


def test_intervals_cover_as_often_as_they_say():
    import numpy as np

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        gaps = rng.normal(0.3, 1.0, 5)
        found = difference(dict(enumerate(gaps)), dict.fromkeys(range(5), 0.0))
        hits += found.low <= 0.3 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)
