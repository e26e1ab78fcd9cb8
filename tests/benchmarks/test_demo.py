"""The demo: arms, arithmetic of the table, the page."""

import json
import re

import pytest
import torch

from benchmarks import demo
from benchmarks.harness import RunResult
from tests.benchmarks.test_datasets import write_npz

pytestmark = pytest.mark.slow


def run(accuracy, total, augmented=0):
    names = ("selection", "loading", "augmentation", "step")
    seconds = {**dict.fromkeys(names, total / 4), "total": total}
    return RunResult([0.1, accuracy], 10, 100, augmented, seconds, [5, 10], [1.0, 0.5], accuracy)


def test_shares_are_of_means_and_speed_ups_of_medians_over_seeds():
    rows = demo.summarise(
        {
            "none": [run(0.80, 1.0), run(0.90, 1.0)],
            "full": [run(0.90, 8.0), run(1.00, 12.0)],
            "coreset": [run(0.85, 2.5), run(0.95, 2.5), run(0.90, 90.0)],
            "random": [run(0.70, 2.5), run(0.80, 2.5)],
        }
    )
    by_name = {row["arm"]: row for row in rows}
    assert by_name["coreset"]["share_of_gain"] == pytest.approx(0.5)
    assert by_name["random"]["share_of_gain"] == pytest.approx(-1.0)  # a loss is shown as one
    assert by_name["coreset"]["speed_up"] == pytest.approx(4.0)
    assert by_name["none"]["speed_up"] == pytest.approx(10.0)
    assert "-100" in demo.format_table(rows)


@pytest.mark.parametrize("full", [0.80, 0.75])
def test_the_share_is_not_available_where_full_augmentation_gains_nothing(full):
    rows = demo.summarise({"none": [run(0.8, 1.0)], "full": [run(full, 2.0)]})
    assert [row["share_of_gain"] for row in rows] == [None, None]
    assert "n/a" in demo.format_table(rows)


def test_without_the_two_reference_arms_shares_and_speed_ups_are_not_available():
    (row,) = demo.summarise({"coreset": [run(0.8, 1.0)]})
    assert (row["share_of_gain"], row["speed_up"]) == (None, None)


def test_the_demo_writes_a_self_contained_page_and_its_record(tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["--limit", "60", "--epochs", "2", "--every", "1", "--seed", "0", "1"]
    demo.main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    assert str(out / "index.html") in printed
    record = json.loads((out / "results.json").read_text())
    assert list(record["runs"]) == list(demo.DEFAULT_ARMS)
    by_name = {row["arm"]: row for row in record["summary"]}
    assert by_name["none"]["augmented"] == 0
    assert by_name["full"]["augmented"] == 2 * 4 * 60
    assert by_name["coreset"]["augmented"] == by_name["random"]["augmented"] == 2 * 4 * 18
    assert by_name["coreset"]["seconds"]["selection"] > 0
    page = (out / "index.html").read_text()
    for row in record["summary"]:
        assert row["label"] in printed
        assert row["label"] in page
        assert f"{100 * row['accuracy']:.2f}" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/png;base64") == 30
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert outside == []


def test_all_arms_of_a_seed_start_from_the_same_weights(tmp_path, monkeypatch):
    starts = []
    trained = demo.train

    def spy(model, *args, **options):
        starts.append(model.head.weight.detach().clone())
        return trained(model, *args, **options)

    monkeypatch.setattr(demo, "train", spy)
    arguments = "--limit 40 --epochs 1 --seed 3 4 --arms none full random max-loss coreset"
    demo.main([*arguments.split(), "--out", str(tmp_path)])
    assert all(torch.equal(starts[0], start) for start in starts[1:5])
    assert all(torch.equal(starts[5], start) for start in starts[6:])
    assert not torch.equal(starts[0], starts[5])


def test_the_same_job_runs_on_cifar10(tmp_path):
    write_npz(tmp_path / "c.npz")
    arguments = "--model resnet20 --limit 30 --epochs 1 --batch-size 10 --lr 0.1 --fraction 0.4"
    arguments += " --copies 2 --every 1 --arms none-steps full coreset --seed 1 --device cpu"
    arguments += f" --workers 1 --data {tmp_path / 'c.npz'} --out {tmp_path / 'out'}"
    demo.main(arguments.split())
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["environment"]["data"]["name"] == "cifar10"
    assert record["setting"]["workers"] == 1
    steps = {row["arm"]: row["steps"] for row in record["summary"]}
    assert steps == {"none-steps": 9, "full": 9, "coreset": 6}


@pytest.mark.slow
def test_full_augmentation_gains_two_points_in_the_mean_of_three_seeds():
    setting, _, seeds, _ = demo.parse([])
    assert seeds == [0, 1, 2]
    data = demo.load_digits_images()
    gains = []
    for seed in seeds:
        none, full = (
            demo.run_arm(demo.ARMS[name], data, setting, seed)[0].accuracies[-1]
            for name in ("none", "full")
        )
        gains.append(full - none)
    assert sum(gains) / 3 >= 0.02
