"""The paper's numbers beside ours: of runs that never were, so that what is said can be known."""

import json
import re

import pytest

from benchmarks.answers import answers, in_parts
from benchmarks.paper_page import PAPER, in_small, paper_gap, paper_section, where
from benchmarks.results_page import PAGE, render
from benchmarks.rows_page import map_section
from benchmarks.train import GRIDS, load_grid, load_results
from tests.runs import records

pytestmark = pytest.mark.slow

ESTIMATES = json.loads((GRIDS.parent / "results" / "estimates.json").read_text())["grids"]
TABLES = {table["grid"]: table for table in PAPER["table"]}
LOW, HIGH = [90.0, 90.3, 90.1, 90.2, 90.4], [92.0, 92.1, 92.3, 92.4, 92.2]


def section(grid):
    return "\n".join(paper_section(TABLES[grid], ESTIMATES))


def row(name):
    (line,) = [each for each in map_section(ESTIMATES) if each.startswith(f"| {name} |")]
    return line


def test_a_table_that_was_run_is_as_the_small_ones_beside_the_papers_column(recorded):
    recorded("table1-cifar10", {"none": LOW, "random 10%": LOW, "coreset 10%": HIGH})
    text = section("table1-cifar10")
    assert "15 of 95 cells; a machine, torch 2.0, commits abc1234." in text
    assert (
        "| arm | paper, % | runs | test accuracy, % | spread | 95% interval | steps | "
        "augmented rows |" in text
    )
    assert "| coreset 10% | 91.54 ± 0.19 | 5 | 92.20 | 0.16 | 92.00 to 92.40 | 10 | 5 |" in text
    assert "| Coreset or random, 10%, as old? | 5 | +2.00 |" in text
    # Arms that the paper lacks, and such as were not run yet.
    assert "| random each epoch 10% | not printed | 0 | not run |" in text
    assert "| none, as many steps as full | not printed | 0 | not run |" in text
    assert "| full, appended | 93.50 ± 0.25 | 0 | not run |" in text
    assert "disagrees" not in text


def test_the_order_that_ours_turns_round_is_the_headline(recorded):
    recorded("table1-cifar10", {"none": LOW, "random 10%": HIGH, "coreset 10%": LOW})
    text = section("table1-cifar10")
    assert "**Ours disagrees with the paper**: random 10% is 2.00 points above coreset 10%" in text
    assert "in the paper 0.47 below it." in text
    assert "none is" not in text  # as the paper has it, or not told apart
    (line,) = [
        each for each in map_section(ESTIMATES) if each.startswith("| Table 1, 4 | CIFAR-10 |")
    ]
    assert "| **Disagrees with the paper, `table1-cifar10`: random 10% is 2.00 points" in line


def test_what_is_not_resolved_disagrees_with_nothing(recorded):
    recorded(
        "table1-cifar10", {"random 10%": [90.0, 92.0, 91.0], "coreset 10%": [90.1, 91.0, 90.5]}
    )
    text = section("table1-cifar10")
    assert "| Coreset or random, 10%, as old? | 3 | -0.47 |" in text
    assert "disagrees" not in text


def test_one_run_has_no_spread(recorded):
    recorded("table1-cifar10", {"random 10%": [90.0], "coreset 10%": [91.0, 91.5]})
    text = section("table1-cifar10")
    assert "| random 10% | 91.07 ± 0.13 | 1 | 90.00 |  |  | 10 | 5 |" in text
    assert "| Coreset or random, 10%, as old? | 1 | +1.00 |  |  |  | unresolved |" in text
    assert "| coreset 10% | 91.54 ± 0.19 | 2 | 91.25 | 0.35 |" in text
    assert "nan" not in text


def test_the_papers_numbers_stand_beside_their_part_alone(recorded):
    recorded(
        "table1-imbalanced",
        {
            "none, 1:10": LOW,
            "none, 1:100": LOW,
            "coreset 10%, 1:100": HIGH,
            "random 10%, 1:10": LOW,
        },
    )
    first, second = section("table1-imbalanced").split("**1:10**")[1].split("**1:100**")
    assert "| none | 87.08 ± 0.50 | 5 | 90.20 |" in first
    assert "| coreset 10% | 89.75 ± 0.52 | 0 | not run |" in first
    assert "| none | not printed | 5 | 90.20 |" in second
    assert "| Coreset, 10%: better than none? | 5 | +2.00 |" in second
    assert "Coreset, 10%: better than none?" not in first


