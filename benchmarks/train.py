"""Run a grid of training runs: any rule, budget, data and model; stop and go on at any time.

``python -m benchmarks.train GRID`` reads a file of ``benchmarks/grids``, runs every cell that has
no result yet and writes one JSON each to ``benchmarks/results/train/GRID``. ``--estimate`` says
what the grid would take instead. Where the data is in a file of yours: ``--data PATH``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from augsubset.utils.checkpoint import write_whole
from benchmarks.cells import Cell, Costs, costs_of, data_of, from_record, run_cell
from benchmarks.datasets import FolderData, stand_in
from benchmarks.harness import environment

__all__ = ["Grid", "estimate", "load_grid", "load_results", "run_grid"]

GRIDS = Path(__file__).parent / "grids"
RESULTS = Path(__file__).parent / "results" / "train"
_SCALARS = ("milestones", "rule_options", "shadows")  # what is no list of alternatives


@dataclass(frozen=True)
class Grid:
    """A file of cells.

    Args:
        name: Of the file.
        title: What it is about.
        cells: In the order that they are run: seed by seed, so that pairs are complete early.
        about: What is to be said of it.
        parts: What names of arms end in where the grid has the same arms several times over.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    about: str = ""
    parts: tuple[str, ...] = ()


def load_grid(path: str | Path) -> Grid:
    """Return the grid of a TOML file, or of that name in ``benchmarks/grids``.

    ``[setting]`` holds what all cells share, ``seeds`` lists seeds, and each ``[[arm]]`` what is
    its own. A list stands for alternatives, and the arm's name is formatted with what it has then;
    ``{share}`` is its fraction in percent, as "10%" or "0.2%". With ``like = "NAME"`` the file has
    what that grid has, but for the arms in ``without`` and for what the file says itself; its own
    arms come last.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is unknown, or two cells are the same.
    """
    path = Path(path)
    if not path.is_file():
        path = GRIDS / f"{path}.toml"
    written = _written(path)
    cells = []
    for seed in written["seeds"]:
        for arm in written["arm"]:
            shared = {**written.get("setting", {}), **arm, "seed": seed}
            lists = {
                key: value
                for key, value in shared.items()
                if isinstance(value, list) and key not in _SCALARS
            }
            for values in itertools.product(*lists.values()):
                chosen = {**shared, **dict(zip(lists, values, strict=True))}
                share = f"{100 * chosen.get('fraction', Cell.fraction):.3g}%"
                chosen["arm"] = arm["name"].format(**chosen, share=share)
                chosen.pop("name")
                cells.append(Cell.of(chosen))
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cells must differ, got twice: {twice}.")
    return Grid(
        path.stem,
        written["title"],
        tuple(cells),
        written.get("about", ""),
        tuple(written.get("parts", ())),
    )


def _written(path: Path) -> dict[str, Any]:
    """Return what a file says, with what it takes over of another."""
    own = tomllib.loads(path.read_text())
    if "like" not in own:
        return own
    other = _written(path.parent / f"{own['like']}.toml")
    without = own.get("without", [])
    unknown = sorted(set(without) - {arm["name"] for arm in other["arm"]})
    if unknown:
        raise ValueError(f"without must name arms of {own['like']}, got {unknown}.")
    arms = [arm for arm in other["arm"] if arm["name"] not in without] + own.get("arm", [])
    setting = {**other.get("setting", {}), **own.get("setting", {})}
    return {**other, **own, "arm": arms, "setting": setting}


