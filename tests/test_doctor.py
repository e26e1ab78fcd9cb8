"""The doctor: what it measures, what it says, and that it leaves no trace."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import AugsubsetError, GradientProbe, RandomOps, SubsetAugmentLoader
from augsubset.cli import main
from augsubset.doctor import Diagnosis, EpochCost, Measured

N = 64
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
Y = torch.arange(N) % 3


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.BatchNorm1d(3))


def make(model=None, policy=None, y=Y, **options):
    model = make_model() if model is None else model
    loader = DataLoader(TensorDataset(X, y), batch_size=8, shuffle=True)
    policy = RandomOps.paper() if policy is None else policy
    return SubsetAugmentLoader(loader, model, policy, fraction=0.25, copies=2, **options)


def slow(x, rows):
    time.sleep(0.01 * len(x))
    return x


def test_a_slow_policy_is_found_and_subset_augmentation_pays():
    found = make(policy=slow).doctor(steps=4, step=lambda x, y, w: None)
    assert found.subset.bottleneck == "augmentation"
    # 10 ms a copy and more: an epoch of 16 selected has 32 copies, all in full 128.
    assert found.subset.augmentation >= 0.32
    assert found.full.augmentation == pytest.approx(4 * found.subset.augmentation)
    assert found.pays
    assert "would save" in found.sentence
    assert "fraction=" in found.sentence


def test_cheap_augmentation_does_not_pay():
    def step(x, y, w):
        time.sleep(0.05)

    found = make(policy=lambda x, rows: x).doctor(steps=4, step=step)
    assert not found.pays
    assert "would not pay" in found.sentence
    assert found.none.step == pytest.approx(8 * 0.05, rel=0.5)


def test_nothing_is_left_behind():
    model = make_model()
    loader = make(model)
    expected = [batch for _ in range(2) for batch in make(model)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    generator = torch.get_rng_state()
    loader.doctor(steps=3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (loader.epoch, loader.history) == (0, [])
    found = list(loader)
    assert all(
        torch.equal(a, b)
        for batch, other in zip(found, expected, strict=False)
        for a, b in zip(batch, other, strict=True)
    )


def test_regression_and_selections_already_made_are_understood():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    loader = make(model, y=torch.rand(N), probe=GradientProbe(model, loss="mse"))
    assert loader.doctor(steps=2).num_sampled == 6  # a quarter of the 24 rows measured
    list(loader)
    after = loader.doctor(steps=2)
    assert after.num_sampled == len(loader.selection) == 16
    assert after.effective_sample_size == loader.selection.effective_sample_size


def cost(**parts):
    return EpochCost(
        **{"loading": 0, "augmentation": 0, "step": 0, "selection": 0, "overlaps": False, **parts}
    )


def diagnosis(**changes):
    values = {
        "none": cost(step=1),
        "subset": cost(step=1.4),
        "full": cost(step=5),
        "in_place": cost(step=1, augmentation=1),
        "num_selected": 100,
        "effective_sample_size": 80.0,
        "num_sampled": 100,
        "every": 20,
    }
    return Diagnosis(**{**values, **changes})


def test_times_overlap_only_with_workers():
    assert cost(loading=3, step=2, selection=1).total == 6
    assert cost(loading=3, step=2, selection=1, overlaps=True).total == 4
    measured = Measured(1.0, 2.0, 3.0, 4.0, 50.0, workers=False)
    epoch = measured.epoch(rows=10, copies=4, selections=0.1, probed=5)
    assert (epoch.loading, epoch.augmentation, epoch.step) == (10, 8, 30)
    assert epoch.selection == pytest.approx(7)


def test_each_verdict_follows_from_the_table():
    assert diagnosis().pays
    assert diagnosis().speed_up == pytest.approx(5 / 1.4)
    assert "would save 72%" in str(diagnosis())
    slow_subset = diagnosis(subset=cost(step=1.4, selection=4))
    assert "would not pay here: the subset takes" in slow_subset.sentence
    assert "every= and recycle=" in slow_subset.sentence
    in_place = diagnosis(in_place=cost(step=1, augmentation=0.05))
    assert "in place costs only 5%" in in_place.sentence


def test_a_low_effective_sample_size_is_warned_of():
    assert diagnosis().warning is None
    warned = diagnosis(effective_sample_size=12.0)
    assert "count like 12 of 100" in str(warned)


def test_the_doctor_does_not_come_while_an_epoch_runs():
    loader = make()
    running = iter(loader)
    next(running)
    with pytest.raises(AugsubsetError, match="doctor cannot come while an epoch runs"):
        loader.doctor()
    running.close()
    with pytest.raises(ValueError, match="steps must be at least 1"):
        loader.doctor(0)


# The command.

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from augsubset import RandomOps, SubsetAugmentLoader

def make():
    data = TensorDataset(torch.zeros(30, 3, 6, 6, dtype=torch.uint8), torch.arange(30) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    return SubsetAugmentLoader(DataLoader(data, 8, shuffle=True), model, RandomOps.paper())

def nothing():
    return None
"""


def test_the_command_prints_table_and_verdict(tmp_path, capsys, monkeypatch):
    script = tmp_path / "a_training_script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert main(["doctor", f"{script}:make", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "seconds an epoch" in out
    assert "pay" in out or "save" in out
    assert main(["doctor", "a_training_script:make", "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere.py:make", "must name a script that is there"),
        ("no_such_module:make", "No module named"),
        ("augsubset.cli", "must be module:function"),
        ("augsubset.cli:no_such", "no attribute 'no_such'"),
        ("tests.test_doctor:make_model", "must return a SubsetAugmentLoader, got Sequential"),
    ],
)
def test_targets_that_are_none_are_refused(target, reason, capsys, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    with pytest.raises(SystemExit):
        main(["doctor", target])
    assert reason in capsys.readouterr().err