def test_what_is_never_selected_stands_beside_the_papers(recorded):
    recorded("table6", {"coreset 0.2%": records([92.0, 92.1], never_selected=0.75)})
    text = section("table6")
    assert "| coreset 0.2% | 79.19 ± 1.10 | 75.00, runs: 2 |" in text
    assert "| max-loss 0.2% | 86.70 ± 0.15 | not run |" in text


def test_equal_steps_follow_the_form_of_the_paper(recorded):
    recorded("table1-cifar10-steps", {"none": LOW, "coreset 10%": HIGH})
    before, after = section("table1-cifar10").split(
        "At equal steps, which the paper does not report:"
    )
    assert "**not run**" in before
    assert "not run" not in after
    assert "| coreset 10% | 5 | 92.20 |" in after
    assert "| Coreset, 10%: better than none? | 5 | +2.00 |" in after


def test_ours_in_small_stands_beside_the_paper_with_its_setting(recorded):
    assert "other settings" not in section("table3")
    recorded(
        "small-only",
        {
            "coreset each epoch, augmented": LOW,
            "random each epoch, augmented": HIGH,
            "coreset, augmented": LOW,
            "random, augmented": HIGH,
        },
    )
    text = section("table3")
    assert "| arm | paper, % | ours in small, % (runs): `small-only` |" in text
    assert "| coreset 1%, augmented | 74.7 ± 1.1 | 90.20 (5) |" in text
    assert "| coreset 0.1%, not augmented | 29.6 ± 3.8 |  |" in text
    assert "10,000 images, convnet, one copy, randaugment, R = 1, in every arm as many" in text
    # Those of ten epochs are others than the paper's.
    headline = "random 1%, augmented is 2.00 points above coreset 1%, augmented"
    (line,) = [each for each in text.splitlines() if "disagrees with the paper" in each]
    assert line.startswith(f"**Ours in small (`small-only`) disagrees with the paper**: {headline}")
    assert ";" not in line
    found = row("S9")
    assert f"**Disagrees with the paper, in small (`small-only`): {headline}" in found
    assert "random, augmented is 2.00 points above coreset, augmented" in found.split("**. ")[1]


def test_both_readings_of_the_weights_are_told_where_one_disagrees(recorded):
    recorded(
        "small-epochs",
        {
            "none": LOW,
            "random 10%": HIGH,
            "coreset 10%": LOW,
            "coreset, weights of mean 1 10%": [92.1, 91.9, 92.5, 92.2, 92.4],
        },
    )
    told = "coreset, weights of mean 1 10% over random 10%: +0.02 points"
    text = section("table1-cifar10")
    assert f"with weights of mean 1, by which the released code divides: {told}" in text
    (headline,) = [line for line in text.splitlines() if "disagrees with the paper" in line]
    assert headline.startswith("**Ours in small")
    assert "unresolved." in headline
    # Beside the paper's number of the coreset, which does not say which reading it is of.
    assert "| coreset, weights of mean 1 10% | 91.54 ± 0.19 | 92.22 (5) |" in text
    assert told in row("S8")


def test_a_reading_that_disagrees_as_well_is_told_once(recorded):
    worse = "coreset, weights of mean 1 10%"
    recorded("small-epochs", {"random 10%": HIGH, "coreset 10%": LOW, worse: LOW})
    (headline,) = [each for each in section("table1-cifar10").splitlines() if "disagrees" in each]
    assert headline.count(f"random 10% is 2.00 points above {worse}") == 1
    assert "by which the released code divides" not in headline


def test_a_small_grid_answers_the_same_under_either_name(recorded):
    """One difference has one p: the paper's names of its arms change no questions."""
    alone = {"random": LOW, "coreset": HIGH, "coreset each epoch": HIGH, "random each epoch": LOW}
    recorded("small-only", {f"{arm}, augmented": values for arm, values in alone.items()})
    (small,) = (each for each in TABLES["table3"]["small"] if "names" in each)
    _, found = in_small(small)
    own = answers(load_results(load_grid("small-only")))
    assert [(each.p, each.question.words) for each in found] == [
        (each.p, each.question.words) for each in own
    ]
    assert {each.question.first for each in found} >= {"coreset 1%, augmented"}
    assert set(small["names"]) <= {cell.arm for cell in load_grid("small-only").cells}


