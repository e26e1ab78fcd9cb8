"""Hypothesis profiles, and real CIFAR-10 where the environment names it."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **_common)
settings.register_profile("ci", max_examples=50, derandomize=True, **_common)
settings.register_profile("nightly", max_examples=2000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``cuda`` on a machine without."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    """Seed torch, from which a loader takes its seed where it is given none."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cifar10():
    """CIFAR-10 by AUGSUBSET_CIFAR10: skipped when unset, an error when set and unreadable."""
    path = os.environ.get("AUGSUBSET_CIFAR10")
    if path is None:
        pytest.skip("AUGSUBSET_CIFAR10 is not set")
    from benchmarks.datasets import load_cifar10

    return load_cifar10(Path(path))
