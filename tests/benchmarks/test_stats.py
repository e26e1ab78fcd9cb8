"""Statistics against known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.grid import Choice, Grid, Primary, load_grid, load_results
from benchmarks.stats import (
    answers,
    detectable,
    difference,
    holm,
    main,
    pairs_needed,
    pool,
    power_lines,
)


def seeds(values):
    return dict(enumerate(values))


def test_a_paired_difference_is_students():
    """The sleep data of Student (1908): mean 1.58, t = 4.0621, p = 0.002833, 0.70 to 2.46."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = difference(seeds(second), seeds(first))
    assert found.num_pairs == 10
    assert (found.mean, found.spread) == pytest.approx((1.58, 1.2299955))
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.p == pytest.approx(0.00283289)
    assert str(found) == "+1.58 (+0.70 to +2.46)"


def test_only_seeds_that_both_have_are_compared():
    found = difference({0: 1.0, 1: 2.0, 7: 50.0}, {1: 1.0, 0: 0.5, 3: 9.0})
    assert (found.num_pairs, found.mean) == (2, 0.75)
    one = difference({0: 1.0}, {0: 3.0})
    assert one.mean == -2
    assert math.isnan(one.p)
    assert str(one) == "-2.00"
    with pytest.raises(ValueError, match="a seed in common"):
        difference({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="finite"):
        difference({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0})


def test_a_margin_moves_the_test_and_not_the_interval():
    mine, other = seeds([1.0, 2.0, 3.5]), seeds([1.5, 2.1, 3.9])
    plain, shifted = difference(mine, other), difference(mine, other, 0.5)
    assert (shifted.low, shifted.high) == pytest.approx((plain.low, plain.high))
    gaps = np.array([-0.5, -0.1, -0.4])
    assert shifted.p == pytest.approx(stats.ttest_1samp(gaps + 0.5, 0).pvalue)


def test_equal_differences_leave_no_doubt():
    assert difference(seeds([2.0, 3.0]), seeds([1.0, 2.0])).p == 0
    assert difference(seeds([2.0, 3.0]), seeds([2.0, 3.0])).p == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    waiting = holm([0.01, math.nan, 0.5])  # which counts as asked
    assert waiting[0] == pytest.approx(0.03)
    assert math.isnan(waiting[1])


def test_a_pool_of_equal_tables_is_their_t_interval():
    means = [0.2, 0.9, -0.4, 1.3]
    found = pool(means, [0.3] * 4)
    interval = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert found.between**2 == pytest.approx(np.var(means, ddof=1) - 0.09)


def test_a_pool_of_thirteen_trials_is_the_published_one():
    """BCG vaccine, Colditz et al. (1994), by DerSimonian and Laird: -0.7141, tau squared 0.3088."""
    treated = [4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27]
    of_treated = [123, 306, 231, 13598, 5069, 1541, 2545, 88391, 7499, 1716, 50634, 2498, 16913]
    control = [11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29]
    of_control = [139, 303, 220, 12867, 5808, 1451, 629, 88391, 7277, 1665, 27338, 2341, 17854]
    a, n, c, m = (np.array(each, float) for each in (treated, of_treated, control, of_control))
    found = pool(np.log(a / n / (c / m)), np.sqrt(1 / a - 1 / n + 1 / c - 1 / m))
    assert found.mean == pytest.approx(-0.7141, abs=5e-5)
    assert found.between**2 == pytest.approx(0.3088, abs=5e-5)


def test_tables_that_agree_too_well_do_not_narrow_the_interval():
    found = pool([0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    margin = stats.t.ppf(0.975, 2) * 0.3 / math.sqrt(3)
    assert (found.mean, found.high - found.mean) == pytest.approx((0.5, margin))
    with pytest.raises(ValueError, match="two tables or more"):
        pool([0.5], [0.3])


def test_power_is_that_of_the_books():
    """34 pairs find half a standard deviation with 80% power (Cohen, 1988)."""
    assert pairs_needed(1.0, 0.5) == 34
    assert [pairs_needed(spread, 0.3) for spread in (0.38, 0.61, 0.78)] == [15, 35, 56]
    effect = detectable(1.0, 12)
    rng = np.random.default_rng(0)
    p = stats.ttest_1samp(rng.normal(effect, 1, (20_000, 12)), 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)


# Questions.


def runs(values, first=0):
    return {
        seed: {"result": {"accuracies": [value / 100]}} for seed, value in enumerate(values, first)
    }


NONE = [60.0, 61.0, 60.5, 60.2]


def above(*gaps):
    return [value + gap for value, gap in zip(NONE, gaps, strict=True)]


GRID = Grid(
    "some",
    "Some",
    (),
    seeds=(2, 3, 4, 5),
    primaries=(
        Primary("Better?", "best", "none", 0.5, "above"),
        Primary("As good?", "small", "none", 0.5, "not below"),
        Primary("Different?", "small", "late", 0.5),
    ),
    choices=(Choice("best", ("one", "two"), (0, 1)),),
    spread=1.0,
)


def test_questions_are_answered_on_their_own_seeds_and_corrected_together():
    results = {
        "one": runs([50.0, 50.0, 99.0, 99.0, 99.0, 99.0]),
        "two": runs([51.0, 51.0, *above(2, 2.1, 1.9, 2.2)]),
        "none": runs([0.0, 99.0, *NONE]),
        "small": runs([0.0, 0.0, *above(0.1, 0, -0.1, 0.1)]),
    }
    better, as_good, different = answers(GRID, results)
    assert better.first == "two"  # by the seeds of the choice, though "one" is higher on others
    assert better.gap.num_pairs == 4
    assert better.gap.mean == pytest.approx(2.05)
    assert better.words == "better"
    assert as_good.words == "less than 0.5 points worse, if at all"
    assert as_good.p == pytest.approx(2 * as_good.gap.p)  # the second of three that were asked
    assert (different.gap, different.words) == (None, "not run yet")


def test_a_question_waits_for_its_choice_and_may_be_answered_by_no():
    results = {"one": runs([50.0, 50.0]), "none": runs([0, 0, *NONE])}
    assert answers(GRID, results)[0].first is None
    noisy = runs([0, 0, 59.0, 62.0, 60.0, 60.9])
    found = answers(GRID, {"small": noisy, "late": runs([0, 0, *NONE]), "none": results["none"]})
    assert found[1].words == "a loss of 0.5 points or more is not ruled out"
    assert found[2].words == "no significant difference"
    worse = runs([0, 0, *(value - 3 for value in NONE)])
    shaken = {seed: dict(run) for seed, run in worse.items()}
    shaken[2] = {"result": {"accuracies": [0.5701]}}
    found = answers(GRID, {"small": shaken, "late": runs([0, 0, *NONE])})
    assert found[2].words == "worse"
    found = answers(GRID, {"small": shaken, "none": results["none"]})
    assert found[1].words == "more than 0.5 points worse"


def test_power_is_said_for_each_question():
    lines = power_lines(GRID)
    assert "4 seeds, a spread of 1 points: a difference of 2.13 points" in lines[0]
    assert [line.split(": ")[-1] for line in lines[1:]] == ["34 seeds"] * 3
    assert power_lines(replace(GRID, spread=None)) == []


def test_any_comparison_on_record_is_one_command(capsys):
    main(["small-steps", "full, appended", "none"])
    assert "+2.37 (+1.85 to +2.90) points, 5 seeds" in capsys.readouterr().out
    main(["in-place-50"])
    assert "Coreset or random?" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["small-steps", "full, appended", "everything"])


def test_a_comparison_leaves_out_seeds_that_a_choice_was_made_on(capsys):
    grid = load_grid("in-place-50")
    chosen, other = "strength by time, in place", "full, in place"
    runs = load_results(grid)
    both = runs[chosen].keys() & runs[other].keys()
    assert both >= {0, 1, 2, 3, 4}
    main(["in-place-50", chosen, other])
    assert f"points, {len(both & set(grid.seeds))} seeds" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # it has no other seeds
        main(["in-place-50", "strength by entropy, in place", other])
    assert "grid's seeds in common" in capsys.readouterr().err
