"""The training runs on record: each says what it was, on what, of which commit."""

import json
import re

import pytest

from benchmarks.cells import Cell, from_record
from benchmarks.train import GRIDS, RESULTS, load_grid

pytestmark = pytest.mark.slow

ENVIRONMENT = {"augsubset", "commit", "python", "torch", "device", "threads", "data"}
RESULT = {"accuracies", "evaluated_at", "losses", "steps", "rows", "augmented", "seconds"}


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_a_record_says_what_it_is_of(name):
    planned = {cell.name: cell for cell in load_grid(name).cells}
    for path in (RESULTS / name).glob("*.json"):
        record = json.loads(path.read_text())
        assert set(record["environment"]) >= ENVIRONMENT, path.name
        assert re.fullmatch(r"[0-9a-f]{7,}", record["environment"]["commit"]), path.name
        assert re.fullmatch(r"[0-9a-f]{64}", record["environment"]["data"]["sha256"])
        assert set(record["result"]) >= RESULT
        assert len(record["result"]["accuracies"]) == len(record["result"]["evaluated_at"])
        # The grid's own cell, but for where it ran.
        cell = Cell.of(from_record(record["cell"]))
        where = ("device", "precision", "channels_last", "resident")
        plan = planned[path.stem]
        differ = {key for key, value in vars(cell).items() if value != getattr(plan, key)}
        assert differ <= (set(where) if cell.device != plan.device else set()), path.name


def test_no_record_is_of_no_grid():
    assert {path.name for path in RESULTS.iterdir()} <= {path.stem for path in GRIDS.glob("*.toml")}
