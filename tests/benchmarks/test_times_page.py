"""Times as fast, with known answers."""

import math

import pytest

from benchmarks.times_page import ratio_of, times_section


def runs(*totals):
    return {seed: {"result": {"seconds": {"total": total}}} for seed, total in enumerate(totals)}


def test_a_constant_ratio_has_no_width():
    assert ratio_of(runs(30, 40, 50), runs(10, 40 / 3, 50 / 3)) == pytest.approx((3, 3, 3))


def test_ratios_are_paired_and_their_mean_is_geometric():
    # Ratios 2 and 8: mean 4; half the difference of logarithms over sqrt(2) is the error, t = 12.7.
    mean, low, high = ratio_of(runs(20, 80, 7), runs(10, 10))
    assert mean == pytest.approx(4)
    margin = 12.7062 * math.log(8 / 2) / 2
    assert (low, high) == pytest.approx((4 / math.exp(margin), 4 * math.exp(margin)), rel=1e-4)


def test_the_papers_figures_stand_in_rows_of_its_own_kind_only():
    rows = [line.split(" | ") for line in times_section({}) if line.startswith("| ")]
    theirs = {(row[0], row[1]): row[-1] for row in rows if row[-1].strip(" |").endswith("x")}
    assert theirs[("| coreset 10%", "one by one")] == "6.31x |"
    assert {kind for _, kind in theirs} == {"one by one"}