def load_results(grid: Grid, folder: Path | None = None) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the records there are: by arm, then by seed."""
    folder = RESULTS / grid.name if folder is None else folder
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in grid.cells:
        path = folder / f"{cell.name}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            record["cell"] = from_record(record["cell"])
            found.setdefault(cell.arm, {})[cell.seed] = record
    return found


class _OutOfTimeError(Exception):
    """A cell was stopped: it would have been over the budget."""


@dataclass(frozen=True)
class _Run:
    """How cells are run: what is the same for all of them, and not a part of the grid.

    Args:
        root: Where the data is.
        folder: Of the records.
        changes: Where a cell runs, whatever the grid says: its record has it, its name does not.
        end: Seconds since the epoch at which a cell stops between two of its epochs.
    """

    root: str | None
    folder: Path
    changes: Mapping[str, Any]
    end: float

    def __call__(self, cell: Cell) -> tuple[str, float, float]:
        """Run one cell and write its record; return the arm, the accuracy and the time."""
        begin, name = time.perf_counter(), cell.name
        data = data_of(cell, self.root)
        changes = dict(self.changes)
        if isinstance(data, FolderData):  # files stay where they are
            changes.pop("resident", None)
        cell = replace(cell, **changes)
        record = run_cell(cell, data, self._check)
        text = json.dumps(record, indent=1) + "\n"
        write_whole(self.folder / f"{name}.json", text.encode())
        accuracy: float = record["result"]["accuracies"][-1]
        return f"{cell.arm}, seed {cell.seed}", accuracy, time.perf_counter() - begin

    def _check(self, epoch: int) -> None:
        if time.time() >= self.end:
            raise _OutOfTimeError


def run_grid(
    grid: Grid,
    folder: Path,
    root: str | None,
    *,
    jobs: int = 1,
    budget_minutes: float | None,
    changes: Mapping[str, Any] | None = None,
) -> int:
    """Run what is missing, and return how many cells still are.

    With a budget no cell is started that would be over it if it took as long as the longest so far,
    and one that is over it is stopped before its next epoch, to be run anew another time: a cell
    that takes longer than any budget is never done. A cell that fails raises, once those beside it
    are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in grid.cells if not (folder / f"{cell.name}.json").is_file()]
    print(f"{grid.name}: {len(grid.cells) - len(missing)} of {len(grid.cells)} cells are done")
    limit = math.inf if budget_minutes is None else 60 * budget_minutes
    begin, longest = time.perf_counter(), 0.0
    run = _Run(root, folder, changes or {}, time.time() + limit)
    left: Iterator[Cell] = iter(missing)
    done = 0

    def next_cell() -> Cell | None:
        spent = time.perf_counter() - begin
        return None if spent + longest > limit or limit <= 0 else next(left, None)

    def note(get: Callable[[], tuple[str, float, float]]) -> None:
        nonlocal done, longest
        try:
            name, accuracy, seconds = get()
        except _OutOfTimeError:
            longest = math.inf  # nothing more is started
            print("  a cell was stopped: if it was the first, it needs a larger budget", flush=True)
            return
        done, longest = done + 1, max(longest, seconds)
        print(f"  {name}: {100 * accuracy:.2f} % in {seconds:.0f} s", flush=True)

    if jobs == 1:
        while (cell := next_cell()) is not None:
            note(partial(run, cell))
        return len(missing) - done
    # Fresh processes: threads of this one do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[tuple[str, float, float]]] = set()
        while True:
            while len(running) < jobs and (cell := next_cell()) is not None:
                running.add(pool.submit(run, cell))
            if not running:
                return len(missing) - done
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
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side; times are worse")
    parser.add_argument("--device", help="run on it, whatever the grid says: data is kept there")
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
    if given.out is not None and len(given.grids) > 1 and not given.estimate:
        parser.error("--out takes the results of one grid")
    begin = time.perf_counter()
    estimates: dict[str, Any] = {}
    measured: dict[tuple[Any, ...], Costs] = {}
    for name in given.grids:
        grid = load_grid(name)
        if given.estimate:
            grid = replace(grid, cells=tuple(replace(cell, **changes) for cell in grid.cells))
            estimates[grid.name] = estimate(grid, measured)
            continue
        budget = given.budget_minutes
        if budget is not None:
            budget -= (time.perf_counter() - begin) / 60
        folder = RESULTS / grid.name if given.out is None else given.out
        left = run_grid(
            grid,
            folder,
            given.data,
            jobs=given.jobs,
            budget_minutes=budget,
            changes=changes,
        )
        print(f"{left} cells are left: run it again to go on" if left else "all cells are done")
    if given.estimate and given.out is not None:
        record = {"environment": environment(), "grids": estimates}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
