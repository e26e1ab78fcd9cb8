"""EpochTimer: each second lands in its own bucket. Lower bounds only: a machine may be slow."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from augsubset import RandomSelector, SubsetAugmentLoader
from augsubset.history import EpochTimer

NAP = 0.02


class Slow(Dataset):
    targets = tuple(range(4))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(NAP)
        return torch.rand(1, 2, 2), index


class SlowSelector(RandomSelector):
    def select(self, gradients, **arguments):
        time.sleep(3 * NAP)
        return super().select(gradients, **arguments)


def slow_policy(x, rows):
    time.sleep(4 * NAP)
    return x


def naps(**where):
    """Return an epoch's seconds with slow parts only where asked for."""
    dataset = Slow()
    if "loading" not in where:
        dataset = [(torch.rand(1, 2, 2), index) for index in range(4)]
    loader = SubsetAugmentLoader(
        DataLoader(dataset, batch_size=8),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 4)),
        slow_policy if "augmentation" in where else lambda x, rows: x,
        selector=SlowSelector() if "selection" in where else RandomSelector(),
        copies=1,
    )
    for _ in loader:
        if "step" in where:
            time.sleep(5 * NAP)
    return {
        name: loader.history[-1][f"{name}_seconds"]
        for name in ("selection", "loading", "augmentation", "step", "total")
    }


def test_the_strong_policy_is_a_part_of_the_augmentation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("augsubset.history.time", SimpleNamespace(perf_counter=lambda: now[0]))
    timer = EpochTimer(torch.device("cpu"))
    with timer.on_device("augmentation"):
        now[0] += 1.0
        with timer.on_device("strong"):
            now[0] += 2.0
    now[0] += 4.0
    assert timer.read() == {
        **{"selection_seconds": 0.0, "loading_seconds": 0.0, "augmentation_seconds": 3.0},
        **{"strong_seconds": 2.0, "step_seconds": 4.0, "total_seconds": 7.0},
    }


@pytest.mark.cuda
def test_augmentation_on_a_device_is_timed_by_its_own_events():
    timer = EpochTimer(torch.device("cuda"))
    with timer.on_device("augmentation"), timer.on_device("strong"):
        torch.cuda._sleep(100_000_000)
    seconds = timer.read()
    assert 0.01 < seconds["strong_seconds"] <= seconds["augmentation_seconds"] + 0.01
    assert 0.01 < seconds["augmentation_seconds"] <= seconds["total_seconds"] + 0.01


@pytest.mark.parametrize("bucket", ["selection", "loading", "augmentation", "step"])
def test_time_lands_in_its_own_bucket(bucket):
    seconds = naps(**{bucket: True})
    assert seconds[bucket] >= 3 * NAP
    assert max(seconds, key=seconds.get) == "total"
    others = {name: s for name, s in seconds.items() if name not in (bucket, "total")}
    assert max(others.values()) < seconds[bucket]
    assert sum(others.values()) + seconds[bucket] == pytest.approx(seconds["total"])