def test_a_row_that_agrees_says_so_without_a_headline(recorded):
    recorded("small-epochs", {"none": LOW, "full, appended": HIGH, "random 10%": LOW})
    line = row("S18")
    assert "full, appended is 2.00 points above none" in line
    assert "in the paper 4.04 above it" in line
    assert "Disagrees" not in line


def test_the_share_of_fulls_gain_stands_beside_the_papers(recorded):
    recorded(
        "small-epochs",
        {"none": [50.0, 51.0], "full, appended": [60.0, 61.0], "random 10%": [52.0, 53.0, 99.0]},
    )
    text = section("table1-cifar10")
    # Of the means over the seeds that all three have; in the paper 1.61 of 4.04 points.
    assert "| random 10% | 40% | 20% |" in text
    assert "| max-loss 10% | 48% |" not in text  # ours was not run


def test_what_is_not_the_papers_size_is_said_so():
    assert where("small-epochs") == "in small (`small-epochs`)"
    assert where("table1-cifar10-short") == "in 7 epochs (`table1-cifar10-short`)"
    assert where("table1-cifar10") == "`table1-cifar10`"


def test_a_ratio_is_that_of_the_estimates():
    hours = {name: ESTIMATES[name]["arms"] for name in ("table1-cifar10", "table3")}
    times = hours["table1-cifar10"]["full, appended"] / hours["table3"]["coreset 1%, augmented"]
    assert f"{times:.1f} times faster than full augmentation" in row("Section 1")


def test_what_is_against_a_statement_is_its_headline():
    assert "| **Disagrees with the paper, what is printed bounds from below" in row("T4")
    assert "| **Disagrees with the paper, 12 times by our costs**" in row("Section 1")
    assert "Disagrees" not in row("T6")


@pytest.mark.parametrize(
    ("ours", "is_slower"), [(4.0, True), (6.2, False), (7.0, False)], ids=["less", "open", "more"]
)
def test_a_speed_up_below_the_papers_is_its_headline(recorded, ours, is_slower):
    def runs(seconds):
        found = records([50.0] * 3)
        for seed, each in found.items():
            each["result"]["seconds"] = {"total": seconds * (1 + 0.01 * seed**2)}
        return found

    one = records([50.0] * 3)
    for seed, each in one.items():
        each["result"]["seconds"] = {"total": 1 + 0.1 * seed}
    recorded("times", {"full, one by one": runs(ours), "coreset 10%, one by one": one})
    line = row("S25")
    against = line.partition("**. ")[0]
    assert ("Disagrees" in against) == is_slower
    said = re.search(r"oreset 10% on one core with R = 2 is ([\d.]+) times as fast", line)
    assert float(said[1]) == pytest.approx(ours, rel=0.1)
    assert "in the paper 6.31" in (against if is_slower else line)
    assert ("(unresolved)" in line) == (not is_slower)


def test_a_speed_up_has_one_p_in_every_row():
    text = "\n".join(map_section(ESTIMATES))
    told = re.findall(r"oreset 10% on one core with R = 2 is [^(]+\([^)]+\)", text)
    assert len(told) == 3
    assert len(set(told)) == 1


@pytest.mark.parametrize(
    ("first", "second", "gap"),
    [("76.20 ± 0.75", "75.5", 0.7), ("33.5", "<15", 18.5), ("<15", "33.5", -18.5)],
)
def test_the_papers_gap_is_of_what_it_prints(first, second, gap):
    assert paper_gap({"a": first, "b": second}, "a", "b") == pytest.approx(gap)
    assert paper_gap({"a": first}, "a", "b") is None


# The file of the paper's numbers.


@pytest.mark.parametrize("table", PAPER["table"], ids=lambda table: table["grid"])
def test_the_papers_arms_are_arms_of_ours(table):
    grid = load_grid(table["grid"])
    arms = in_parts(grid, {cell.arm: cell for cell in grid.cells})[table.get("part", "")]
    assert {*table["values"], *table.get("never", ())} <= set(arms)
    if "steps" in table:
        steps = load_grid(table["steps"])
        kept = set(in_parts(steps, {cell.arm: cell for cell in steps.cells})[table.get("part", "")])
        assert set(table["values"]) <= kept
    for small in table.get("small", ()):
        assert (GRIDS / f"{small['grid']}.toml").is_file()


