"""Grids: files that say which runs are made, and what is asked of them before the first."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from augsubset.utils.checks import check_choice
from benchmarks.cells import Cell
from benchmarks.records import read

__all__ = ["Choice", "Grid", "Primary", "Results"]
__all__ += ["grid_names", "load_grid", "load_results", "seeds_of"]

GRIDS = Path(__file__).parent / "grids"
RESULTS = Path(__file__).parent / "results"
_SCALARS = ("milestones", "rule_options", "shadows")  # what is no list of alternatives
_MAX_PRIMARIES = 5

Results = dict[str, dict[int, dict[str, Any]]]
"""Records by arm, then by seed."""


@dataclass(frozen=True)
class Primary:
    """A question that a grid was made for, asked before its first cell was run.

    Args:
        name: The question.
        first: An arm, or a choice among arms.
        second: What it is held against.
        margin: Points: the smallest difference that matters; the largest loss that does not.
        direction: Of the first over the second: ``"above"`` expects it better, ``"either"``
            expects nothing, ``"not below"`` asks whether it is less than the margin worse.
    """

    name: str
    first: str
    second: str
    margin: float
    direction: Literal["either", "above", "not below"] = "either"

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        check_choice("direction", self.direction, ("either", "above", "not below"))
        if not self.margin > 0:
            raise ValueError(f"margin must be above 0, got margin={self.margin}.")


@dataclass(frozen=True)
class Choice:
    """The best of several arms by its mean on some seeds; questions are asked on others.

    Args:
        name: What primaries call it.
        of: The arms.
        seeds: That are chosen on.
    """

    name: str
    of: tuple[str, ...]
    seeds: tuple[int, ...]

    def made(self, results: Results) -> str | None:
        """Return the arm, ``None`` as long as a run is missing; the first among equals."""
        means = {}
        for arm in self.of:
            runs = results.get(arm, {})
            if not set(self.seeds) <= set(runs):
                return None
            means[arm] = statistics.mean(
                runs[seed]["result"]["accuracies"][-1] for seed in self.seeds
            )
        return max(means, key=lambda arm: means[arm])


@dataclass(frozen=True)
class Grid:
    """A file of cells.

    Args:
        name: Of the file.
        title: What it is about.
        cells: All that may be run: choices first, then seed by seed, so that pairs are complete
            early. See :meth:`due`.
        about: What is to be said of it.
        seeds: That questions are asked on.
        primaries: What is asked.
        choices: Among arms.
        reuse: Grids whose records of the same cells count.
        spread: Standard deviation of a difference in points, as expected beforehand.
        times: Whether records keep the seconds of each epoch.
        digest: Of all that defines the cells and the questions, but not of how many seeds.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    about: str = ""
    seeds: tuple[int, ...] = ()
    primaries: tuple[Primary, ...] = ()
    choices: tuple[Choice, ...] = ()
    reuse: tuple[str, ...] = ()
    spread: float | None = None
    times: bool = False
    digest: str = field(default="", compare=False)

    def chosen(self, name: str, results: Results) -> str | None:
        """Return the arm that a name stands for; ``None`` for a choice that is not made yet."""
        choice = next((each for each in self.choices if each.name == name), None)
        return name if choice is None else choice.made(results)

    def due(self, results: Results) -> list[Cell]:
        """Return the cells to be run: of arms to choose from, those chosen on, or chosen."""
        asked = {name for each in self.primaries for name in (each.first, each.second)}
        always = {self.chosen(name, results) for name in asked}
        to_choose = {arm: each.seeds for each in self.choices for arm in each.of}
        return [
            cell
            for cell in self.cells
            if cell.arm in always or cell.seed in to_choose.get(cell.arm, (cell.seed,))
        ]


def grid_names() -> list[str]:
    """Return the names of all grids: files, and sections of ``paper.toml``."""
    files = {path.stem for path in GRIDS.glob("*.toml")} - {"paper"}
    return sorted(files | set(tomllib.loads((GRIDS / "paper.toml").read_text())))


def seeds_of(written: str | Iterable[int]) -> tuple[int, ...]:
    """Return seeds as a file or a call gives them: a list, or first and last as "5-54"."""
    if not isinstance(written, str):
        return tuple(written)
    first, _, last = written.partition("-")
    return tuple(range(int(first), int(last or first) + 1))


