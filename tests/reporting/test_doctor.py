"""The doctor: what it measures and reports, and that it leaves no trace."""

import multiprocessing
import random
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    AugsubsetError,
    BatchSpec,
    CoresetSelector,
    GradientProbe,
    LoaderOptions,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
    doctor,
    report,
)
from augsubset.cli import main
from augsubset.reporting import choose_pictures, summarize
from augsubset.reporting.cost_model import PARTS
from augsubset.sampling import Source
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


# Measurements, by a clock that only the parts themselves advance.


class Clock:
    """A clock that is advanced by hand."""

    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    # The function of that name hides the module from a dotted path.
    monkeypatch.setattr(sys.modules["augsubset.reporting.doctor"], "perf_counter", clock)
    for module in ("schedule", "history"):
        monkeypatch.setattr(f"augsubset.{module}.time", SimpleNamespace(perf_counter=clock))
    return clock


class Items(Dataset):
    """One second per item, and more for the first of a pass, as if workers had to start."""

    def __init__(self, clock, to_start=0.0):
        self.clock, self.to_start, self.targets = clock, to_start, Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.clock.advance(1.0 + (self.to_start if index == 0 else 0.0))
        return X[index], self.targets[index]


class Model(nn.Sequential):
    """Half a second per row in evaluation, three in training."""

    def __init__(self, clock):
        super().__init__(nn.Flatten(), nn.Linear(108, 3))
        self.clock = [clock]

    def forward(self, x):
        self.clock[0].advance(len(x) * (3.0 if self.training else 0.5))
        return super().forward(x)

    def __deepcopy__(self, memo):
        again = Model(self.clock[0])
        again.load_state_dict(self.state_dict())
        return again


class TimedSelector(CoresetSelector):
    """Seven seconds per solve."""

    clock: Clock

    def select(self, gradients, **arguments):
        self.clock.advance(7.0)
        return super().select(gradients, **arguments)


def make_timed(clock, *, to_start=0.0, selector=None, max_weight=None, **options):
    """A loader of 64 examples of which 8 get 3 copies, in batches of 8, each part by the clock."""

    def strong(x, rows):
        clock.advance(2.0 * len(x))
        return x

    def base(x, rows):
        clock.advance(0.25 * len(x))
        return x

    if selector is None:
        selector = TimedSelector(max_weight=max_weight)
        selector.clock = clock
    options = {"fraction": 0.125, "copies": 3, "every": 4, "base": base, **options}
    data = DataLoader(Items(clock, to_start), batch_size=8)
    return SubsetAugmentLoader(data, Model(clock), strong, selector=selector, **options)


def parts(cost):
    return [getattr(cost, part) for part in PARTS]


def test_each_part_is_measured_to_the_second(clock):
    found = doctor(make_timed(clock), steps=50)
    # 88 rows, 24 of them copies. A row is 0.25 of base policy and 3 of training; a probe is 64
    # items and forward passes, and every fourth epoch has one.
    assert parts(found.subset) == pytest.approx([88, 48, 88 * 3.25, 64 * 1.5 / 4, 7 / 4])
    assert parts(found.none) == pytest.approx([64, 0, 64 * 3.25, 0, 0])
    assert parts(found.full) == pytest.approx([256, 384, 256 * 3.25, 0, 0])
    assert parts(found.in_place) == pytest.approx([64, 128, 64 * 3.25, 0, 0])
    assert found.subset.total == pytest.approx(sum(parts(found.subset)))


def test_what_else_the_processor_does_moves_no_figure(clock):
    """A pause falls on one of several calls: of the strong policy, or of a training step."""
    for busy in ("strong", "step"):
        loader, calls = make_timed(clock), Counter()
        strong = loader.pipeline._augment

        def pause(name, busy=busy, calls=calls):
            calls[name] += 1
            clock.advance(1000.0 if name == busy and calls[name] == 3 else 0.0)

        def pausing(x, rows, strong=strong, pause=pause):
            pause("strong")
            return strong(x, rows)

        def step(x, y, pause=pause):
            pause("step")
            clock.advance(3.0 * len(y))

        loader.pipeline._augment = pausing
        found = doctor(loader, steps=50, step=step)
        assert parts(found.subset)[1:3] == pytest.approx([48, 88 * 3.25])


