"""Statistics of paired runs, and any comparison of two arms: ``python -m benchmarks.stats GRID``.

``python -m benchmarks.stats GRID ARM ARM`` prints the difference of two arms over the seeds that
both have, those that a choice was made on left out; with GRID alone, every arm on all its seeds
and the grid's primary questions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from benchmarks.grid import Grid, Primary, Results, load_grid, load_results

__all__ = ["ALPHA", "Answer", "Difference", "Pooled", "accuracies", "answers", "asked"]
__all__ += ["detectable", "difference", "holm", "pairs_needed", "pool", "power_lines"]

ALPHA = 0.05
_POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, its 95% t interval, and the p of the paired t test.

    All but the mean are NaN for one pair.

    Args:
        num_pairs: Seeds that both arms have.
        mean: Of the differences.
        spread: Their sample standard deviation.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided.
    """

    num_pairs: int
    mean: float
    spread: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        """Return mean and interval."""
        if self.num_pairs == 1:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def difference(
    mine: Mapping[int, float], other: Mapping[int, float], shift: float = 0.0
) -> Difference:
    """Return the paired difference of two arms, over the seeds that both have.

    Args:
        mine: A value a seed.
        other: Likewise.
        shift: What the test adds to every difference: a margin for non-inferiority.

    Raises:
        ValueError: If they have no seed in common, or a value is not finite.
    """
    seeds = sorted(set(mine) & set(other))
    if not seeds:
        raise ValueError(
            f"arms must have a seed in common, got {sorted(mine)} and {sorted(other)}."
        )
    gaps = np.array([mine[seed] - other[seed] for seed in seeds], np.float64)
    if not np.isfinite(gaps).all():
        raise ValueError(f"values must be finite, got differences {gaps.tolist()}.")
    mean, count = float(gaps.mean()), len(gaps)
    if count == 1:
        return Difference(1, mean, *[math.nan] * 4)
    spread = float(gaps.std(ddof=1))
    if spread == 0:  # the test divides by it: no doubt, or no difference
        return Difference(count, mean, 0.0, mean, mean, float(mean + shift == 0))
    test = stats.ttest_1samp(gaps + shift, 0.0)
    low, high = (float(end) - shift for end in test.confidence_interval(1 - ALPHA))
    return Difference(count, mean, spread, low, high, float(test.pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for there being many, by Holm's step-down.

    NaN, a question without an answer yet, stays, and counts as one of the questions.

    Reference:
        Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, 1979.
    """
    known = sorted((p, at) for at, p in enumerate(values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(values), 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(values) - rank)))
        corrected[at] = largest
    return corrected


@dataclass(frozen=True)
class Pooled:
    """A mean over several tables, and how much tables differ beyond their own noise.

    Args:
        mean: Over all tables.
        low: Lower end of its 95% interval.
        high: Upper end.
        between: Standard deviation between tables.
    """

    mean: float
    low: float
    high: float
    between: float


def pool(means: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Return the random-effects mean of several tables' differences.

    DerSimonian and Laird's variance between tables, and the interval of Hartung, Knapp, Sidik and
    Jonkman, which holds for few tables too; it is not narrower than their own noise allows.

    Args:
        means: A difference a table.
        errors: Standard errors of these.
    """
    y, within = np.asarray(means, np.float64), np.square(np.asarray(errors, np.float64))
    if len(y) < 2 or not (within > 0).all():
        raise ValueError(f"errors must be above 0, and two tables or more, got errors={errors}.")
    weight = 1 / within
    fixed = (weight * y).sum() / weight.sum()
    excess = (weight * (y - fixed) ** 2).sum() - (len(y) - 1)
    between = max(0.0, excess / (weight.sum() - (weight**2).sum() / weight.sum()))
    weight = 1 / (within + between)
    mean = (weight * y).sum() / weight.sum()
    scale = max(1.0, (weight * (y - mean) ** 2).sum() / (len(y) - 1))
    error = math.sqrt(scale / weight.sum())
    margin = float(stats.t.ppf(1 - ALPHA / 2, len(y) - 1)) * error
    return Pooled(float(mean), float(mean - margin), float(mean + margin), math.sqrt(between))


def detectable(spread: float, num_pairs: int, alpha: float = ALPHA) -> float:
    """Return the difference that a paired t test finds with 80% power.

    Args:
        spread: Standard deviation of a difference.
        num_pairs: Seeds, at least 2.
        alpha: Of the test, two-sided.
    """
    freedom = num_pairs - 1
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))

    def missing(effect: float) -> float:
        """Return what the power at an effect, in standard errors, is short of.

        The wrong side's share, below 1e-4 at such a power, is left out.
        """
        return float(stats.nct.sf(critical, freedom, effect)) - _POWER

    effect = float(optimize.brentq(missing, 0.0, 2 * critical + 2))
    return effect * spread / math.sqrt(num_pairs)


