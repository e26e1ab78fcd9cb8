"""The loader's benchmark: each workload measures what it says, at a small size."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import loader
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


def test_memory_counts_its_batches_and_selections(data):
    (growth,) = loader.memory(data, quick=True, num_batches=200, reselections=20)
    assert "20 reselections" in growth.name
    assert growth.unit == "share"


def test_an_epoch_is_counted_in_batches(data):
    assert loader.consumed(DataLoader(loader.Photos(data), 128)) == 3


def test_the_record_names_every_workload(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AUGSUBSET_CIFAR10", raising=False)
    out = tmp_path / "loader.json"
    loader.main(["--quick", "--limit", "300", "--only", "keys", "decodes", "--out", str(out)])
    record = json.loads(out.read_text())
    assert list(record["workloads"]) == ["keys", "decodes"]
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
