"""Starting a script of these tests on several ranks, with a launcher and without one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import augsubset

ROOT = Path(augsubset.__file__).parent.parent


def torchrun(script, num_processes, *names, timeout=200):
    """Run the tests of those names in tests/integration/`script`.py by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--monitor-interval=0.1", f"--nproc-per-node={num_processes}"]
    command += ["-m", f"tests.integration.{script}", *names]
    for _ in range(3):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        # gloo aborts now and then when one rank leaves before another, plain scripts' too.
        if "terminate called without an active exception" not in run.stderr:
            break
    return run


def assert_all_said(run, num_processes, what):
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(num_processes):
        assert f"rank {rank} {what}" in run.stdout, run.stdout + run.stderr


def assert_all_but_rank_1_saw_it(script, num_processes, name):
    """Run the test in which rank 1 dies, without a launcher: that would end the others, too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.integration.{script}", name],
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
