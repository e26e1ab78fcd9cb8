"""Run by torchrun: each rank has every world_size-th row and compares with one process."""

import os
import signal
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from augsubset import AugsubsetError, LastLayerGradients, select_coreset
from augsubset.distributed import Ranks
from augsubset.selection import select_coreset_distributed

SHORT = timedelta(seconds=20)


def say(what):
    sys.stdout.write(f"rank {dist.get_rank()} {what}\n")
    sys.stdout.flush()


def everything(n=400, classes=5, width=3, inputs=0, grid=False):
    rng = np.random.default_rng(0)
    residual = rng.integers(-2, 3, (n, width)) if grid else rng.normal(size=(n, width))
    labels = rng.integers(0, classes, n) * 3 - 4  # not contiguous, some negative
    labels[: n // 3] = -4  # one class far larger than the others
    return LastLayerGradients(
        residual=torch.from_numpy(residual).float(),
        inputs=torch.from_numpy(rng.normal(size=(n, inputs))).float() if inputs else None,
        labels=torch.from_numpy(labels),
        indices=torch.arange(n),
        losses=torch.zeros(n),
    )


def shard_of(whole, positions):
    return LastLayerGradients(
        residual=whole.residual[positions],
        inputs=None if whole.inputs is None else whole.inputs[positions],
        labels=whole.labels[positions],
        indices=whole.indices[positions],
        losses=whole.losses[positions],
    )


def mine(whole):
    order = np.random.default_rng(7).permutation(len(whole))  # shards are not sorted
    return shard_of(whole, torch.from_numpy(order[dist.get_rank() :: dist.get_world_size()].copy()))


def exact():
    """Same as in one process: every kind of budget, ties, products, one class and many."""
    for kind in ({}, {"grid": True}, {"inputs": 4}, {"classes": 1}, {"classes": 40}):
        whole = everything(**kind)
        labels = torch.unique(whole.labels).tolist()
        for options in (
            {"fraction": 0.2},
            {"budget": 60, "method": "naive"},
            {"budget": dict.fromkeys(labels, 1)},
            {"tolerance": 150.0},
            {"fraction": 0.1, "similarity": "exp"},
            {"fraction": 0.1, "method": "stochastic", "seed": 3},
        ):
            expected = select_coreset(whole, **options)
            found = select_coreset_distributed(mine(whole), timeout=SHORT, **options)
            assert found.digest == expected.digest, (kind, options)
            one, other = expected.certificate, found.certificate
            assert other.error == pytest.approx(one.error, rel=1e-12)
            assert other.error_lower_bound == one.error_lower_bound
            assert other.gradient_error == pytest.approx(one.gradient_error, abs=1e-9)


def parts():
    """Same as in one process: a class whose parts are distributed over ranks."""
    whole = everything(n=1500, classes=2)
    for options in (
        {"fraction": 0.1, "part_size": 100},
        {"budget": 9, "part_size": 100},  # fewer picks than parts
        {"tolerance": 600.0, "part_size": 200},
    ):
        expected = select_coreset(whole, method="partitioned", **options)
        found = select_coreset_distributed(
            mine(whole), method="partitioned", timeout=SHORT, **options
        )
        assert found.digest == expected.digest, options
        assert found.certificate.error == pytest.approx(expected.certificate.error, rel=1e-9)


def failures():
    """An error on one rank is raised on all, naming the rank."""
    rank, whole = dist.get_rank(), everything()

    def broken():
        if rank == 1:
            raise KeyError("the probe of rank 1")
        return mine(whole)

    expected = KeyError if rank == 1 else AugsubsetError
    reason = "the probe of rank 1" if rank == 1 else "rank 1 failed while preparing its shard"
    with pytest.raises(expected, match=reason):
        select_coreset_distributed(broken, fraction=0.1, timeout=SHORT)
    with pytest.raises((ValueError, AugsubsetError), match="the same on every rank"):
        select_coreset_distributed(mine(whole), fraction=0.1 + rank / 100, timeout=SHORT)
    with pytest.raises((ValueError, AugsubsetError), match="distinct over all ranks"):
        select_coreset_distributed(whole, fraction=0.1, timeout=SHORT)
    with pytest.raises(ValueError, match="budget must be at most the ground-set size 400"):
        select_coreset_distributed(mine(whole), budget=401, timeout=SHORT)
    with pytest.raises((ValueError, AugsubsetError), match="max_memory must be at least"):
        select_coreset_distributed(mine(whole), fraction=0.1, max_memory=1, timeout=SHORT)
    # and the group still works
    select_coreset_distributed(mine(whole), fraction=0.1, timeout=SHORT)


def disagreement(monkeypatch):
    """A different selection on one rank is detected by its digest."""
    from augsubset.selection import distributed

    combine = distributed._combine_classes

    def altered(results, sizes):
        selection = combine(results, sizes)
        if dist.get_rank() == 1:
            selection.gains[0] += 1
        return selection

    monkeypatch.setattr(distributed, "_combine_classes", altered)
    with pytest.raises(AugsubsetError, match="must agree on the selection"):
        select_coreset_distributed(mine(everything()), fraction=0.1, timeout=SHORT)


def missing():
    """A rank that does not arrive raises on the others after the timeout."""
    if dist.get_rank() == 1:
        time.sleep(8)
        return
    begin = time.monotonic()
    with pytest.raises(AugsubsetError, match="every rank must take part within"):
        select_coreset_distributed(mine(everything()), fraction=0.1, timeout=timedelta(seconds=3))
    assert time.monotonic() - begin < 60


def killed():
    """A rank that dies during the selection raises on the others."""
    if dist.get_rank() == 1:
        gather = Ranks.gather

        def dying(self, value):
            if isinstance(value, tuple):
                os.kill(os.getpid(), signal.SIGKILL)
            return gather(self, value)

        Ranks.gather = dying
    with pytest.raises(AugsubsetError):
        select_coreset_distributed(mine(everything()), fraction=0.1, timeout=SHORT)
    say("saw it")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    with pytest.MonkeyPatch.context() as patch:
        for name in sys.argv[1:]:
            test = globals()[name]
            test(patch) if name == "disagreement" else test()
    say(f"of {dist.get_world_size()} is done")
    dist.destroy_process_group()
