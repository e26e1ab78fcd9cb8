"""Times as fast, with known answers."""

import json
import math
from statistics import median

import pytest

from benchmarks.paper_page import PAPER
from benchmarks.times_page import ratio_of, steps_a_copy, times_section
from benchmarks.train import RESULTS, load_grid, load_results
from tests.runs import records

pytestmark = pytest.mark.slow


def runs(*totals):
    found = records([50.0] * len(totals))
    for record, total in zip(found.values(), totals, strict=True):
        record["result"]["seconds"] = {"total": total}
    return found


def test_a_constant_ratio_has_no_width():
    assert ratio_of(runs(30, 40, 50), runs(10, 40 / 3, 50 / 3)) == pytest.approx((3, 3, 3))


def test_ratios_are_paired_and_their_mean_is_geometric():
    # Ratios 2 and 8: mean 4; half the difference of logarithms over sqrt(2) is the error, t = 12.7.
    mean, low, high = ratio_of(runs(20, 80, 7), runs(10, 10))
    assert mean == pytest.approx(4)
    margin = 12.7062 * math.log(8 / 2) / 2
    assert (low, high) == pytest.approx((4 / math.exp(margin), 4 * math.exp(margin)), rel=1e-4)


def test_what_a_copy_must_cost_for_a_speed_up():
    # A step and a copy of one second each: 9 over 1.8 seconds a row at 10%.
    assert steps_a_copy(0.1, 9 / 1.8) == pytest.approx(1)
    assert steps_a_copy(0.3, 5 / 2.2) == pytest.approx(0)
    assert steps_a_copy(0.5, (3 + 2 * 7) / (2 + 7), copies=2) == pytest.approx(7)
    assert steps_a_copy(0.1, 9.99) < math.inf == steps_a_copy(0.1, 10.0)


def test_what_the_paper_prints_at_30_is_more_than_any_price_of_a_copy_gives():
    above = {arm for arm, faster in PAPER["faster"].items() if faster > 1 / 0.3 and " 30%" in arm}
    assert above == {"coreset 30%", "max-loss 30%", "random 30%"}
    text = " ".join(times_section({}))
    assert "its 3.43x, 3.48x and 4.03x at 30% are above 1 / 0.3 = 3.33x" in text
    assert "6.31x takes a copy that costs 2.6 times a row's step" in text


def tables():
    """Return the section's tables: rows of cells, by the second column's name."""
    found, name = {}, ""
    for line in times_section({}):
        row = line.strip("| ").split(" | ")
        if line.startswith("| arm |"):
            name = row[1]
        elif line.startswith("| ") and "---" not in line:
            found.setdefault(name, []).append(row)
    return found


def test_the_papers_figures_stand_in_rows_of_its_own_kind_only():
    theirs = {tuple(row[:2]): row[-1] for row in tables()["augmentation"] if len(row) == 10}
    printed = {which: last for which, last in theirs.items() if last}
    assert printed[("coreset 10%", "one by one")] == "6.31x"
    assert {kind for _, kind in printed} == {"one by one"}


def test_an_epoch_on_a_gpu_is_of_later_epochs_and_a_twentieth_of_a_selection():
    rows = {row[0]: row for row in tables()["loading, s"]}
    records = load_results(load_grid("times-gpu"))

    def spent(arm, seed):
        first, *later = records[arm][seed]["result"]["epoch_seconds"]
        return median(epoch["total"] for epoch in later) + first["selection"] / 20

    ratios = [spent("full", seed) / spent("coreset 10%", seed) for seed in records["full"]]
    assert len(ratios) > 1
    mean = math.prod(ratios) ** (1 / len(ratios))
    assert rows["coreset 10%"][-2] == f"{mean:.2f}x"
    low, high = map(float, rows["coreset 10%"][-1].split(" to "))
    assert low < min(mean, high)
    assert rows["full"][-1] == "1.00x"


def test_the_papers_table_of_speed_ups_is_whole():
    rows = {row[0]: row for row in tables()["paper: CIFAR-10, ResNet20"]}
    assert list(rows) == list(PAPER["faster"]) == list(PAPER["faster-svhn"])
    assert rows["coreset 15%"][1:] == ["4.46x", "3.40x", "not run", "not run", "not run"]
    mean, interval = {row[0]: row for row in tables()["loading, s"]}["coreset 10%"][-2:]
    assert rows["coreset 10%"][-2] == f"{mean} ({interval})"


def test_what_workers_lose_stands_in_table_and_text_as_measured():
    workloads = json.loads((RESULTS.parent / "loader.json").read_text())["workloads"]
    values = {each["name"].split()[2]: each["value"] for each in workloads["against workers"][:4]}
    assert list(values) == ["5%", "10%", "30%", "100%"]
    rows = {row[0]: row for row in tables()["paper: CIFAR-10, ResNet20"]}
    for share in ("5%", "10%", "30%"):
        assert rows[f"coreset {share}"][-1] == f"{values[share]:.2f}x"
    said = ", ".join(f"{values[share]:.1f}" for share in ("5%", "10%", "30%"))
    assert any(f"{said} times as fast as two workers" in line for line in times_section({}))
