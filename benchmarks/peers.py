"""The field's own solvers of facility location, called as their documentation says.

Their objectives are not ours: submodlib's "euclidean" similarity is exp(-d / p) with p the number
of features, apricot's is max d^2 - d^2, and ours by default max d - d. Budgets, rows and machine
are the same, and each builds its own kernel inside its time.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "PEERS",
    "PeerRun",
    "apricot_picks",
    "compiled_once",
    "solve_by_class",
    "submodlib_picks",
    "versions",
]

Rows = npt.NDArray[np.floating[Any]]
Picks = npt.NDArray[np.int64]
Compiler = Callable[..., Any]


def submodlib_picks(rows: Rows, k: int) -> Picks:
    """Return the positions that submodlib's lazy greedy picks, on a dense kernel."""
    from submodlib import FacilityLocationFunction

    with _quiet_stdout():
        objective = FacilityLocationFunction(
            n=len(rows), mode="dense", metric="euclidean", data=rows
        )
        found = objective.maximize(
            budget=k,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
    return np.array([position for position, _ in found], np.int64)


def apricot_picks(rows: Rows, k: int) -> Picks:
    """Return the positions that apricot's lazy greedy picks."""
    from apricot import FacilityLocationSelection

    picks: Picks = (
        FacilityLocationSelection(k, metric="euclidean", optimizer="lazy").fit(rows).ranking
    )
    return picks


PEERS: dict[str, Callable[[Rows, int], Picks]] = {
    "submodlib": submodlib_picks,
    "apricot": apricot_picks,
}


def versions() -> dict[str, str | None]:
    """Return the installed versions of both peers, None for one that is not there."""
    found: dict[str, str | None] = {}
    for name in ("submodlib-py", "apricot-select"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a workload that needs it says so itself
            found[name] = None
    return found


class PeerRun(NamedTuple):
    """What one run over all classes gave.

    Args:
        positions: Picked rows, of all classes.
        seconds: Of the whole run.
        compiling: Seconds of it in which apricot compiled: it does so anew in every ``fit``.
    """

    positions: Tensor
    seconds: float
    compiling: float


def solve_by_class(name: str, residual: Tensor, labels: Tensor, like: Tensor) -> PeerRun:
    """Run a peer once on every class.

    Args:
        name: One of :data:`PEERS`.
        residual: Rows. ``(n, d)``
        labels: Class of each row.
        like: Positions of another subset, whose number in each class is the peer's budget.
    """
    parts = []
    with _compiling_timed() as compiling:
        begin = time.perf_counter()
        for label in torch.unique(labels):
            members = (labels == label).nonzero().squeeze(1)
            picks = PEERS[name](residual[members].numpy(), int((labels[like] == label).sum()))
            parts.append(members[torch.from_numpy(picks)])
        seconds = time.perf_counter() - begin
    return PeerRun(torch.cat(parts), seconds, sum(compiling))


@contextmanager
def compiled_once() -> Iterator[None]:
    """Let apricot keep what it compiles, as it does not by itself; the first fit still compiles."""
    with _compilers(functools.cache):
        yield


@contextmanager
def _compiling_timed() -> Iterator[list[float]]:
    """Collect the seconds of each compilation inside apricot."""
    spent: list[float] = []

    def timed(compiler: Compiler) -> Compiler:
        def compile_(*args: Any) -> Any:
            begin = time.perf_counter()
            compiled = compiler(*args)
            spent.append(time.perf_counter() - begin)
            return compiled

        return compile_

    with _compilers(timed):
        yield spent


@contextmanager
def _compilers(wrapped: Callable[[Compiler], Compiler]) -> Iterator[None]:
    """Wrap the functions that apricot calls in every fit to compile its loops."""
    import apricot.functions.facilityLocation as module

    names = ("calculate_gains", "calculate_gains_sieve")
    with ExitStack() as patches:
        for name in names:
            patches.enter_context(patch.object(module, name, wrapped(getattr(module, name))))
        yield


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send what Python and C++ print to nowhere: submodlib reports progress from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    python, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        sys.stdout.close()
        sys.stdout = python
        os.close(nowhere)
        os.close(kept)