def test_compiling_the_solver_is_no_part_of_a_solve(clock, monkeypatch):
    module = sys.modules["augsubset.reporting.doctor"]
    solve = module.select_coreset

    def compile_first(*given, **options):
        clock.advance(500.0)
        return solve(*given, **options)

    monkeypatch.setattr(module, "select_coreset", compile_first)
    before = clock.now
    assert doctor(make_timed(clock), steps=50).subset.solve == pytest.approx(7 / 4)
    assert clock.now - before > 500


def test_few_batches_stand_for_all(clock):
    found = doctor(make_timed(clock), steps=3)
    # 4 of 8 batches: probing is extrapolated linearly, solving with the square.
    assert parts(found.subset) == pytest.approx([88, 48, 88 * 3.25, 64 * 1.5 / 4, 7 * 4 / 4])
    assert found.num_selected == 4


@pytest.mark.parametrize("weights", ["uniform", "resample", "cluster", "unscaled"])
def test_a_custom_step_is_timed_instead_of_the_default(clock, weights):
    seen = []

    def step(x, y, *w):
        seen.append((x.shape, y.shape, [part.tolist() for part in w]))
        clock.advance(10.0 * len(y))

    found = doctor(make_timed(clock, weights=weights), steps=2, step=step)
    assert found.subset.step == pytest.approx(88 * 10.25)
    is_weighted = weights in ("cluster", "unscaled")
    assert seen[0] == ((8, 3, 6, 6), (8,), [[1.0] * 8] if is_weighted else [])
    assert len(seen) == 3  # one to warm up


def test_a_custom_step_gets_a_whole_batch_as_the_loader_yields_it():
    items = [{"x": X[i], "labels": i % 3} for i in range(N)]
    model = make_model()
    spec = BatchSpec(inputs="x", labels="labels", whole=True)
    loader = SubsetAugmentLoader(DataLoader(items, 8), model, RandomOps.paper(), batch=spec)
    seen = []
    doctor(loader, steps=1, step=lambda *parts: seen.append(parts))
    assert all(len(parts) == 1 and set(parts[0]) == {"x", "labels"} for parts in seen)


