"""The results page: what is on record and nothing else, resolved only where it is."""

import json
import re

import pytest

from benchmarks import train as training
from benchmarks.answers import answer_to, question_table
from benchmarks.decisions_page import DECISIONS, decision_table
from benchmarks.grids_page import arm_table, in_short
from benchmarks.paper_page import PAPER
from benchmarks.results_page import PAGE, render
from benchmarks.tables import between
from benchmarks.train import GRIDS, load_grid


def records(values):
    return {
        seed: {"result": {"accuracies": [0.1, value / 100], "steps": 10, "augmented": 5}}
        for seed, value in enumerate(values)
    }


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return what writes records of a grid, in the place of those there are: accuracies an arm."""
    monkeypatch.setattr(training, "RESULTS", tmp_path)

    def write(name, values):
        left = {(arm, seed): each for arm in values for seed, each in records(values[arm]).items()}
        (tmp_path / name).mkdir()
        for cell in load_grid(name).cells:
            if (cell.arm, cell.seed) in left:
                record = left.pop((cell.arm, cell.seed))
                (tmp_path / name / f"{cell.name}.json").write_text(json.dumps(record))
        assert not left  # arms that the grid does not have

    return write


def test_the_page_on_file_is_that_of_the_records():
    text, pictures = render()
    assert PAGE.read_text() == text
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert set(pictures) <= shown
    assert all((PAGE.parent / name).is_file() for name in shown)


def test_a_gap_is_resolved_only_where_the_spread_lets_it():
    none, full = [60.0, 61.0, 60.5, 60.2, 61.2], [63.1, 64.0, 63.4, 63.5, 64.1]
    fresh = [61.0, 60.8, 61.5, 59.9, 62.0]
    lines = question_table(
        {
            "none": records(none),
            "full, appended": records(full),
            "random each epoch 10%": records(fresh),
        }
    )
    by_question = {line.split(" | ")[0]: line for line in lines[2:]}
    assert by_question["| Does augmenting everything help?"].endswith("| **full, appended** |")
    assert by_question["| Random, 10%: better than none?"].endswith("| unresolved |")
    assert "+3.04" in by_question["| Does augmenting everything help?"]


def test_a_loss_is_named():
    lines = question_table(
        {"none": records([60, 61, 62, 61]), "full, appended": records([50, 51.1, 52, 51])}
    )
    assert lines[-1].endswith("| **none** |")


def test_many_questions_are_corrected_for():
    # Alone this gap is resolved (p = 0.02); among many others it is not.
    gap = [0.2, 0.9, 0.5, 0.8, 0.1]
    none = records([60.0] * 5)
    one = question_table({"none": none, "full, appended": records([60 + g for g in gap])})
    assert one[-1].endswith("**full, appended** |")
    arms = {"none": none, "full, appended": records([60 + g for g in gap])}
    for share in ("10%", "30%"):
        for rule in ("random", "max-loss", "coreset", "random each epoch"):
            arms[f"{rule} {share}"] = records([60, 60.1, 59.9, 60.2, 60.05])
    many = question_table(arms)
    (line,) = [each for each in many if each.startswith("| Does augmenting everything help?")]
    assert line.endswith("| unresolved |")


def test_the_summary_says_what_is_resolved_and_counts_the_rest(recorded):
    assert "Nothing yet." in "\n".join(in_short(["small-steps"]))
    recorded(
        "small-steps",
        {
            "none": [60.0, 61.0, 60.5, 60.2, 61.2],
            "full, appended": [63.1, 64.0, 63.4, 63.5, 64.1],
            "full, in place": [63.0, 64.1, 63.3, 63.6, 64.0],
        },
    )
    text = "\n".join(in_short(["small-steps"]))
    assert "*full, appended* is 3.04 points above *none*" in text
    assert "1 other questions" in text


def test_one_run_shows_no_spread():
    line = arm_table({"none": records([60.0])})[-1]
    assert line == "| none | 1 | 60.00 |  |  | 10 | 5 |"


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision[0])
def test_what_is_advised_is_what_was_found(decision):
    for name, words, expected in decision[2]:
        question, _, winner = answer_to(name, words)
        assert {question.first: "+", question.second: "-", None: "="}[winner] == expected


def test_how_much_of_full_augmentations_gain_is_steps():
    """From the tables of the page, whose means are those of the records."""
    text, _ = render()
    at_epochs = text.split("## Equal epochs")[1]
    none, full = (
        float(re.search(rf"\| {arm} \| 5 \| ([\d.]+) ", at_epochs)[1])
        for arm in ("none", "full, appended")
    )
    longer = float(re.search(r"\| none \| 5 \| ([\d.]+) ", text)[1])
    share = float(re.search(r"(\d+)% of that gain is steps", text)[1])
    assert share == pytest.approx(100 * (longer - none) / (full - none), abs=1)
    assert 40 < share < 60


def test_the_table_of_decisions_on_file_is_that_of_the_records():
    kept = (PAGE.parent / "choosing.md").read_text()
    assert between(kept, "decisions", decision_table()) == kept
    assert kept.count("resolved |") + kept.count("resolved;") >= len(DECISIONS)


def test_every_row_has_a_command_or_plain_words():
    names = [row["name"] for row in PAPER["row"]]
    systems = {f"S{number}" for number in range(1, 29)}
    assert systems <= set(names)
    for table in ("1, 4", "2", "3", "5", "6"):
        assert f"Table {table}" in names
    for figure in ("1", "2", "3a", "3b", "3c, 5", "4", "6"):
        assert f"Figure {figure}" in names
    for row in PAPER["row"]:
        assert ("grid" in row) != ("result" in row)
        if "grid" in row:
            assert (GRIDS / f"{row['grid']}.toml").is_file()
        elif "command" in row and "pytest" in row["command"]:
            path = row["command"].split()[3]
            assert (PAGE.parents[1] / path).exists()
    text, _ = render()
    assert all(f"| {name} |" in text for name in names)
    # What was found stands first in the row, the paper's number last.
    for name in ("S8", "S9", "S18", "S19"):
        assert re.search(rf"^\| {name} \|.* The paper: .*\d", text, re.MULTILINE)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        result = line.split(" | ")[3]
        assert re.match(r"\*\*.* is \d+\.\d\d points above .*\*\*;", result) or re.match(
            r".* over .*: [+-]\d+\.\d\d points, unresolved;", result
        )


@pytest.mark.parametrize("table", PAPER["table"], ids=lambda table: table["grid"])
def test_the_papers_arms_are_arms_of_ours(table):
    arms = {cell.arm for cell in load_grid(table["grid"]).cells}
    assert set(table["values"]) <= arms


def test_what_was_not_run_says_what_it_would_take(recorded):
    text, pictures = render()
    assert pictures == {}
    hours = json.loads((GRIDS.parent / "results" / "estimates.json").read_text())["grids"]
    assert {table["grid"] for table in PAPER["table"]} <= set(hours)
    assert text.count("**not run**") == len(PAPER["table"])


def test_nothing_is_left_without_a_result_or_an_estimate():
    assert "not estimated" not in render()[0]
