"""The results page: what is on record and nothing else, resolved only where it is."""

import re

import pytest

from benchmarks.answers import answer_to, in_parts, question_table, shown_p
from benchmarks.decisions_page import DECISIONS, decision_table
from benchmarks.dynamics_page import _moves, _tops, at_least, dynamics_section
from benchmarks.grids_page import arm_table, grid_section, in_short
from benchmarks.leads_page import leads_section
from benchmarks.paper_page import PAPER, paper_section
from benchmarks.questions import questions
from benchmarks.results_page import PAGE, render
from benchmarks.tables import between
from benchmarks.train import GRIDS, load_grid, load_results
from tests.runs import records

pytestmark = pytest.mark.slow

ELSEWHERE = {
    *("dynamics", "times", "times-gpu", "smoke"),
    *(path.stem for path in GRIDS.glob("*-observed.toml")),
}


def test_the_page_on_file_is_that_of_the_records(page):
    text, pictures = page
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
    assert by_question["| Fresh random, 10%: better than none?"].endswith("| unresolved |")
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
    assert "**Equal steps**\n\n- *full, appended* is 3.04 points above *none*" in text
    assert "unresolved so far: 1." in text


def test_runs_of_different_devices_are_no_pairs():
    none, full = records([60.0, 61.0, 60.5]), records([63.1, 64.0, 63.4])
    full[1]["environment"] = {**full[1]["environment"], "device": "another machine"}
    full[2]["cell"] = {"precision": "bfloat16"}
    line = question_table({"none": none, "full, appended": full})[-1]
    assert line.startswith("| Does augmenting everything help? | 1 | +3.10 |")


def test_the_recall_of_the_tail_is_among_what_is_resolved(recorded):
    arms = {"none": [20.0, 21.0, 20.5, 20.2], "random 30%": [30.0, 31.2, 30.4, 30.3]}
    recorded(
        "small-imbalanced",
        {arm: records([50.0, 50.1, 50.2, 50.3], tail=tail) for arm, tail in arms.items()},
    )
    text = "\n".join(in_short(["small-imbalanced"]))
    assert "recall of the tail: *random 30%* is 10.05 points above *none*" in text
    assert "unresolved so far: 1." in text  # that of the accuracies, which are the same


def test_what_moves_over_epochs_and_tops_is_told_as_it_is():
    overlaps = [0.9, 0.1, 0.2, 0.3, 0.5, 0.6, 0.4]
    track = {
        "selections": [{"overlap_with_max_loss": each} for each in overlaps],
        "top_overlap": {"0.01": 0.25, "0.3": 0.6},
    }
    shadows = {"coreset 0.3": track}
    assert _moves(shadows) == "goes from 20% in epochs 1 to 3 to 50% in the last three"
    assert _tops(shadows) == "25% of the top 1%, 60% of the top 30%"


def test_one_run_shows_no_spread():
    line = arm_table({"none": records([60.0])})[-1]
    assert line == "| none | 1 | 60.00 |  |  | 10 | 5 |"


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision[0])
def test_what_is_advised_is_what_was_found(decision):
    for name, words, expected in decision[2]:
        answer = answer_to(name, words)
        asked = answer.question
        assert {asked.first: "+", asked.second: "-", None: "="}[answer.winner] == expected


def test_how_much_of_full_augmentations_gain_is_steps(page):
    """From the tables of the page, whose means are those of the records."""
    text, _ = page
    at_epochs = text.split("## Equal epochs")[1]
    none, full = (
        float(re.search(rf"\| {arm} \| 5 \| ([\d.]+) ", at_epochs)[1])
        for arm in ("none", "full, appended")
    )
    at_steps = text.split("## Equal steps:")[1]
    longer = float(re.search(r"\| none \| 5 \| ([\d.]+) ", at_steps)[1])
    share = float(re.search(r"(\d+)% of that gain is steps", text)[1])
    assert share == pytest.approx(100 * (longer - none) / (full - none), abs=1)
    assert 40 < share < 60


def test_the_table_of_decisions_on_file_is_that_of_the_records():
    kept = (PAGE.parent / "choosing.md").read_text()
    assert between(kept, "decisions", decision_table()) == kept
    assert kept.count("* over *") == len(DECISIONS)


