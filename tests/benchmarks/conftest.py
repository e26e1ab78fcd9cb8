"""Records in the place of those there are."""

import json

import pytest

from benchmarks import train as training
from benchmarks.results_page import render
from benchmarks.train import load_grid
from tests.runs import records


@pytest.fixture(scope="session")
def page():
    """Return the page of the records there are, and what draws its pictures."""
    return render()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return what writes records of a grid: accuracies of each arm, or its records."""
    monkeypatch.setattr(training, "RESULTS", tmp_path)

    def write(name, arms):
        arms = {
            arm: records(each) if isinstance(each, list) else each for arm, each in arms.items()
        }
        left = {(arm, seed): each for arm, runs in arms.items() for seed, each in runs.items()}
        (tmp_path / name).mkdir()
        for cell in load_grid(name).cells:
            if (cell.arm, cell.seed) in left:
                record = left.pop((cell.arm, cell.seed))
                (tmp_path / name / f"{cell.name}.json").write_text(json.dumps(record))
        assert not left  # an arm or a seed that the grid does not have

    return write
