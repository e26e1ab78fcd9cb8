"""The doctor: what it measures, what it says, and that it leaves no trace."""

import multiprocessing
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    AllSelector,
    AugsubsetError,
    CoresetSelector,
    GradientProbe,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
)
from augsubset.cli import main
from augsubset.reporting import summary
from augsubset.reporting.cost_model import PARTS
from augsubset.sampling.source import Source
from tests.contracts import assert_same_batches

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


# What is measured, by a clock that only the parts themselves advance.


class Clock:
    """Seconds that pass when somebody says so."""

    now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("augsubset.reporting.doctor.perf_counter", clock)
    for module in ("schedule", "timing"):
        monkeypatch.setattr(f"augsubset.{module}.time", SimpleNamespace(perf_counter=clock))
    return clock


class Items(Dataset):
    """A second an item, and more for the first of a pass, while workers would start."""

    def __init__(self, clock, to_start=0.0):
        self.clock, self.to_start, self.targets = clock, to_start, Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.clock.takes(1.0 + (self.to_start if index == 0 else 0.0))
        return X[index], self.targets[index]


class Model(nn.Sequential):
    """Half a second a row in evaluation, three in training."""

    def __init__(self, clock):
        super().__init__(nn.Flatten(), nn.Linear(108, 3))
        self.clock = [clock]

    def forward(self, x):
        self.clock[0].takes(len(x) * (3.0 if self.training else 0.5))
        return super().forward(x)

    def __deepcopy__(self, memo):
        again = Model(self.clock[0])
        again.load_state_dict(self.state_dict())
        return again


class Rule(CoresetSelector):
    """Seven seconds a solve."""

    clock: Clock

    def select(self, gradients, **arguments):
        self.clock.takes(7.0)
        return super().select(gradients, **arguments)


def timed(clock, *, to_start=0.0, rule=None, **options):
    """A loader of 64 examples of which 8 get 3 copies, in batches of 8, each part by the clock."""

    def strong(x, rows):
        clock.takes(2.0 * len(x))
        return x

    def base(x, rows):
        clock.takes(0.25 * len(x))
        return x

    if rule is None:
        rule = Rule()
        object.__setattr__(rule, "clock", clock)
    options = {"fraction": 0.125, "copies": 3, "every": 4, "base": base, **options}
    data = DataLoader(Items(clock, to_start), batch_size=8)
    return SubsetAugmentLoader(data, Model(clock), strong, selector=rule, **options)


def parts(cost):
    return [getattr(cost, part) for part in PARTS]


def test_each_part_is_measured_to_the_second(clock):
    found = timed(clock).doctor(steps=50)
    # 88 rows, 24 of them copies. A row is 0.25 of base policy and 3 of training; a probe is 64
    # items and forward passes, and every fourth epoch has one.
    assert parts(found.subset) == pytest.approx([88, 48, 88 * 3.25, 64 * 1.5 / 4, 7 / 4])
    assert parts(found.none) == pytest.approx([64, 0, 64 * 3.25, 0, 0])
    assert parts(found.full) == pytest.approx([256, 384, 256 * 3.25, 0, 0])
    assert parts(found.in_place) == pytest.approx([64, 128, 64 * 3.25, 0, 0])
    assert found.subset.total == pytest.approx(sum(parts(found.subset)))


def test_few_batches_stand_for_all(clock):
    found = timed(clock).doctor(steps=3)
    # 4 of 8 batches: a probe is taken to grow as they do, a solve with their square.
    assert parts(found.subset) == pytest.approx([88, 48, 88 * 3.25, 64 * 1.5 / 4, 7 * 4 / 4])
    assert found.num_sampled == 4


def test_a_step_of_ones_own_is_timed_in_place_of_the_default(clock):
    seen = []

    def step(x, y, w):
        seen.append((x.shape, y.shape, w.tolist()))
        clock.takes(10.0 * len(y))

    found = timed(clock).doctor(steps=2, step=step)
    assert found.subset.step == pytest.approx(88 * 10.25)
    assert seen[0] == ((8, 3, 6, 6), (8,), [1.0] * 8)
    assert len(seen) == 3  # one before the clock starts