# Grids.


def test_a_grid_that_has_cells_gets_a_section_by_itself(recorded):
    assert grid_section("small-time") == []
    recorded("small-time", {"none": [50.0, 51.0], "coreset 30%": [48.0, 49.5]})
    text, _ = render()
    (section,) = [each for each in text.split("\n## ") if each.startswith("Equal time")]
    assert "40 s, copies: 1" in section
    assert "4 of 25 cells; a machine, torch 2.0, commits abc1234." in section
    assert "| coreset 30% | 2 | 48.75 | 1.06 |" in section
    assert "| Coreset, 30%: better than none? | 2 | -1.75 |" in section
    assert load_grid("small-time").about in section


def test_every_grid_is_on_the_page_once(recorded):
    names = [path.stem for path in GRIDS.glob("*.toml")]
    for name in names:
        if name not in ELSEWHERE:
            first = load_grid(name).cells[0]
            recorded(name, {first.arm: [50.0]})
    text, _ = render()
    for name in names:
        times = text.count(f"`python -m benchmarks.train {name} --data")
        assert times == (name not in ELSEWHERE), name


def test_a_long_tail_shows_what_is_selected_of_it(recorded):
    entries = [{"tail_recall": 0.2}, {"tail_recall": 0.4}]
    recorded(
        "small-imbalanced",
        {
            "none": records([50.0], selections=[{"tail_recall": 1.0}]),
            "random 30%": records([50.0, 51.0], selections=entries, tail=[20.0, 24.0]),
        },
    )
    lines = grid_section("small-imbalanced")
    assert "| random 30% | 2 | 22.00 | 2.83 | 30.0 |" in lines
    assert "| none | 1 |  |  |  |" in lines  # everything is selected, and its record is older
    assert not any("Clean labels" in line for line in lines)


@pytest.mark.parametrize(("part", "clean"), [("any", "55%"), ("other", "50%")])
def test_noise_shows_the_clean_labels_among_the_selected(recorded, part, clean):
    entries = [{"clean_share": 0.5, "clean_weight": 0.625}]
    recorded("table2", {f"random 10%, {part}": records([50.0], selections=entries)})
    text = "\n".join(paper_section(PAPER["table"][3], {"table2-steps": {"hours": 1.0}}))
    assert f"({clean} of all labels are clean" in text
    assert "| random 10% | 1 | 50.0 | 62.5 |" in text


def test_classes_of_several_sizes_have_a_mean_of_their_own(recorded):
    recorded("caltech256", {"none": records([50.0], balanced=40.0)})
    lines = grid_section("caltech256")
    assert any("| mean of classes, % |" in line for line in lines)
    assert "| none | 1 | 50.00 |  |  | 40.00 | 10 | 5 |" in lines
    assert "mean of classes" not in "\n".join(arm_table({"none": records([50.0])}))


def test_parts_of_a_grid_are_asked_apart_and_share_what_has_no_part():
    grid = load_grid("caltech256")
    parts = in_parts(grid, {cell.arm: cell.arm for cell in grid.cells})
    assert list(parts) == ["paper", "autoaugment-imagenet", "cutout", "augmix", "noise"]
    assert all(arms["none"] == "none" for arms in parts.values())
    assert parts["cutout"]["coreset 30%"] == "coreset 30%, cutout"
    assert len({frozenset(arms) for arms in parts.values()}) == 1
    whole = load_grid("small-steps")
    assert list(in_parts(whole, {"none": 1})) == [""]


# Questions.

# Controls that are read, and max-loss alone, which does not learn.
UNASKED = {
    "none, as many epochs",
    *(
        f"max-loss{share}, not augmented{longer}"
        for share in ("", " 0.1%", " 0.2%", " 0.5%", " 1%")
        for longer in ("", ", as many steps")
    ),
}


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_what_is_asked_of_a_grid_is_asked_once(path):
    grid = load_grid(path.stem)
    for arms in in_parts(grid, {cell.arm: cell for cell in grid.cells}).values():
        asked = questions(arms)
        assert all({each.first, each.second} <= set(arms) for each in asked)
        assert len({each.words for each in asked}) == len(asked)
        assert len({frozenset((each.first, each.second)) for each in asked}) == len(asked)
        assert not any("SHARE" in each.words or ", ," in each.words for each in asked)
        compared = {arm for each in asked for arm in (each.first, each.second)}
        if path.stem not in ELSEWHERE:
            assert set(arms) - compared <= UNASKED