def test_the_start_of_workers_is_not_extrapolated(clock, monkeypatch):
    plain = make_timed(clock, to_start=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(Source, "num_workers", 2)  # real ones would not share the clock
        found = doctor(plain, steps=3)
    # The first batch takes 108 s once; the other 24 items and all 32 forward passes count twice.
    assert found.subset.probe == pytest.approx((108 + 2 * (24 + 16)) / 4)
    assert found.subset.loading == pytest.approx(88)
    assert found.subset.overlap == pytest.approx(88)


def test_a_single_batch_has_a_time_too(clock):
    loader = SubsetAugmentLoader(
        DataLoader(Items(clock), batch_size=N), Model(clock), lambda x, rows: x, fraction=0.125
    )
    assert doctor(loader).none.loading == pytest.approx(N)


def test_selectors_without_gradients_are_not_probed(clock, monkeypatch):
    monkeypatch.setattr(GradientProbe, "scan", None)
    found = doctor(make_timed(clock, selector=RandomSelector()), steps=2)
    assert parts(found.subset)[3:] == [0, 0]
    assert found.num_selected == 8
    found = doctor(make_timed(clock, fraction=1.0, originals="none", copies=1), steps=2)
    assert parts(found.subset)[3:] == [0, 0]
    assert found.num_selected == found.effective_sample_size == N
    assert found.speed_up == 1
    assert found.advice.startswith("fraction=")


def test_settings_reach_the_advice(clock):
    assert "copies=" in doctor(make_timed(clock, weights="resample"), steps=2).advice
    options = LoaderOptions(layout="grouped", recycle=3)
    loader = make_timed(clock, options=options, max_weight=2.0, weights="unscaled")
    grouped = doctor(loader, steps=2).settings
    assert (grouped.plan.layout, grouped.batch_size, grouped.every) == ("grouped", 8, 4)
    assert (grouped.recycle, grouped.max_weight, grouped.plan.weights) == (3, 2.0, "cluster")
    assert (grouped.background, grouped.is_resident) == (False, False)
    other = make(selector=RandomSelector(), options=LoaderOptions(resident=True, background=True))
    settings = doctor(other, steps=1).settings
    assert (settings.background, settings.is_resident) == (True, True)
    assert (settings.recycle, settings.max_weight, settings.num_workers) == (None, None, 0)
    assert settings.plan.weights == "uniform"


# After a run.


def test_times_of_the_latest_selection_are_used(clock):
    loader = make_timed(clock)
    list(loader)
    entry = next(entry for entry in loader.history if entry["event"] == "selection")
    assert (entry["probe_seconds"], entry["solve_seconds"]) == (64 * 1.5, 7)
    entry.update(probe_seconds=20.0, solve_seconds=8.0)
    found = doctor(loader, steps=1)
    assert parts(found.subset)[3:] == [5, 2]
    assert found.num_selected == len(loader.selection) == 8


def test_times_of_a_random_selection_before_start_epoch_are_not_used(clock):
    loader = make_timed(clock, options=LoaderOptions(start_epoch=3))
    list(loader)
    assert loader.history[0]["selector"] == "RandomSelector"
    assert doctor(loader, steps=50).subset.solve == pytest.approx(7 / 4)


class Fixed(CoresetSelector):
    """Random examples with given weights, capped."""

    needs_gradients = False
    weights = None

    def select(self, gradients, **arguments):
        found = RandomSelector().select(gradients, **arguments)
        if self.weights is not None:
            found = replace(found, weights=torch.tensor(self.weights, dtype=torch.float64))
        return found if self.max_weight is None else found.capped(self.max_weight)


class Skewed(Fixed):
    """One of eight examples stands for nearly all."""

    weights = (57.0, *[1.0] * 7)


@pytest.mark.parametrize("has_run", [False, True])
def test_uneven_weights_cause_a_warning(clock, has_run):
    def warning(weights="cluster", **options):
        loader = make_timed(clock, selector=Skewed(**options), weights=weights)
        if has_run:
            list(loader)
        return doctor(loader, steps=1).warning

    # 64^2 / (57^2 + 7) is 1.26 of 8; capped at one mean, 4 of 8.
    assert "if 16% of an epoch's samples counted" in warning()
    assert "or CoresetSelector(max_weight=)." in warning()
    assert "or CoresetSelector(max_weight= below 6)." in warning(max_weight=6.0)
    assert warning(max_weight=1.0) is None
    assert warning(weights="uniform") is None
    assert "of an epoch's samples counted" in warning(weights="resample")


@pytest.mark.parametrize("originals", ["all", "unselected", "selected", "none"])
@pytest.mark.parametrize("weights", ["cluster", "unscaled"])
def test_unevenness_is_that_of_the_weights_that_are_yielded(clock, originals, weights):
    options = {"weights": weights, "originals": originals}
    loader = make_timed(clock, selector=Skewed(max_weight=6.0), **options)
    w = torch.cat([w for *_, w in loader]).double()
    w = w[w > 0]  # without padding
    found = len(w) * w.square().sum() / w.sum() ** 2
    assert doctor(loader, steps=1).unevenness == pytest.approx(found.item(), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"originals": "unselected"},
        {"originals": "none"},
        {"options": LoaderOptions(layout="grouped")},
        {"every": 2},
    ],
)
def test_doctor_and_report_agree_if_the_run_went_as_forecast(clock, options):
    """The doctor's forecast, before the run and after it, equals what epochs took.

    But for items that rows of a batch share, which the forecast does not count on.
    """
    loader = make_timed(clock, **options)
    before = doctor(loader, steps=50)
    for _ in range(4):
        for x, _ in loader:
            clock.advance(3.0 * len(x))
    found = summarize(loader.state_dict())["savings"]
    for forecast in (before, doctor(loader, steps=50)):
        savings = forecast.savings
        assert found["seconds"] == pytest.approx(4 * savings.seconds, rel=0.02)
        assert found["full_seconds"] == pytest.approx(4 * savings.full_seconds, rel=0.02)
        assert found["speed_up"] == pytest.approx(savings.speed_up, rel=0.02)
        assert found["in_place_overhead"] == pytest.approx(savings.in_place_overhead, rel=0.02)
        words = [
            re.sub(r"\d", "", text)
            for text in (found["verdict"], savings.verdict(is_forecast=False))
        ]
        assert words[0] == words[1]


