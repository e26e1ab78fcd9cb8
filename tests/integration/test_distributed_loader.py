"""Loaders on several ranks, started by torchrun: one order, one selection, no hanging."""

import subprocess
import sys
from pathlib import Path

import pytest

import augsubset

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("distributed_loader.py")
ROOT = Path(augsubset.__file__).parent.parent


def torchrun(num_processes, *names, timeout=200, monitor_interval=0.1):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--monitor-interval={monitor_interval}"]
    command += [f"--nproc-per-node={num_processes}", "-m", "tests.integration.distributed_loader"]
    for _ in range(3):
        run = subprocess.run(
            [*command, *names], cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )
        # gloo aborts now and then when one rank leaves before another, plain scripts' too.
        if "terminate called without an active exception" not in run.stderr:
            break
    return run


@pytest.mark.parametrize("num_processes", [2, 4])
def test_ranks_train_as_one_process_does(num_processes):
    names = ("losses", "tails", "compiled", "recycled", "resumed", "guards", "failures")
    run = torchrun(num_processes, *names, "background")
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(num_processes):
        assert f"rank {rank} of {num_processes} is done" in run.stdout


def test_one_rank_alone_may_call_the_doctor():
    run = torchrun(2, "doctored", timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(2):
        assert f"rank {rank} of 2 is done" in run.stdout


def test_ranks_of_accelerate_and_lightning_share_one_order():
    run = torchrun(2, "with_accelerate", "with_lightning")
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(2):
        assert f"rank {rank} checked its share" in run.stdout


def test_a_rank_killed_during_selection_raises_on_the_others_within_a_minute():
    # The agent ends the other rank when it sees the first one dead: not before it has spoken.
    run = torchrun(2, "killed", timeout=60, monitor_interval=5)
    assert run.returncode != 0
    assert "rank 0 saw it" in run.stdout, run.stdout + run.stderr