@pytest.mark.parametrize("share", ["10%", "30%"])
@pytest.mark.parametrize("rule", ["Random", "Max-loss", "Coreset"])
def test_every_rule_is_held_against_none(rule, share):
    for name in ("small-steps", "small-epochs", "small-noise", "table1-cifar10"):
        asked = {each.words: each for each in questions(cell.arm for cell in load_grid(name).cells)}
        question = asked[f"{rule}, {share}: better than none?"]
        assert (question.first, question.second) == (f"{rule.lower()} {share}", "none")


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0498, "0.0498"), (0.04996, "0.04996"), (0.0502, "0.05"), (0.05, "0.05"), (0.2, "0.2")],
)
def test_p_is_shown_on_its_side_of_the_bound(p, shown):
    assert shown_p(p) == shown


def test_what_leads_call_resolved_has_its_p():
    text = "\n".join(leads_section())
    assert re.search(r", resolved, p = 0\.\d+", text)
    assert not re.search(r"(?<!un)resolved(?!, p = [\d.e-]+\d)", text)


def test_the_page_begins_with_what_was_run(page):
    scope = page[0].split("\n\n")[1]
    steps, only = load_grid("small-steps"), load_grid("small-only")
    assert f"{steps.cells[0].limit:,} CIFAR-10 images" in scope
    assert f"{only.cells[0].limit:,} where only the subset is trained on" in scope
    assert {cell.copies for cell in (*steps.cells, *only.cells)} == {1}
    assert "one augmented copy" in scope
    runs = {len(each) for grid in (steps, only) for each in load_results(grid).values()}
    assert runs == {5}
    assert "five seeds" in scope
    twice = [path.stem for path in GRIDS.glob("small-*.toml") if "3000" in path.stem]
    assert {load_grid(name).cells[0].limit for name in twice} == {3000}
    assert f"3,000 in {({2: 'two'})[len(twice)]} tables" in scope
    short = load_grid("table1-cifar10-short")
    runs = load_results(short)
    fewest = min(len(runs.get(cell.arm, ())) for cell in short.cells)
    seeds = "5 seeds" if fewest == 5 else f"{fewest} to 5 seeds"
    assert f"on a GPU: table 1 in seven epochs, {seeds} an arm" in scope
    assert "It cannot tell whether the paper's numbers" in scope


def test_the_page_says_what_is_left_of_the_tables_in_few_epochs(recorded):
    recorded("table2-short", {"none": [50.0, 51.0], "random 10%": [52.0]})
    text, _ = render()
    assert "`table2-short` 47 of 50" in text
    assert "`table6-short` 35 of 35" in text
    assert "on a GPU: table 2 at 10% in seven epochs, 0 to 2 seeds an arm." in text


def test_how_often_examples_are_selected_is_counted_from_the_record():
    """Of ten examples five never, three once, two in both selections."""
    track = {"times_selected": [5, 3, 2], "selections": [{}, {}]}
    assert at_least(track) == ([1, 2], [0.5, 0.2])


def test_the_record_of_dynamics_shows_counts_and_ginis_coefficient():
    pictures = {}
    text = "\n".join(dynamics_section(pictures))
    (records,) = load_results(load_grid("dynamics")).values()
    tracks = records[0]["dynamics"]["shadows"]
    for name, track in tracks.items():
        rule, share = name.rsplit(" ", 1)
        (line,) = (
            line
            for line in text.splitlines()
            if line.startswith(f"| {rule} | {float(share):.0%} |")
        )
        assert f"| {track['gini']:.2f} |" in line
        assert sum(track["times_selected"]) == 10_000
        assert track["times_selected"][0] == round(10_000 * track["never_selected"])
    assert "results-times-selected.svg" in pictures
    assert "(results-times-selected.svg)" in text