def test_workers_start_once_however_few_batches_are_measured(clock, monkeypatch):
    plain = timed(clock, to_start=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(Source, "num_workers", 2)  # in name: their clock would be another
        found = plain.doctor(steps=3)
    # The first batch is 108 s once, the other 24 items and all 32 forward passes count twice.
    assert found.subset.probe == pytest.approx((108 + 2 * (24 + 16)) / 4)
    assert found.subset.loading == pytest.approx(88)
    assert found.subset.overlap == pytest.approx(88)


def test_a_single_batch_has_a_time_too(clock):
    loader = SubsetAugmentLoader(
        DataLoader(Items(clock), batch_size=N), Model(clock), lambda x, rows: x, fraction=0.125
    )
    assert loader.doctor().none.loading == pytest.approx(N)


def test_rules_without_gradients_are_not_probed(clock, monkeypatch):
    monkeypatch.setattr(GradientProbe, "scan", None)
    found = timed(clock, rule=RandomSelector()).doctor(steps=2)
    assert parts(found.subset)[3:] == [0, 0]
    assert found.num_sampled == 8
    found = timed(clock, rule=AllSelector(), raw="none", copies=1).doctor(steps=2)
    assert found.num_sampled == N
    assert found.speed_up == 1
    assert found.advice.startswith("selector=")


def test_settings_reach_the_advice(clock):
    assert "copies=" in timed(clock, mode="sample").doctor(steps=2).advice
    grouped = timed(clock, layout="grouped", recycle=3, max_weight=2.0).doctor(steps=2).settings
    assert (grouped.plan.layout, grouped.batch_size, grouped.every) == ("grouped", 8, 4)
    assert (grouped.recycle, grouped.max_weight, grouped.weights) == (3, 2.0, "paper")
    assert (grouped.background, grouped.is_resident, grouped.has_rule) == (False, False, True)
    other = make(resident=True, background=True, weights="uniform", selector=AllSelector())
    settings = other.doctor(steps=1).settings
    assert (settings.background, settings.is_resident, settings.has_rule) == (True, True, False)
    assert (settings.weights, settings.num_workers) == ("uniform", 0)


# What it says of a run.


def test_a_selection_that_was_made_counts_with_its_own_times(clock):
    loader = timed(clock)
    list(loader)
    entry = next(entry for entry in loader.history if entry["event"] == "selection")
    assert (entry["probe_seconds"], entry["solve_seconds"]) == (64 * 1.5, 7)
    entry.update(probe_seconds=20.0, solve_seconds=8.0)
    found = loader.doctor(steps=1)
    assert parts(found.subset)[3:] == [5, 2]
    assert found.num_sampled == len(loader.selection) == 8


def test_a_random_selection_before_the_schedule_says_nothing_of_the_rule(clock):
    loader = timed(clock, start_epoch=3)
    list(loader)
    assert loader.history[0]["selector"] == "RandomSelector"
    assert loader.doctor(steps=50).subset.solve == pytest.approx(7 / 4)


class Skewed(RandomSelector):
    """One of the eight stands for nearly all."""

    def select(self, gradients, **arguments):
        found = super().select(gradients, **arguments)
        weights = torch.tensor([57.0] + [1.0] * 7, dtype=torch.float64)
        return replace(found, weights=weights)


@pytest.mark.parametrize("has_run", [False, True])
def test_a_low_effective_sample_size_of_a_run_is_warned_of(clock, has_run):
    def warning(**options):
        loader = timed(clock, rule=Skewed(), **options)
        if has_run:
            list(loader)
        return loader.doctor(steps=1).warning

    # 64^2 / (57^2 + 7) is 1.26; capped at 6 means 55^2 / (48^2 + 7) is 1.31, at 1 mean 4.
    assert "count like 1 of 8" in warning()
    assert "max_weight= or weights=" in warning()
    assert "max_weight= below 6 or" in warning(max_weight=6.0)
    assert warning(max_weight=1.0) is None
    assert warning(weights="uniform") is None
    assert "Consider max_weight=." in warning(mode="sample")


def test_copies_are_as_heavy_as_the_cap_leaves_them(clock):
    def warning(**options):
        loader = timed(clock, rule=RandomSelector(), fraction=1 / 32, copies=1, **options)
        return loader.doctor(steps=1).warning

    # One of each of three classes, of 64.
    assert "as much as 21 originals" in warning()
    assert "as much as 11 originals" in warning(max_weight=0.5)
    assert warning(max_weight=0.25) is None


@pytest.mark.parametrize(
    "options", [{}, {"raw": "unselected"}, {"raw": "none"}, {"layout": "grouped"}, {"every": 2}]
)
def test_doctor_and_report_agree_where_the_run_was_as_forecast(clock, options):
    """What epochs took is what the doctor said: before the run, and of it."""
    loader = timed(clock, **options)
    before = loader.doctor(steps=50)
    for _ in range(4):
        for x, _, _ in loader:
            clock.takes(3.0 * len(x))
    found = summary(loader.state_dict())["savings"]
    for forecast in (before, loader.doctor(steps=50)):
        savings = forecast.savings
        assert found["seconds"] == pytest.approx(4 * savings.seconds)
        assert found["seconds_of_all"] == pytest.approx(4 * savings.seconds_of_all)
        assert found["speed_up"] == pytest.approx(savings.speed_up)
        assert found["over_none"] == pytest.approx(savings.over_none)
        assert found["verdict"] == savings.verdict(is_forecast=False)


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


def recycling(model):
    """A loader with two workers that stay, which probes again what it did not see in training."""
    data = DataLoader(
        TensorDataset(X, Y), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
    )
    options = {"fraction": 0.25, "copies": 2, "every": 1, "recycle": 1, "raw": "unselected"}
    return SubsetAugmentLoader(data, model, RandomOps.paper(), **options)


def flat(state):
    """Leaves of nested dicts and lists, tensors as lists."""
    if isinstance(state, dict):
        return {name: flat(value) for name, value in state.items() if "seconds" not in str(name)}
    if isinstance(state, (list, tuple)):
        return [flat(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def generators():
    return [random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.slow
def test_nothing_is_left_behind_where_gradients_are_recycled_and_workers_persist():
    def trained(called):
        model = make_model()
        loader = recycling(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        seen = []
        for _ in range(4):
            if called:
                before = flat(loader.state_dict()), generators()
                workers = set(multiprocessing.active_children())
                loader.doctor(steps=3)
                assert set(multiprocessing.active_children()) == workers
                assert (flat(loader.state_dict()), generators()) == before
            for x, y, w in loader:
                seen.append((x.clone(), y.clone(), w.clone()))
                (model(x).square().sum(1) * w).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return seen, model.state_dict(), flat(loader.state_dict())

    (seen, weights, state), (others, other_weights, other) = trained(True), trained(False)
    assert_same_batches(seen, others)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert state == other
    recycled = [e["num_recycled"] for e in state["history"] if e["event"] == "selection"]
    assert recycled[0] == 0 < recycled[1] < N


class Sleeping(Dataset):
    """Twenty milliseconds an item."""

    targets = (torch.arange(100) % 4).tolist()

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.full((1, 2, 2), index / 100), self.targets[index]


class SleepingModel(nn.Sequential):
    """Two milliseconds a row, six in training."""

    def forward(self, x):
        time.sleep(len(x) * (0.006 if self.training else 0.002))
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("has_run", [False, True])
def test_a_forecast_comes_true_with_workers(has_run):
    """Parts sleep: what they take is the same on a machine that is busy."""

    def strong(x, rows):
        time.sleep(0.01 * len(x))
        return x

    class Slowly(CoresetSelector):
        def select(self, gradients, **arguments):
            time.sleep(0.5)
            return super().select(gradients, **arguments)

    data = DataLoader(Sleeping(), 10, shuffle=True, num_workers=2, persistent_workers=True)
    model = SleepingModel(nn.Flatten(), nn.Linear(4, 4))
    options = {"fraction": 0.25, "copies": 2, "every": 1, "selector": Slowly()}
    loader = SubsetAugmentLoader(data, model, strong, **options)

    def epoch():
        for x, y, _ in loader:
            nn.functional.cross_entropy(model(x), y).backward()
        return loader.history[-1]["total_seconds"]

    if has_run:
        epoch()
    forecast = loader.doctor(steps=50).subset
    measured = epoch()
    assert forecast.overlap > 0
    assert 0.5 < forecast.total / measured < 2


def test_regression_and_selections_already_made_are_understood():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    loader = make(model, y=torch.rand(N), probe=GradientProbe(model, loss="mse"))
    assert loader.doctor(steps=2).num_sampled == 6  # a quarter of the 24 rows measured
    list(loader)
    after = loader.doctor(steps=2)
    assert after.num_sampled == len(loader.selection) == 16
    assert after.effective_sample_size == loader.selection.effective_sample_size


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
    assert "Change first: " in out
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
