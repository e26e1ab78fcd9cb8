"""One selection by several processes: equal to one process, and no hanging when one fails."""

import subprocess
import sys
from pathlib import Path

import pytest

import augsubset

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("distributed_selection.py")
ROOT = Path(augsubset.__file__).parent.parent


def torchrun(num_processes, *names):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_processes}", str(SCRIPT), *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("names", [("exact",), ("parts",), ("failures", "disagreement", "missing")])
def test_several_processes_select_what_one_does_or_fail_together(num_processes, names):
    run = torchrun(num_processes, *names)
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in range(num_processes):
        assert f"rank {rank} of {num_processes} is done" in run.stdout


def test_a_killed_rank_raises_on_the_others():
    run = torchrun(2, "killed")
    assert run.returncode != 0
    assert "rank 0 saw it" in run.stdout, run.stdout + run.stderr


def test_an_uninitialised_group_is_refused():
    from augsubset.selection import select_coreset_distributed

    with pytest.raises(augsubset.AugsubsetError, match=r"torch\.distributed must be initialised"):
        select_coreset_distributed(lambda: None, fraction=0.1)
