"""The comparison of the scripts in docs/examples: a pair that loses more than a deviation fails."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, cifar

from benchmarks import examples
from benchmarks.datasets import ImageData, load_cifar10


def print_figures(plain, ours, name="accuracy"):
    """Return what a run would print, by script and seed."""

    def run(script, seed, arguments):
        figures = ours if script.stem.endswith("_augsubset") else plain
        seconds = 3.0 if figures is ours else 2.0
        return f"epoch 0: test {name} 1.00%\ntest {name} {figures[seed]:.2f}%\ntook {seconds} s\n"

    return run


@pytest.mark.parametrize(
    ("ours", "name", "ok"),
    [
        ((89.5, 90.5), "accuracy", True),  # half a point lower, where a deviation is 1.41
        ((87.0, 88.0), "accuracy", False),
        ((92.0, 93.0), "accuracy", True),
        ((92.0, 93.0), "error", False),
    ],
)
def test_a_pair_fails_that_ends_more_than_one_deviation_below(monkeypatch, ours, name, ok):
    monkeypatch.setattr(examples, "_run_apart", print_figures((89.0, 91.0), ours, name))
    found = examples.compare("text", [0, 1], [])
    assert (found["figure"], found["plain"]) == (name, [89.0, 91.0])
    assert found["ok"] is ok
    assert examples.times_as_long(found) == 1.5


def test_the_record_holds_every_pair_that_needs_no_data(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(examples, "_run_apart", print_figures((89.0, 91.0), (80.0, 81.0)))
    record = tmp_path / "record.json"
    assert examples.main(["--seeds", "0", "1", "--out", str(record)]) == 1
    pairs = json.loads(record.read_text())
    assert {"ddp", "text", "timm"} <= set(pairs)
    assert "cifar" not in pairs
    assert capsys.readouterr().out.count("LOWER") == len(pairs)
    monkeypatch.setattr(examples, "_run_apart", print_figures((80.0, 81.0), (80.0, 81.0)))
    assert examples.main(["text", "--seeds", "0", "1", "--out", str(record)]) == 0
    again = json.loads(record.read_text())
    assert list(again) == list(pairs)
    assert again["text"]["ok"]
    assert again["ddp"] == pairs["ddp"]


def test_a_part_of_cifar_10_is_written_as_torchvision_reads_it(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    x = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    y = torch.arange(12) % 10
    examples.write_cifar_root(ImageData("", x, y, x[:2], y[:2], ([0.0], [1.0])), tmp_path, 11)
    assert CIFAR10(tmp_path).classes == list("0123456789")
    read = load_cifar10(tmp_path)
    assert torch.equal(read.x_train, x[:11])
    assert torch.equal(read.y_train, y[:11])
    assert torch.equal(read.x_test, x[:2])


def test_every_pair_is_on_record_and_none_ends_a_deviation_below_its_twin():
    pairs = json.loads((Path(examples.__file__).parent / "results" / "examples.json").read_text())
    scripts = examples.EXAMPLES.glob("*_plain.py")
    assert set(pairs) == {path.stem.removesuffix("_plain") for path in scripts}
    for pair in pairs.values():
        assert pair["ok"]
        assert len(pair["plain"]) == len(pair["augsubset"]) >= 3
    assert pairs["cifar"]["training images"] == 5000
