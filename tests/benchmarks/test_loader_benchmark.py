"""The loader's benchmark: each workload measures what it says, at a small size."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from augsubset import GradientProbe
from augsubset.pipeline import BatchCheck
from benchmarks import loader
from benchmarks.crashes import Outcome
from benchmarks.measuring import Figure


@pytest.fixture(scope="module")
def data():
    return loader.stand_in(300)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_photos_hold_originals_and_augmented_copies(data):
    photos = loader.Photos(data, lambda image: image.rotate(180), copies=2)
    assert len(photos) == 900
    assert torch.equal(photos[5][0], data.x_train[5])
    assert torch.equal(photos[305][0], data.x_train[5].flip(1, 2))
    assert photos[605][1] == photos[5][1]


def test_grouped_decodes_an_example_once_and_mixed_more_often(data):
    grouped, mixed = loader.decodes(data, quick=True)
    assert (grouped.value, grouped.met) == (1.0, True)
    assert mixed.value > 1


def test_keys_are_as_many_as_asked_and_measured_in_seconds_and_megabytes(data):
    seconds, memory = loader.keys(data, quick=True)
    assert "100000 keys" in seconds.name
    assert (seconds.unit, memory.unit) == ("s", "MB")


@pytest.mark.slow
def test_memory_counts_its_batches_and_selections_which_probe(data, monkeypatch):
    scan, probed = GradientProbe.scan, []

    def counted(self, *arguments, **options):
        found = scan(self, *arguments, **options)
        probed.append(len(found))
        return found

    monkeypatch.setattr(GradientProbe, "scan", counted)
    (growth,) = loader.memory(data, quick=True, size=(50, 5))
    assert "5 reselections" in growth.name
    assert growth.unit == "share"
    assert probed == [10] * 5


def test_an_epoch_with_a_coreset_pays_a_twentieth_of_a_selection(data, monkeypatch):
    selections = {"5%": 10.0, "10%": 20.0, "30%": 100.0, "10% grouped": 40.0}

    def in_turn(calls, repeats):
        seconds = {"workers": 30.0}
        seconds |= {f"selection, {name}": each for name, each in selections.items()}
        return {name: [seconds.get(name, 1.0)] for name in calls}

    monkeypatch.setattr(loader, "in_turn", in_turn)
    found = {figure.name: figure for figure in loader.against_workers(data, quick=True)}
    assert [figure.value for figure in found.values()] == [20, 15, 5, 30, 10, 30]
    assert [name for name, figure in found.items() if figure.target == 10] == [
        "epoch at 10% with 4 copies and 1/20 of a selection, faster than all on workers"
    ]
    assert sum("1/20 of a selection" in name for name in found) == len(selections)


def test_probing_measures_what_a_loaders_selection_probes(data, monkeypatch):
    monkeypatch.setattr(loader, "build_model", lambda *arguments, **options: loader.linear())
    source, checked = BatchCheck.__call__, []

    def counted(self, batch, keys, item):
        checked.append(len(keys))
        source(self, batch, keys, item)

    monkeypatch.setattr(BatchCheck, "__call__", counted)
    probed, recorded = loader.probing(data, quick=True)
    assert probed.target == 1.05
    assert recorded.target == 0.01
    assert checked.count(300) == 4  # one to warm up; the rest are of construction


def test_kills_are_as_many_as_asked_over_layouts_and_workers(data, monkeypatch):
    asked = []

    def kill_and_resume(layout, workers, kills, seed):
        asked.append((layout, workers, kills))
        return Outcome(kills=kills, rows=100, mismatched=0, lost=1, twice=2, same_weights=seed != 3)

    monkeypatch.setattr(loader, "kill_and_resume", kill_and_resume)
    figures = {figure.name: figure for figure in loader.crashes(data, quick=False)}
    assert figures["kills over 1300 rows"].value == 50
    assert {kind[:2] for kind in asked} == {
        ("mixed", 0),
        ("mixed", 2),
        ("grouped", 0),
        ("grouped", 2),
    }
    met = {name: figure.met for name, figure in figures.items()}
    assert (met["mismatched rows"], met["lost rows"], met["rows seen twice"]) == (
        True,
        False,
        False,
    )
    assert figures["rows seen twice"].value == 26
    assert figures["runs with other weights at the end"].value == 1


def test_an_epoch_is_counted_in_batches(data):
    assert loader.consumed(DataLoader(loader.Photos(data), 128)) == 3


def test_the_record_names_every_workload(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AUGSUBSET_CIFAR10", raising=False)
    out = tmp_path / "loader.json"
    loader.main(["--quick", "--limit", "300", "--only", "keys", "decodes", "--out", str(out)])
    record = json.loads(out.read_text())
    assert list(record["workloads"]) == ["keys", "decodes"]
    assert record["commits"] == dict.fromkeys(record["workloads"], record["environment"]["commit"])
    loader.main(["--quick", "--limit", "300", "--only", "overhead", "--out", str(out)])
    again = json.loads(out.read_text())["workloads"]
    assert {name: again[name] for name in ("keys", "decodes")} == record["workloads"]
    beyond, bare = again["overhead"]
    assert beyond["unit"] == bare["unit"] == "us"
    assert bare["value"] > 0
    assert record["environment"]["data"]["name"] == "synthetic"
    assert "decodes an example, grouped: 1" in capsys.readouterr().out


@pytest.mark.parametrize(("unit", "ends"), [("", True), ("x", False)])
def test_a_miscounted_figure_fails_the_run_and_a_slow_one_does_not(
    unit, ends, tmp_path, monkeypatch
):
    missed = Figure("lost rows", 1.0, unit, "lower", 0.0)
    monkeypatch.setitem(loader.WORKLOADS, "keys", lambda data, quick: [missed])
    out = tmp_path / "loader.json"
    arguments = ["--quick", "--limit", "300", "--only", "keys", "--out", str(out)]
    if ends:
        with pytest.raises(SystemExit, match=r"lost rows: 1 .*MISSED"):
            loader.main(arguments)
    else:
        loader.main(arguments)
    assert out.exists()