def test_nothing_is_left_behind():
    model = make_model()
    loader = make(model)
    expected = [batch for _ in range(2) for batch in make(model)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    generator = torch.get_rng_state()
    doctor(loader, steps=3)
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
    """A loader with two persistent workers that probes only what it did not see in training."""
    data = DataLoader(
        TensorDataset(X, Y), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
    )
    options = {"fraction": 0.25, "copies": 2, "every": 1, "originals": "unselected"}
    options |= {"options": LoaderOptions(recycle=1), "weights": "cluster"}
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
                doctor(loader, steps=3)
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
    """Twenty milliseconds per item."""

    targets = (torch.arange(100) % 4).tolist()

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.full((1, 2, 2), index / 100), self.targets[index]


class SleepingModel(nn.Sequential):
    """Two milliseconds per row, six in training."""

    def forward(self, x):
        time.sleep(len(x) * (0.006 if self.training else 0.002))
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("has_run", [False, True])
def test_a_forecast_comes_true_with_workers(has_run):
    """All parts sleep, so a busy machine does not change their times."""

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
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).backward()
        return loader.history[-1]["total_seconds"]

    if has_run:
        epoch()
    forecast = doctor(loader, steps=50).subset
    measured = epoch()
    assert forecast.overlap > 0
    assert 0.5 < forecast.total / measured < 2


def test_regression_and_selections_already_made_are_understood():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    loader = make(model, y=torch.rand(N), probe=GradientProbe(model, loss="mse"))
    assert doctor(loader, steps=2).num_selected == 6  # a quarter of the 24 rows measured
    list(loader)
    after = doctor(loader, steps=2)
    assert after.num_selected == len(loader.selection) == 16
    assert after.effective_sample_size == loader.selection.effective_sample_size


def test_the_doctor_is_refused_while_an_epoch_runs(tmp_path):
    loader = make()
    running = iter(loader)
    next(running)
    with pytest.raises(
        AugsubsetError, match=r"doctor cannot run during an epoch\. Call loader\.close"
    ):
        doctor(loader)
    loader.close()
    with pytest.raises(ValueError, match="steps must be at least 1"):
        doctor(loader, 0)
    for call in (doctor, partial(report, path=tmp_path), partial(choose_pictures, images=1)):
        with pytest.raises(TypeError, match=r"SubsetAugmentLoader, got DataLoader\. Wrap it"):
            call(DataLoader(TensorDataset(X, Y), 8))


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
    assert "seconds per epoch" in out
    assert "pay" in out or "save" in out
    assert "Change first: " in out
    assert main(["doctor", "a_training_script:make", "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere.py:make", "must name an existing script"),
        ("no_such_module:make", "No module named"),
        ("augsubset.cli", "must be module:function"),
        ("augsubset.cli:no_such", "no attribute 'no_such'"),
        (
            "tests.reporting.test_doctor:make_model",
            "must return a SubsetAugmentLoader, got Sequential",
        ),
    ],
)
def test_invalid_targets_are_refused(target, reason, capsys, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    with pytest.raises(SystemExit):
        main(["doctor", target])
    assert reason in capsys.readouterr().err