def pairs_needed(spread: float, gap: float, alpha: float = ALPHA) -> int:
    """Return how many seeds find a difference with 80% power; see :func:`detectable`."""
    count = 3
    while detectable(spread, count, alpha) > gap:
        count += 1
    return count


def accuracies(runs: Mapping[int, Mapping[str, object]]) -> dict[int, float]:
    """Return test accuracy in percent after the last step, by seed."""
    return {seed: 100 * run["result"]["accuracies"][-1] for seed, run in runs.items()}  # type: ignore[index]


def asked(grid: Grid, results: Results, arm: str | None) -> dict[int, float]:
    """Return an arm's accuracies on the grid's own seeds: not those that a choice was made on."""
    found = accuracies(results.get(arm or "", {}))
    return {seed: value for seed, value in found.items() if seed in grid.seeds}


@dataclass(frozen=True)
class Answer:
    """What the records say to a primary question.

    Args:
        primary: The question.
        first: The arm that its first name stands for; ``None`` until it is chosen.
        second: Likewise.
        gap: First minus second; ``None`` without a pair.
        p: Corrected by Holm for the grid's primary questions; NaN without one.
        asked: Seeds that the grid has for it.
    """

    primary: Primary
    first: str | None
    second: str | None
    gap: Difference | None
    p: float
    asked: int

    @property
    def words(self) -> str:
        """What that means, with the question's direction and margin."""
        gap, margin = self.gap, self.primary.margin
        if gap is None:
            return "not run yet"
        if gap.num_pairs < 2:
            return "one run is too few"
        if self.primary.direction == "not below":
            if self.p < ALPHA and gap.mean > -margin:
                return f"less than {margin:g} points worse, if at all"
            if self.p < ALPHA:
                return f"more than {margin:g} points worse"
            return f"a loss of {margin:g} points or more is not ruled out"
        if self.p < ALPHA:
            return "better" if gap.mean > 0 else "worse"
        return "no significant difference"


def answers(grid: Grid, results: Results) -> list[Answer]:
    """Return what the records say to a grid's primary questions, on the seeds they are asked on."""
    found = []
    for primary in grid.primaries:
        arms = [grid.chosen(name, results) for name in (primary.first, primary.second)]
        values = [asked(grid, results, arm) for arm in arms]
        shift = primary.margin if primary.direction == "not below" else 0.0
        paired = set(values[0]) & set(values[1]) and arms[0] != arms[1]
        found.append((primary, arms, difference(*values, shift) if paired else None))
    corrected = holm([math.nan if gap is None else gap.p for _, _, gap in found])
    return [
        Answer(primary, first, second, gap, p, len(grid.seeds))
        for (primary, (first, second), gap), p in zip(found, corrected, strict=True)
    ]


def power_lines(grid: Grid) -> list[str]:
    """Return what difference a grid's seeds can detect, before anything is run."""
    if not grid.primaries or grid.spread is None:
        return []
    strictest = ALPHA / len(grid.primaries)
    first, last = (detectable(grid.spread, len(grid.seeds), a) for a in (ALPHA, strictest))
    return [
        f"{grid.name}: {len(grid.seeds)} seeds, a spread of {grid.spread:g} points: a difference "
        f"of {first:.2f} points is found with 80% power, {last:.2f} at Holm's first step of "
        f"{len(grid.primaries)}",
        *(
            f"  {each.name} margin {each.margin:g}: {pairs_needed(grid.spread, each.margin)} seeds"
            for each in grid.primaries
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print a comparison, or all of a grid."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stats", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("grid")
    parser.add_argument("arms", nargs="*", metavar="ARM", help="two of the grid's")
    parser.add_argument("--out", type=Path, help="folder of the records, as given to train")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    grid = load_grid(given.grid)
    results = load_results(grid, given.out)
    unknown = sorted(set(given.arms) - set(results))
    if unknown or len(given.arms) not in (0, 2):
        parser.error(f"ARM must be two of {sorted(results)}, got {given.arms}")
    if given.arms:
        mine, other = (asked(grid, results, arm) for arm in given.arms)
        if not set(mine) & set(other):
            parser.error(f"ARM and ARM must have one of the grid's seeds in common: {grid.seeds}")
        gap = difference(mine, other)
        print(f"{gap} points, {gap.num_pairs} seeds, spread {gap.spread:.2f}, p = {gap.p:.2g}")
        return
    for arm, runs in results.items():
        values = list(accuracies(runs).values())
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        print(f"{arm}: {np.mean(values):.2f}{spread}, {len(values)} seeds")
    for answer in answers(grid, results):
        count = 0 if answer.gap is None else answer.gap.num_pairs
        print(
            f"{answer.primary.name} {answer.first} - {answer.second}: {answer.gap}, {count} of "
            f"{answer.asked} seeds, Holm p = {answer.p:.2g}: {answer.words}"
        )
    print(*power_lines(grid), sep="\n")


if __name__ == "__main__":
    main()
