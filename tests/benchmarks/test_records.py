"""Records: lines that several processes append to, and what was converted to them."""

import json
import multiprocessing
import re
from functools import partial

import pytest

from benchmarks.cells import Cell
from benchmarks.convert import convert
from benchmarks.grid import RESULTS, grid_names, load_grid
from benchmarks.records import append, read, shorten


def record(seed, device="a machine"):
    return {
        "cell": {"arm": "none", "seed": seed},
        "environment": {"device": device, "commit": "abc1234"},
        "result": {"losses": [1 / 3, 2.0]},
    }


def test_what_is_appended_is_read_with_five_digits_and_an_environment_once(tmp_path):
    path = tmp_path / "g.jsonl"
    assert read(path) == []
    for number, device in enumerate(("one", "one", "another", "one")):
        append(path, record(number, device))
    found = read(path)
    assert [each["cell"]["seed"] for each in found] == [0, 1, 2, 3]
    assert [each["environment"]["device"] for each in found] == ["one", "one", "another", "one"]
    assert found[0]["result"]["losses"] == [0.33333, 2.0]
    assert len(path.read_text().splitlines()) == 4 + 2


def test_numbers_are_shortened_wherever_they_are():
    assert shorten({"a": [1.234567, (0.000123456,)], "n": 1234567, "s": "x", "no": None}) == {
        "a": [1.2346, [0.00012346]],
        "n": 1234567,
        "s": "x",
        "no": None,
    }


def test_a_torn_last_line_is_left_out_and_cut_off_with_a_word(tmp_path):
    path = tmp_path / "g.jsonl"
    append(path, record(0))
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:40])
    with pytest.warns(UserWarning, match="last line is torn and left out"):
        assert [each["cell"]["seed"] for each in read(path)] == [0]
    with pytest.warns(UserWarning, match="last line is torn and cut off"):
        append(path, record(1))
    assert [each["cell"]["seed"] for each in read(path)] == [0, 1]
    assert path.read_text().startswith(whole)


def test_another_line_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / "g.jsonl"
    append(path, record(0))
    good = path.read_text()
    path.write_text("{\n" + good)
    with pytest.raises(ValueError, match="must hold records, got line 1"):
        read(path)
    path.write_text(good.splitlines()[1] + "\n")  # its environment is missing
    with pytest.raises(ValueError, match="must hold records, got line 1"):
        read(path)


def append_several(path, first):
    for seed in range(first, first + 20):
        append(path, record(seed, f"machine {first % 3}"))


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "g.jsonl"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(partial(append_several, path), [0, 20, 40, 60])
    assert sorted(each["cell"]["seed"] for each in read(path)) == list(range(80))


@pytest.fixture
def old(tmp_path):
    """Return a folder with one record in the old form."""
    cell = {**vars(Cell("some", 0, originals="selected", weights="cluster")), "weights": "paper"}
    cell["raw"] = cell.pop("originals")
    del cell["strong_options"]  # a field that is newer than the record
    selections = [{"epoch": 0, "error": 0.123456789}, {"epoch": 2, "error": 0.5}]
    before = {
        "cell": cell,
        "environment": {"device": "a machine"},
        "result": {"losses": [1 / 3], "epoch_seconds": [{"total": 1.0}]},
        "dynamics": {
            "selections": selections,
            "shadows": {"random 0.1": {"selections": selections[:1]}},
        },
    }
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "some-0-12345678.json").write_text(json.dumps(before))
    return tmp_path / "old"


def test_old_records_are_converted(old, tmp_path):
    path = tmp_path / "g.jsonl"
    assert convert(old, path, times=False) == 1
    (found,) = read(path)
    expected = {"arm": "some", "seed": 0, "originals": "selected", "weights": "cluster"}
    assert found["cell"] == expected
    assert found["result"] == {"losses": [0.33333]}
    assert found["dynamics"]["selections"] == {"epoch": [0, 2], "error": [0.12346, 0.5]}
    assert convert(old, path, times=True) == 1
    assert read(path)[0]["result"]["epoch_seconds"] == [{"total": 1.0}]


def test_a_conversion_that_loses_something_is_refused(old, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.convert.as_columns", lambda entries: {"epoch": [0]})
    with pytest.raises(ValueError, match="must hold what"):
        convert(old, tmp_path / "g.jsonl", times=False)


RECORDED = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
ENVIRONMENT = {"augsubset", "commit", "python", "torch", "device", "threads", "data"}
RESULT = {"accuracies", "evaluated_at", "losses", "steps", "rows", "augmented", "seconds"}


@pytest.mark.parametrize("name", RECORDED)
def test_a_record_on_file_says_what_it_is_of(name):
    assert name in grid_names()
    grid = load_grid(name)
    planned = {cell.key for cell in grid.cells}
    for each in read(RESULTS / f"{name}.jsonl"):
        assert set(each["environment"]) >= ENVIRONMENT
        assert re.fullmatch(r"[0-9a-f]{7,}", each["environment"]["commit"])
        assert re.fullmatch(r"[0-9a-f]{64}", each["environment"]["data"]["sha256"])
        assert set(each["result"]) >= RESULT
        assert len(each["result"]["accuracies"]) == len(each["result"]["evaluated_at"])
        assert Cell.of(each["cell"]).key in planned
        # What is asked was written down before: records of grids without questions are older.
        assert each.get("grid", grid.digest) == grid.digest
        assert "grid" in each or not grid.primaries
