"""The demo: its arms, the arithmetic of its conclusion, its page, its command."""

import json
import re

import numpy as np
import pytest
import torch

from augsubset.cli import main
from augsubset.demo.data import load_arrays, load_digits
from augsubset.demo.page import show_most_selected
from augsubset.demo.results import compare, conclude, format_table, summarize
from augsubset.demo.training import ARMS, Run, Setting, build_network, train_arm
from augsubset.selection import Selection

SETTING = Setting(epochs=2, every=1, batch_size=20)


def run(accuracy, total=1.0, steps=10):
    parts = ("selection", "loading", "augmentation", "step")
    seconds = {**dict.fromkeys(parts, total / 4), "total": total}
    return Run([0, steps], [0.1, accuracy], 100, seconds)


def summarize_runs(**accuracies):
    """Three seeds of every arm, around the accuracies given."""
    usual = {"none": 0.9, "none-steps": 0.93, "random": 0.92, "max-loss": 0.91, "coreset": 0.92}
    means = {**usual, "full": 0.94, **{k.replace("_", "-"): v for k, v in accuracies.items()}}
    total = {"full": 4.0, "random": 2.0}
    return summarize(
        {
            name: [run(mean + shift, total.get(name, 1.0)) for shift in (-0.001, 0.0, 0.001)]
            for name, mean in means.items()
        }
    )


# The conclusion, from the figures.


def test_accuracies_are_means_and_times_medians_over_seeds():
    found = summarize({"full": [run(0.8, 1.0), run(0.9, 2.0), run(1.0, 90.0)]})["full"]
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["seconds"]["total"] == 2.0
    assert "90.00    " in format_table({"full": found}, 0.3)


def test_arms_are_compared_seed_by_seed_with_a_t_interval():
    summary = summarize(
        {"a": [run(0.9), run(0.8), run(0.7)], "b": [run(0.89), run(0.78), run(0.67)]}
    )
    found = compare(summary, "a", "b")
    assert found["difference"] == pytest.approx(2.0)
    # The standard error of 1, 2, 3 is 1 / sqrt(3); t of two degrees at 97.5% is 4.303.
    assert found["interval"] == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4)
    assert not found["significant"]
    assert compare(summarize({"a": [run(0.9)], "b": [run(0.8)]}), "a", "b")["interval"] is None


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ({}, "No significant difference between a random 30% and a coreset"),
        ({"coreset": 0.935}, "A coreset of 30% did 1.5 points better than a random 30%"),
        ({"coreset": 0.9}, "A coreset of 30% did 2.0 points worse than a random 30%"),
        ({}, "augmenting everything was 2.0 points better than the random 30%, at 2.0 times the"),
        ({"full": 0.92}, "augmenting everything made no significant difference to the random 30%"),
    ],
)
def test_the_headline_says_what_the_figures_say(accuracies, words):
    # Seeds move all arms alike, so that their differences do not vary but for rounding.
    assert words in conclude(summarize_runs(**accuracies), 0.3)[0]


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ({}, "75% of what augmenting everything gained is more gradient steps"),
        ({"none_steps": 0.95}, "more training alone gained as much as augmenting everything"),
        ({"none_steps": 0.89}, "more training alone explains nothing"),
        ({"full": 0.89}, "no significant gain from augmenting everything"),
    ],
)
def test_the_gain_is_split_into_steps_and_augmentation(accuracies, words):
    conclusion = conclude(summarize_runs(**accuracies), 0.3)[1]
    assert words in conclusion["Augmentation or more training?"]


def test_one_seed_concludes_nothing():
    headline, paragraphs = conclude(
        {
            name: {**row, "accuracies": row["accuracies"][:1]}
            for name, row in summarize_runs(coreset=0.99).items()
        },
        0.3,
    )
    assert headline.startswith("No significant difference")
    assert "in one seed, which may be chance" in paragraphs["Random or coreset?"]


# Training.


def test_the_arms_differ_in_what_is_augmented_and_in_steps():
    images = load_digits(60)
    runs = {name: train_arm(arm, images, SETTING, 0) for name, arm in ARMS.items()}
    augmented = {name: run.augmented for name, (run, _) in runs.items()}
    subset = 2 * 4 * 18
    assert augmented == {
        **{"none": 0, "none-steps": 0, "full": 2 * 4 * 60},
        **{"random": subset, "max-loss": subset, "coreset": subset},
    }
    steps = {name: run.steps[-1] for name, (run, _) in runs.items()}
    assert steps["none"] == 2 * 3
    assert steps["none-steps"] == steps["full"] == 2 * 15
    assert {len(run.steps) for run, _ in runs.values()} == {1 + 2}  # evaluated as often
    assert [epoch for epoch, _ in runs["coreset"][1]] == [0, 1]
    # All start from the same weights, those of the seed.
    assert len({run.accuracies[0] for run, _ in runs.values()}) == 1


