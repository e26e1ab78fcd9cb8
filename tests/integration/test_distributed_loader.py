"""Loaders on several ranks, started by torchrun: one order, one selection, no hanging."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import augsubset

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("distributed_loader.py")
ROOT = Path(augsubset.__file__).parent.parent


def torchrun(num_processes, *names, timeout=200):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--monitor-interval=0.1", f"--nproc-per-node={num_processes}"]
    command += ["-m", "tests.integration.distributed_loader"]
    for _ in range(3):
        run = subprocess.run(
            [*command, *names], cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )
        # gloo aborts now and then when one rank leaves before another, plain scripts' too.
        if "terminate called without an active exception" not in run.stderr:
            break
    return run


def assert_all_said(run, num_processes, what):
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(num_processes):
        assert f"rank {rank} {what}" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("num_processes", [2, 4])
def test_ranks_train_as_one_process_does(num_processes):
    names = ("losses", "tails", "compiled", "recycled", "resumed", "guards", "background")
    assert_all_said(torchrun(num_processes, *names), num_processes, f"of {num_processes} is done")


@pytest.mark.parametrize("num_processes", [2, 4])
def test_what_fails_on_one_rank_is_raised_on_all_within_a_minute(num_processes):
    """NaN on one, a rule that raises on one, fewer examples than ranks."""
    run = torchrun(num_processes, "failures", timeout=60)
    assert_all_said(run, num_processes, f"of {num_processes} is done")


def test_one_rank_alone_may_call_the_doctor():
    assert_all_said(torchrun(2, "doctored", timeout=60), 2, "of 2 is done")


def test_ranks_of_accelerate_and_lightning_share_one_order():
    assert_all_said(torchrun(2, "with_accelerate", "with_lightning"), 2, "checked its share")


@pytest.mark.parametrize(
    ("framework", "num_processes"),
    [("accelerate", 2), ("accelerate", 4), ("lightning", 2), ("trainer", 2)],
)
def test_ranks_of_every_framework_resume_within_an_epoch(framework, num_processes):
    run = torchrun(num_processes, f"{framework}_resumed")
    assert_all_said(run, num_processes, "resumed")


@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize(
    "when", ["while_probing", "while_solving", "while_exchanging", "in_the_background"]
)
def test_a_rank_killed_during_selection_raises_on_the_others_within_a_minute(num_processes, when):
    """Without a launcher: that would end the others when it sees one dead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    command = [sys.executable, "-m", "tests.integration.distributed_loader", f"killed_{when}"]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **world, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        for rank, process in enumerate(ranks):
            out, err = process.communicate(timeout=60)
            assert (f"rank {rank} saw it" in out) == (rank != 1), out + err
    finally:
        for process in ranks:
            process.kill()
