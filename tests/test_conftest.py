"""The CIFAR-10 fixture fails where the variable names something unreadable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TEST = "tests/integration/test_cifar10.py"  # one test


@pytest.mark.parametrize(("path", "outcome"), [("/nonexistent", "1 error"), (None, "1 skipped")])
def test_an_unreadable_path_is_an_error_and_none_is_a_skip(path, outcome):
    environment = {k: v for k, v in os.environ.items() if k != "AUGSUBSET_CIFAR10"}
    if path is not None:
        environment["AUGSUBSET_CIFAR10"] = path
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", TEST]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert outcome in done.stdout
