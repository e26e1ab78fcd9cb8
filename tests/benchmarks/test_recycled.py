"""The benchmark of recycled probing, at toy size."""

import json

import pytest

from benchmarks import recycled
from tests.benchmarks.test_datasets import write_npz

pytestmark = pytest.mark.slow


def test_recycling_is_measured_against_a_scan(tmp_path):
    write_npz(tmp_path / "c.npz", n=280)
    arguments = ["--data", str(tmp_path / "c.npz"), "--limit", "260", "--epochs", "2"]
    recycled.main([*arguments, "--out", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    found = record["recycled"]
    assert record["environment"]["torch"]
    assert found["examples"] == found["rows_recycled"] == 260
    assert len(found["epoch_seconds_with"]) == len(found["epoch_seconds_without"]) == 2
    assert 0 < found["mean_age_in_epochs"] < 1
    assert found["mean_residual_moved"] > 0
    assert -1 <= found["correlation"] < 1
    # Every subset is judged on the scan's residuals.
    assert found["recycled_over_scan"] == found["errors"]["recycled"] / found["errors"]["scan"]
    assert found["random_over_scan"] == found["errors"]["random"] / found["errors"]["scan"]
    assert 0 <= found["overlap"] <= 1
