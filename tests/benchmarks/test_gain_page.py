"""Figures 1 and 4 of the paper: gains and speed-ups by rule and share, with known answers."""

import pytest

from benchmarks import gain_page
from benchmarks.gain_page import draw_gain, gain_section, gains, speed_ups
from tests.runs import records

pytestmark = pytest.mark.slow


def timed(seconds):
    runs = records([50.0] * 3)
    for record in runs.values():
        record["result"]["seconds"] = {"total": seconds}
    return runs


def test_a_gain_is_the_share_of_the_way_to_full_augmentation(recorded):
    recorded(
        "small-epochs",
        {
            "none": [50.0, 52.0],
            "full, appended": [60.0, 62.0],
            "random 10%": [54.0, 56.0],
            "coreset 30%": [45.0, 47.0],
            "coreset, weights of mean 1 30%": [55.0, 57.0],
        },
    )
    (bars,) = gains().values()
    assert bars["random"] == {"10%": pytest.approx(40)}
    assert bars["coreset"] == {"30%": pytest.approx(-50)}
    assert bars["coreset, weights of mean 1"] == {"30%": pytest.approx(50)}


def test_speed_ups_are_of_what_was_augmented_one_by_one(recorded, tmp_path):
    assert gain_section({}) == []
    recorded(
        "times",
        {
            "full, one by one": timed(12.0),
            "coreset 10%, one by one": timed(4.0),
            "coreset 10%, paper": timed(1.0),
        },
    )
    assert speed_ups() == {"coreset": {"10%": pytest.approx(3)}}
    assert gain_section({}) == []  # no gains yet
    recorded("small-epochs", {"none": [50.0], "full, appended": [60.0], "coreset 10%": [52.0]})
    pictures = {}
    assert "## Speed-up against accuracy" in gain_section(pictures)
    pictures["results-gain.svg"](tmp_path / "gain.svg")
    text = (tmp_path / "gain.svg").read_text()
    assert "ours in small (small-epochs)" in text
    assert "times as fast as full" in text


def test_bars_stand_where_their_values_are_and_end_at_minus_100(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(gain_page, "save_figure", lambda figure, path: figures.append(figure))
    bars = {"random": {"10%": 28.0}, "coreset": {"10%": -151.0, "30%": -39.0}}
    draw_gain({"ours": bars}, {"ours": {"coreset": {"10%": 3.0}}}, tmp_path / "gain.svg")
    gain, speed = figures[0].axes
    assert sorted(bar.get_height() for bar in gain.patches) == [-100.0, -39.0, 28.0]
    assert [bar.get_height() for bar in speed.patches] == [3.0]
    assert [label.get_text() for label in gain.get_xticklabels()] == ["10%", "30%"]
