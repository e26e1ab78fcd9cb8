"""What rules select in runs of their own: of measured selections alone, the first left out."""

import pytest

from benchmarks.own_runs_page import _by_share, own_runs_section
from tests.runs import records

pytestmark = pytest.mark.slow


def entry(error, overlap=0.5):
    return {
        "error": error,
        "gradient_error": error / 10,
        "gradient_norm": error / 2,
        "overlap_with_max_loss": overlap,
        "selected_so_far": 0.2,
    }


def run(accuracies, *errors):
    track = {"never_selected": 0.25, "gini": 0.5}
    return records(accuracies, selections=[entry(error) for error in errors], **track)


def test_means_are_of_later_selections_and_unmeasured_arms_are_left_out(recorded):
    recorded(
        "small-observed",
        {"random 10%": run([60.0], 9.0, 0.1, 0.3), "coreset 10%": records([50.0], selections=[{}])},
    )
    lines = own_runs_section({})
    assert "| random 10% | 1 | 0.200 | 0.0200 | 0.100 | 50% | 25.0% | 0.50 |" in lines
    assert not any("coreset" in line for line in lines if line.startswith("| "))


def test_a_single_selection_counts(recorded):
    recorded("small-observed", {"not learned early 10%": run([60.0], 0.4)})
    assert any("| not learned early 10% | 1 | 0.400 |" in line for line in own_runs_section({}))


def test_curves_are_drawn_where_all_four_rules_have_them(recorded, tmp_path):
    arms = ("random 10%", "max-loss 10%", "coreset 10%", "coreset, uniform weights 10%")
    pictures = {}
    recorded("table1-cifar10-short", {arm: run([60.0, 61.0], 0.4, 0.3) for arm in arms[:3]})
    own_runs_section(pictures)
    assert pictures == {}
    (tmp_path / "table1-cifar10-short").rename(tmp_path / "before")
    recorded("table1-cifar10-short", {arm: run([60.0, 61.0], 0.4, 0.3) for arm in arms})
    own_runs_section(pictures)
    path = tmp_path / "own.svg"
    pictures["results-own-runs.svg"](path)
    assert "overlap with max-loss" in path.read_text()


def test_accuracy_stands_over_what_was_trained_on_so_far(recorded, tmp_path):
    """At each evaluation, the last one included: of five epochs after two, four and five."""
    arms = ("random each epoch, augmented", "random each epoch, not augmented")
    arms += ("coreset each epoch, augmented",)
    entries = [{"selected_so_far": share} for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    runs = records([30.0, 50.0], selections=entries)
    for record in runs.values():
        record["cell"]["evaluate_every"] = 2
        record["result"]["accuracies"].insert(0, 0.0)
    shares, found = zip(*_by_share(runs[1]), strict=True)
    assert (shares, found) == ((20, 40, 50), pytest.approx((0, 10, 50)))
    recorded("small-only", dict.fromkeys(arms, runs))
    pictures = {}
    assert "![Accuracy by the share of the data" in "\n".join(own_runs_section(pictures))
    pictures["results-only.svg"](tmp_path / "only.svg")
    assert "data trained on so far" in (tmp_path / "only.svg").read_text()


def test_nothing_is_said_of_no_runs(recorded):
    assert own_runs_section({}) == []