def test_initial_weights_depend_on_the_seed_alone():
    images = load_digits(20)
    first, again, other = (build_network(images, seed)[-1].weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_the_gallery_say_what_they_are():
    images = load_digits(20)
    selections = [
        (0, Selection.equally_weighted(torch.tensor([4, 7]), 20)),
        (4, Selection.equally_weighted(torch.tensor([7, 9]), 20)),
    ]
    shown = show_most_selected(images, selections, 0, count=1)
    label = f"class {int(images.y_train[7])}"
    assert f"{label}: selected in 2 of 2 selections, for 10 images" in shown
    assert shown.count(f'alt="an image of {label}, original"') == 1
    assert shown.count(", augmented copy") == 2


# Data.


def write_arrays(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }
    np.savez(path, **{**arrays, **changes})


def test_own_arrays_are_read_and_cut(tmp_path):
    write_arrays(tmp_path / "mine.npz")
    images = load_arrays(tmp_path / "mine.npz", 20)
    assert (images.name, images.x_train.shape, images.num_classes) == ("mine", (20, 3, 8, 8), 3)
    assert len(images.mean_std[0]) == 3
    gray = np.zeros((9, 8, 8), np.uint8)
    write_arrays(tmp_path / "gray.npz", x_train=gray, y_train=np.arange(9), x_test=gray)
    assert load_arrays(tmp_path / "gray.npz").x_test.shape == (9, 1, 8, 8)


@pytest.mark.parametrize("changes", [{"x_test": np.zeros((9, 8, 8, 3))}, {"y_test": np.arange(8)}])
def test_other_arrays_are_refused(tmp_path, changes):
    write_arrays(tmp_path / "mine.npz", **changes)
    with pytest.raises(ValueError, match="x_test must be uint8 images"):
        load_arrays(tmp_path / "mine.npz")


# The command.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes and prints."""
    out = tmp_path_factory.mktemp("demo")
    arguments = ["--limit", "60", "--epochs", "2", "--every", "1", "--seeds", "2"]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["demo", *arguments, "--out", str(out)]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    return json.loads((out / "results.json").read_text()), (out / "index.html").read_text()


def test_the_page_opens_with_the_conclusion_of_its_record(written):
    record, page = written
    assert record["environment"]["threads"] == 1
    summary = record["summary"]
    assert list(summary) == list(record["runs"]) == list(ARMS)
    headline, paragraphs = conclude(summary, 0.3)
    assert re.search(r"<body>\s*<h1>(.*?)</h1>", page)[1] == headline == record["headline"]
    assert record["conclusion"] == paragraphs
    for row in summary.values():
        assert f"<td>{100 * row['accuracy']:.2f}<small>" in page
    assert page.count("<svg") == 1
    assert page.count("data:image/") == 30
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert 'alt=""' not in page


def test_no_curve_leaves_its_chart(written):
    _, page = written
    lines = re.findall(r'<polyline points="([^"]+)"', page)
    assert len(lines) == len(ARMS)
    ticks = [float(y) for y in re.findall(r'<line [^>]*y1="([\d.]+)"', page)]
    for line in lines:
        ys = [float(point.split(",")[1]) for point in line.split()]
        assert min(ticks) < min(ys) <= max(ys) < max(ticks)


def test_the_command_runs_on_own_arrays(tmp_path, capsys):
    write_arrays(tmp_path / "mine.npz")
    arguments = [
        "--epochs",
        "1",
        "--every",
        "1",
        "--seeds",
        "1",
        "--crop-flip",
        "--batch-size",
        "10",
    ]
    out = tmp_path / "out"
    assert main(["demo", "--data", str(tmp_path / "mine.npz"), "--out", str(out), *arguments]) == 0
    assert json.loads((out / "results.json").read_text())["data"]["num_test"] == 9
    assert f"The page: {out / 'index.html'}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--epochs", "--seeds"])
def test_numbers_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["demo", option, "0"])
    assert f"{option[2:]} must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_full_augmentation_gains_two_points_in_the_mean_of_three_seeds():
    images, gains = load_digits(), []
    for seed in range(3):
        none, full = (
            train_arm(ARMS[name], images, Setting(), seed)[0].accuracies[-1]
            for name in ("none", "full")
        )
        gains.append(full - none)
    assert sum(gains) / 3 >= 0.02