def load_grid(path: str | Path) -> Grid:
    """Return the grid of a TOML file, or of that name in ``benchmarks/grids``.

    That is a file there, or a section of ``paper.toml``.

    ``[setting]`` holds what all cells share, ``seeds`` lists seeds, and each ``[[arm]]`` what is
    its own. A list stands for alternatives, and the arm's name is formatted with what it has then;
    ``{share}`` is its fraction in percent, as "10%" or "0.2%". With ``like = "NAME"`` the file has
    what that grid has, but for the arms in ``without`` and for what the file says itself; its own
    arms come last. ``only`` names the arms that are kept of it instead. Each ``[[primary]]`` is a
    question and each ``[[choice]]`` a choice among arms: see :class:`Primary`, :class:`Choice`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is unknown, two cells are the same, or too much is asked.
    """
    path = Path(path)
    written = _written(path if path.suffix else GRIDS / f"{path}.toml")
    seeds = seeds_of(written["seeds"])
    choices = tuple(
        Choice(each["name"], tuple(each["of"]), seeds_of(each["seeds"]))
        for each in written.get("choice", [])
    )
    primaries = tuple(Primary(**each) for each in written.get("primary", []))
    cells = []
    for seed in sorted({seed for each in choices for seed in each.seeds}):
        named = {arm for each in choices if seed in each.seeds for arm in each.of}
        cells += [cell for cell in _cells_of(written, seed) if cell.arm in named]
    for seed in seeds:
        cells += _cells_of(written, seed)
    _check(cells, primaries, choices, seeds)
    declared = {
        name: written.get(name) for name in ("setting", "arm", "primary", "choice", "spread")
    }
    return Grid(
        path.stem,
        written["title"],
        tuple(cells),
        written.get("about", ""),
        seeds,
        primaries,
        choices,
        tuple(written.get("reuse", ())),
        written.get("spread"),
        written.get("times", False),
        hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:12],
    )


def _cells_of(written: dict[str, Any], seed: int) -> list[Cell]:
    cells = []
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
    return cells


def _check(
    cells: Sequence[Cell],
    primaries: Sequence[Primary],
    choices: Sequence[Choice],
    seeds: Sequence[int],
) -> None:
    both = sorted(set(seeds).intersection(*(each.seeds for each in choices))) if choices else []
    if both:
        raise ValueError(f"seeds must not be those of a choice, got {both} in both.")
    counts = Counter(cell.key for cell in cells)
    twice = sorted({f"{cell.arm}, seed {cell.seed}" for cell in cells if counts[cell.key] > 1})
    if twice:
        raise ValueError(f"cells must differ, got twice: {twice}.")
    if len(primaries) > _MAX_PRIMARIES:
        raise ValueError(
            f"a grid must have at most {_MAX_PRIMARIES} primary questions, got {len(primaries)}."
        )
    arms = {cell.arm for cell in cells}
    named = {name for each in choices for name in each.of}
    named |= {name for each in primaries for name in (each.first, each.second)}
    unknown = sorted(named - arms - {each.name for each in choices})
    if unknown:
        raise ValueError(f"questions must name arms or choices, got {unknown}.")


def _written(path: Path) -> dict[str, Any]:
    """Return what a file says, with what it takes over of another."""
    paper = path.parent / "paper.toml"
    sections = tomllib.loads(paper.read_text()) if paper.is_file() else {}
    own = sections[path.stem] if path.stem in sections else tomllib.loads(path.read_text())
    if "like" not in own:
        return own
    other = _written(path.parent / f"{own['like']}.toml")
    names = [arm["name"] for arm in other["arm"]]
    without = own.get("without", [])
    kept = own.get("only", names)
    unknown = sorted({*without, *kept} - set(names))
    if unknown:
        raise ValueError(f"without and only must name arms of {own['like']}, got {unknown}.")
    arms = [arm for arm in other["arm"] if arm["name"] in kept and arm["name"] not in without]
    setting = {**other.get("setting", {}), **own.get("setting", {})}
    questions: dict[str, Any] = {"primary": [], "choice": [], "reuse": []}  # are each file's own
    return {**other, **questions, **own, "arm": arms + own.get("arm", []), "setting": setting}


def load_results(grid: Grid, folder: Path | None = None) -> Results:
    """Return the records there are of a grid's cells; those of ``grid.reuse`` count too."""
    folder = RESULTS if folder is None else folder
    known: dict[str, dict[str, Any]] = {}
    for name in (grid.name, *grid.reuse):
        for record in read(folder / f"{name}.jsonl"):
            known.setdefault(Cell.of(record["cell"]).key, record)
    found: Results = {}
    for cell in grid.cells:
        if cell.key in known:
            found.setdefault(cell.arm, {})[cell.seed] = known[cell.key]
    return found
