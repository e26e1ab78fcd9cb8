"""The results page, its picture and the table of choices are those of the records."""

import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks import results_page
from benchmarks.grid import grid_names, load_grid, load_results
from benchmarks.results_page import (
    DECISIONS,
    PAGE,
    ROWS,
    all_answers,
    beside_originals,
    contrasts,
    decision_table,
    findings,
    gap_of,
    left_table,
    main_table,
    render,
)
from benchmarks.stats import pool
from benchmarks.tables import between

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    return render()


def test_the_page_on_file_is_that_of_the_records_and_short(page):
    assert PAGE.read_text() == page
    assert len(page.splitlines()) <= 250
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert (PAGE.parent / picture).is_file()


def test_no_word_of_our_own_is_on_the_page(page):
    assert not re.search(r"resolved|told from|told apart|as old\b", page)


def test_the_table_of_choices_on_file_is_that_of_the_records():
    kept = (PAGE.parent / "choosing.md").read_text()
    assert between(kept, "decisions", decision_table()) == kept
    assert "p =" not in "".join(decision_table())


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision[0])
def test_what_is_advised_is_what_was_found(decision):
    name, first, second, sign = decision[2]
    gap = gap_of(name, first, second)
    found = "+" if gap.low > 0 else "-" if gap.high < 0 else "="
    assert found == sign


def test_what_the_findings_are_called_is_what_they_say():
    with_cluster = dict(contrasts("coreset, uniform", "coreset, cluster"))
    for row, gap in with_cluster.items():
        if "labels random" not in row.words and "only" not in row.words:
            assert gap.low > 0 or row.grid == "table1-imbalanced-short"  # one run hardly learned
            assert gap.mean > 0
    everything = gap_of("table1-cifar10-short", "full, appended", "none")
    equal = gap_of("table1-cifar10-short", "full, appended", "none, as many steps as full")
    assert everything.mean > 7
    assert equal.mean < 1
    assert len(findings()) == 5


def test_sentences_of_other_pages_are_what_was_found():
    readme, when_not = (
        " ".join(path.read_text().split())
        for path in (PAGE.parents[1] / "README.md", PAGE.parent / "when-not.md")
    )
    few = gap_of("small-steps", "random 30%", "none")
    many = gap_of("small-steps-3000-long", "random 30%", "none")
    for gap in (few, many):
        assert str(gap) in readme.replace(" points (", " (")
    assert f"gains {gap_of('small-epochs', 'random 30%', 'none')} points over no" in when_not
    assert f"and {few} at equal steps" in when_not
    everything = {
        name: gap_of(name, "full, appended", "none")
        for name in ("small-steps", "small-steps-3000-long")
    }
    assert (
        f"it gains {many} at equal steps, where augmenting everything gains "
        f"{everything['small-steps-3000-long']} (" in when_not.replace("([", "(")
    )
    assert f"it gained {gap_of('small-steps', 'full, in place', 'full, appended')}" in when_not
    assert few.mean > everything["small-steps"].mean / 2
    assert many.mean > everything["small-steps-3000-long"].mean / 2
    # A coreset with uniform weights beside all originals; then on its own.
    beside = beside_originals()
    better = {row.grid for row, gap in beside if gap.low > 0}
    assert better == {"table1-cifar10-short"}
    others = [gap for row, gap in beside if row.grid not in better]
    assert pool([g.mean for g in others], [g.spread / g.num_pairs**0.5 for g in others]).high < 0
    alone = gap_of("small-only", "coreset, augmented", "coreset, uniform weights, augmented")
    assert alone.low < 0 < alone.high
    assert gap_of("table3-short", "coreset 1%, augmented", "random 1%, augmented").mean < 0


def test_every_row_names_arms_that_its_grid_has():
    for row in ROWS:
        cells = results_page.load_grid(row.grid).cells
        arms = {cell.arm for cell in cells}
        known = [arm for arm in row.arms().values() if arm in arms]
        assert len(known) >= 2, row


def test_a_cell_of_the_table_is_the_mean_of_its_runs():
    (line,) = (line for line in main_table() if "1,500 images, extra copies, 30%" in line)
    assert "| 56.6 ± 0.7 | 58.9 ± 0.4 | 59.7 ± 0.8 | 58.0 ± 1.1 |" in line
    assert line.endswith("| 5 |")


def test_all_questions_and_all_that_is_left_are_named(page):
    asked = all_answers()
    assert {grid.name for grid, _ in asked} >= {"in-place-50", "3000-long-15", "only-15"}
    for _, answer in asked:
        assert answer.primary.name in page
    left = "\n".join(left_table())
    for name in ("table1-cifar10", "imagenet", "table3-wide"):
        assert name in grid_names()
        assert f"`{name}`" in left


def test_hours_follow_from_the_fastest_run_of_the_grids_own(monkeypatch):
    """Not from one that was taken over, which may be of another machine."""
    grid = load_grid("in-place-50")
    due = grid.due({})
    results = {}
    made = [(grid.digest, 720.0), (grid.digest, 360.0), ("", 1.0), (None, 2.0)]
    for cell, (digest, total) in zip(due[:4], made, strict=True):
        run = {"grid": digest, "cell": cell.values(), "result": {"seconds": {"total": total}}}
        results.setdefault(cell.arm, {})[cell.seed] = run
    monkeypatch.setattr(results_page, "grid_names", lambda: ["in-place-50"])
    monkeypatch.setattr(results_page, "_read", lambda name: (grid, results))
    count = len(due)
    hours = f"{(count - 4) / 10:.1f} hours on one core"
    assert f"| `in-place-50` | {count - 4} of {count} runs | {hours} |" in left_table()


def test_hours_without_a_run_of_ones_own_are_those_of_as_many_epochs():
    cell = load_grid("3000-long-15").cells[0]
    assert results_page._seconds_of(cell) > results_page._seconds_of(replace(cell, epochs=60))


def test_pairs_in_two_precisions_are_counted(page):
    arms = [f"coreset, {each} weights 30%, in place" for each in ("tempered", "uniform")]
    mine, other = (load_results(load_grid("tempered-15"))[arm] for arm in arms)
    precision = Counter(
        (mine[seed]["cell"].get("precision"), other[seed]["cell"].get("precision")) for seed in mine
    )
    mixed = sum(count for (one, two), count in precision.items() if one != two)
    assert 0 < mixed < len(mine)
    assert f"{mixed} of {len(mine)} pairs in two precisions" in page


def test_weights_were_as_uneven_as_is_said():
    """450 copies in place of 450 of 1,500 originals: of mean 1, or as heavy as all examples."""

    def unevenness(name, arm, mass):
        runs = load_results(load_grid(name))[arm].values()
        each = [run["dynamics"]["selections"]["effective_sample_size"] for run in runs]
        sizes = itertools.chain.from_iterable(each)
        return [1500 * (1050 + mass**2 / size) / (1050 + mass) ** 2 for size in sizes]

    text = " ".join((PAGE.parent / "choosing.md").read_text().split())
    roots = unevenness("tempered-15", "coreset, tempered weights 30%, in place", 450)
    assert f"had at most {max(roots):.2f}" in text
    whole = unevenness("in-place", "coreset 30%, in place", 1500)
    assert f"cluster sizes had {min(whole):.1f} to {max(whole):.1f}" in text
