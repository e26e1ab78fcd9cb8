"""Run a grid of training runs: any rule, budget, data and model; stop and go on at any time.

``python -m benchmarks.train GRID`` reads a file of ``benchmarks/grids``, runs every cell that has
no record yet and appends it to ``benchmarks/results/GRID.jsonl``. ``--estimate`` says instead what
the grid would take, and what differences its seeds can detect. Where the data is in a file of
yours: ``--data PATH``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, Costs, costs_of, data_of, run_cell
from benchmarks.datasets import FolderData, stand_in
from benchmarks.grid import RESULTS, Grid, load_grid, load_results, seeds_of
from benchmarks.harness import environment
from benchmarks.records import append
from benchmarks.stats import power_lines

__all__ = ["estimate", "main", "pace", "run_grid"]


def pace(epochs: Sequence[Mapping[str, float]]) -> str:
    """Say what an epoch takes, and its augmentation and loading beside its steps.

    Medians, without the first epoch, which selects and captures graphs.
    """
    later = epochs[1:]
    total = statistics.median(each["total"] for each in later)
    share = statistics.median(
        (each["loading"] + each["augmentation"]) / each["step"] for each in later
    )
    return f"an epoch takes {total:.3f} s, loading and augmentation {share:.2f} of its steps"


class _OutOfTimeError(Exception):
    """A cell was stopped: it would have been over the budget."""


@dataclass(frozen=True)
class _Run:
    """How cells are run: what is the same for all of them, and not a part of the grid.

    Args:
        root: Where the data is.
        path: Of the records.
        digest: Of the grid.
        times: Whether records keep the seconds of each epoch.
        changes: Where a cell runs, whatever the grid says: its record has it, its name does not.
        end: Seconds since the epoch at which a cell stops between two of its epochs.
    """

    root: str | None
    path: Path
    digest: str
    times: bool
    changes: Mapping[str, Any]
    end: float

    def __call__(self, cell: Cell) -> tuple[str, float]:
        """Run one cell and write its record; return what to print of it, and the time."""
        begin = time.perf_counter()
        data = data_of(cell, self.root)
        changes = dict(self.changes)
        if isinstance(data, FolderData):  # files stay where they are
            changes.pop("resident", None)
        cell = replace(cell, **changes)
        record = run_cell(cell, data, self._check)
        epochs = record["result"]["epoch_seconds"]
        if not self.times:
            del record["result"]["epoch_seconds"]
        append(self.path, {"grid": self.digest, **record})
        accuracy, seconds = record["result"]["accuracies"][-1], time.perf_counter() - begin
        words = f"{cell.arm}, seed {cell.seed}: {100 * accuracy:.2f} % in {seconds:.0f} s"
        if self.times and len(epochs) > 1:
            words += f"; {pace(epochs)}"
        return words, seconds

    def _check(self, epoch: int) -> None:
        if time.time() >= self.end:
            raise _OutOfTimeError


def run_grid(
    grid: Grid,
    folder: Path | None = None,
    root: str | None = None,
    *,
    jobs: int = 1,
    budget_minutes: float | None = None,
    changes: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> int:
    """Run what is missing, and return how many cells still are.

    With a budget no cell is started that would be over it if it took as long as the longest so far,
    and one that is over it is stopped before its next epoch, to be run anew another time: a cell
    that takes longer than any budget is never done. A cell that fails raises, once those beside it
    are done.

    Args:
        grid: What is run.
        folder: Of the records; ``None``: where they are published.
        root: Where the data is.
        jobs: Cells side by side. Further processes may run other ``seeds`` of the same grid.
        budget_minutes: Of this call.
        changes: Where cells run, whatever the grid says.
        seeds: Only these.
    """
    folder = RESULTS if folder is None else folder
    limit = math.inf if budget_minutes is None else 60 * budget_minutes
    run = _Run(
        root,
        folder / f"{grid.name}.jsonl",
        grid.digest,
        grid.times,
        changes or {},
        time.time() + limit,
    )
    clock = _Clock(limit)
    while True:  # what was run may make a choice, by which more is due
        results = load_results(grid, folder)
        due = grid.due(results)
        missing = [cell for cell in due if cell.seed not in results.get(cell.arm, {})]
        print(f"{grid.name}: {len(due) - len(missing)} of {len(due)} cells are done", flush=True)
        asked = [cell for cell in missing if seeds is None or cell.seed in seeds]
        done = _run_cells(run, asked, clock, jobs) if asked else 0
        if not done or done < len(asked):
            return len(missing) - done


class _Clock:
    """How much of a budget of seconds is left, and whether another cell fits."""

    def __init__(self, limit: float) -> None:
        self._limit, self._begin, self.longest = limit, time.perf_counter(), 0.0

    @property
    def has_room(self) -> bool:
        spent = time.perf_counter() - self._begin
        return self._limit > 0 and spent + self.longest <= self._limit


def _run_cells(run: _Run, cells: Sequence[Cell], clock: _Clock, jobs: int) -> int:
    """Run cells as long as there is time, and return how many were done."""
    left: Iterator[Cell] = iter(cells)
    done = 0

    def next_cell() -> Cell | None:
        return next(left, None) if clock.has_room else None

    def note(get: Callable[[], tuple[str, float]]) -> None:
        nonlocal done
        try:
            words, seconds = get()
        except _OutOfTimeError:
            clock.longest = math.inf  # nothing more is started
            print("  a cell was stopped: if it was the first, it needs a larger budget", flush=True)
            return
        done, clock.longest = done + 1, max(clock.longest, seconds)
        print(f"  {words}", flush=True)

    if jobs == 1:
        while (cell := next_cell()) is not None:
            note(partial(run, cell))
        return done
    # Fresh processes: threads of this one do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[tuple[str, float]]] = set()
        while True:
            while len(running) < jobs and (cell := next_cell()) is not None:
                running.add(pool.submit(run, cell))
            if not running:
                return done
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for each in finished:
                note(each.result)


def estimate(grid: Grid, measured: dict[tuple[Any, ...], Costs]) -> dict[str, Any]:
    """Return the hours that a grid would take here, from a few steps of each network and policy.

    Random images of the data's shape stand in for it. Long tails are taken for as long as the rest.

    Args:
        grid: What would be run.
        measured: What was measured for other grids, added to.
    """
    strongs = [cell.strong for cell in grid.cells if cell.strong != "none"]
    hours: dict[str, float] = {}
    for cell in grid.cells:
        n, data = stand_in(cell.data)
        n = cell.limit or n
        strong = cell.strong if cell.strong != "none" else [*strongs, "none"][0]
        key = (n, cell.data, cell.model, strong, cell.kind, cell.precision, cell.threads)
        if key not in measured:
            whole = replace(cell, limit=None, noise=0.0, imbalance=None, strong=strong)
            measured[key] = costs_of(whole, data, n)
            print(f"  {cell.model}, {strong}: {measured[key]}", flush=True)
        hours[cell.arm] = hours.get(cell.arm, 0.0) + measured[key].of(cell, n) / 3600
    for arm, took in hours.items():
        print(f"  {arm}: {took:.2f} h")
    print(f"{grid.name}: {sum(hours.values()):.1f} h", flush=True)
    return {"hours": sum(hours.values()), "arms": hours}


def main(arguments: list[str] | None = None) -> None:
    """Run a grid."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "grids", nargs="+", metavar="GRID", help="TOML files, or names of some in benchmarks/grids"
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--out", type=Path, help="folder of results, or with --estimate a file")
    parser.add_argument("--budget-minutes", type=float, help="end cleanly after so long")
    parser.add_argument("--seeds", help="only these, as 5-19; other processes may run others")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side; times are worse")
    parser.add_argument("--device", help="run on it, whatever the grid says: data is kept there")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="compute in it, whatever the grid says: a processor without bfloat16 is slow at it",
    )
    parser.add_argument("--channels-last", action="store_true", help="the same for the layout")
    parser.add_argument("--estimate", action="store_true", help="measure what it would take")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    changes: dict[str, Any] = {}
    if given.device is not None and given.device != "cpu":
        changes = {
            "device": given.device,
            "precision": "bfloat16",
            "channels_last": True,
            "resident": True,
        }
    if given.precision is not None:
        changes["precision"] = given.precision
    if given.channels_last:
        changes["channels_last"] = True
    begin = time.perf_counter()
    estimates: dict[str, Any] = {}
    measured: dict[tuple[Any, ...], Costs] = {}
    for name in given.grids:
        grid = load_grid(name)
        if given.estimate:
            grid = replace(grid, cells=tuple(replace(cell, **changes) for cell in grid.cells))
            estimates[grid.name] = estimate(grid, measured)
            print(*power_lines(grid), sep="\n", flush=True)
            continue
        budget = given.budget_minutes
        if budget is not None:
            budget -= (time.perf_counter() - begin) / 60
        left = run_grid(
            grid,
            given.out,
            given.data,
            jobs=given.jobs,
            budget_minutes=budget,
            changes=changes,
            seeds=None if given.seeds is None else seeds_of(given.seeds),
        )
        print(f"{left} cells are left: run it again to go on" if left else "all cells are done")
    if given.estimate and given.out is not None:
        record = {"environment": environment(), "grids": estimates}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