NO_TABLES = {"dynamics", "small-time", "smoke", "times", "times-gpu"}


@pytest.mark.parametrize("name", sorted(each.stem for each in GRIDS.glob("*.toml")))
def test_every_table_has_its_control(name):
    """Something without augmentation in as many steps: as the longest arm, in small as each."""
    if name in NO_TABLES or name.endswith("-observed"):
        return
    grid = load_grid(name)
    for arms in in_parts(grid, {cell.arm: cell for cell in grid.cells}).values():
        plain = {_steps(cell) for cell in arms.values() if cell.strong == "none"}
        lengths = {
            _steps(cell)
            for cell in arms.values()
            if cell.strong != "none" and cell.rule != "adaptive"  # whose length is its own
        }
        if next(iter(arms.values())).limit is None:
            assert max(lengths) in plain
        else:
            assert lengths <= plain


def _steps(cell):
    """Return the steps of a run of as many examples as there are, or 50,000."""
    n = cell.limit or 50_000
    k = round(cell.fraction * n)
    originals = {"all": n, "unselected": n - k, "selected": k, "none": 0}[cell.originals]
    steps = cell.plan(n).steps
    return (
        cell.epochs * -(-(originals + k * cell.copies) // cell.batch_size)
        if steps is None
        else steps
    )


def test_every_row_has_a_command_or_plain_words(page):
    names = [each["name"] for each in PAPER["row"]]
    systems = {f"S{number}" for number in range(1, 29)}
    statements = {f"T{number}" for number in range(1, 12)}
    published = {f"N{number}" for number in range(1, 11)}
    assert systems | statements | published <= set(names)
    for table in ("1, 4", "2", "3", "5", "6"):
        assert f"Table {table}" in names
    for figure in ("1", "2", "3a", "3b", "3c, 5", "4", "6"):
        assert f"Figure {figure}" in names
    titles = {table["title"] for table in PAPER["table"]}
    for each in PAPER["row"]:
        assert "grid" in each or "result" in each
        assert {each[key] for key in ("table", "of") if key in each} <= titles
        if "grid" in each:
            assert (GRIDS / f"{each['grid']}.toml").is_file()
        if "pytest" in each.get("command", ""):
            assert _known(
                *re.match(r"python -m pytest (\S+?)(?:::(\S+))?( .*)?$", each["command"]).groups()
            )
    text, _ = page
    assert all(f"| {name} |" in text for name in names)
    # Where a small grid answers, the row says so, and ends with what the paper has.
    for name in ("S8", "S9", "S16", "S18", "S19"):
        (line,) = re.findall(rf"^\| {name} \|.*$", text, re.MULTILINE)
        assert re.search(r"(points above .* \(p = [\d.e-]+\)|, unresolved)", line)
        assert re.search(r" The paper: .*\d[^|]* \|$", line)


def _known(path, name, options):
    """Whether a command of tests is of some: the file, the test, what -k picks."""
    text = (PAGE.parents[1] / path).read_text()
    if name is not None:
        return options is None and f"def {name}(" in text
    kind, word = re.match(r"(?: -([km]) (\w+))?$", options or "").groups()
    patterns = {None: "def test_", "k": rf"def test_\w*{word}", "m": rf"pytest\.mark\.{word}\b"}
    return re.search(patterns[kind], text) is not None


def test_a_command_that_tests_nothing_is_found_out():
    path = "tests/properties/test_selection_methods.py"
    assert _known(path, None, None)
    assert _known(path, None, " -k tolerance")
    assert not _known(path, None, " -k tolerances")
    assert not _known(path, "test_tolerance", None)
    assert not _known(path, None, " -m distributed")


def test_what_was_not_run_says_what_it_would_take(recorded):
    text, pictures = render()
    assert pictures == {}
    tables = len(TABLES) + sum("steps" in table for table in TABLES.values())
    assert text.count("**not run**") == tables
    assert "disagrees" not in text.lower().split("## the paper")[1]


def test_nothing_is_left_without_a_result_or_an_estimate(page):
    assert "not estimated" not in page[0]


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_are_of_the_arms_there_are(name):
    arms = {cell.arm for cell in load_grid(name).cells}
    assert set(ESTIMATES[name]["arms"]) == arms
    assert ESTIMATES[name]["hours"] == pytest.approx(sum(ESTIMATES[name]["arms"].values()))
