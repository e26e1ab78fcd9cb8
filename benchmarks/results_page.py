"""Write ``docs/results.md`` and what else the docs take from the runs on record.

``python -m benchmarks.results_page`` reads ``benchmarks/results`` and writes the page, its forest
plot and the table of ``docs/choosing.md``. Numbers of runs on them follow from the records.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cells import Cell
from benchmarks.grid import RESULTS, Grid, Results, grid_names, load_grid, load_results
from benchmarks.pictures import new_figure, save_figure
from benchmarks.stats import (
    Answer,
    Difference,
    accuracies,
    answers,
    asked,
    detectable,
    difference,
    pool,
)
from benchmarks.tables import between, table

__all__ = ["DECISIONS", "PAGE", "decision_table", "main", "render"]

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PAPER: dict[str, Any] = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())


class Row(NamedTuple):
    """A line of the table: a grid's arms at one share."""

    words: str
    grid: str
    share: str
    none: str = "none"
    appended: str = "full, appended"
    in_place: str = "full, in place"
    rule: str = "{} {share}"
    uniform: str = "coreset, uniform weights {share}"
    also: str = ""  # a grid that has arms which this one lacks

    def arms(self) -> dict[str, str]:
        """Return the arm of each column."""
        named = {
            "none": self.none,
            "all, extra copies": self.appended,
            "all, in place": self.in_place,
            "random": self.rule.format("random", share="{share}"),
            "max-loss": self.rule.format("max-loss", share="{share}"),
            "coreset, uniform": self.uniform,
            "coreset, cluster": self.rule.format("coreset", share="{share}"),
        }
        return {column: arm.format(share=self.share) for column, arm in named.items()}


_EQUAL = {"none": "none, as many steps as {share}"}
_OWN = {**_EQUAL, "in_place": "full, in place, as many steps as {share}", "appended": ""}
_IN_PLACE = {"rule": "{} {share}, in place", "appended": ""}
_IN_PLACE |= {"uniform": "coreset, uniform weights {share}, in place"}
_ONLY = {"none": "", "appended": "", "in_place": ""}
ROWS = (
    Row("1,500 images, extra copies, 10%", "small-steps", "10%"),
    Row("1,500 images, extra copies, 30%", "small-steps", "30%"),
    Row("1,500 images, in place, 30%", "in-place", "30%", **_IN_PLACE),
    Row("the same, other seeds", "in-place-50", "30%", **_IN_PLACE),
    Row("1,500 images, equal epochs, 10%", "small-epochs", "10%", **{**_EQUAL, "appended": ""}),
    Row("1,500 images, equal epochs, 30%", "small-epochs", "30%", **{**_EQUAL, "appended": ""}),
    Row("3,000 images, 60 epochs, 10%", "small-steps-3000", "10%"),
    Row("3,000 images, 60 epochs, 30%", "small-steps-3000", "30%"),
    Row("3,000 images, 100 epochs, 10%", "small-steps-3000-long", "10%"),
    Row("3,000 images, 100 epochs, 30%", "3000-long-15", "30%", also="small-steps-3000-long"),
    Row("half of the labels random, 10%", "small-noise", "10%"),
    Row("half of the labels random, 30%", "small-noise", "30%"),
    Row("half of the labels random, in place, 30%", "noise-in-place-16", "30%", **_IN_PLACE),
    Row("long tail 1:10, 30%", "small-imbalanced", "30%"),
    Row("table 1, ResNet20, 7 epochs, 10%", "table1-cifar10-short", "10%", **_OWN),
    Row("table 1, ResNet20, 7 epochs, 30%", "table1-cifar10-short", "30%", **_OWN),
    Row(
        "table 1, long tail 1:10, ResNet32, 14 epochs, 10%",
        "table1-imbalanced-short",
        "10%",
        **_OWN,
    ),
    Row("table 2, half of the labels random, 7 epochs, 10%", "table2-short", "10%", **_OWN),
    Row("table 6, 7 epochs, 0.5%", "table6-short", "0.5%", **_OWN),
    Row("only the subset, each epoch, 1% of 10,000", "only-15", "1%", **_ONLY),
    Row("only the subset, each epoch, 10% of 10,000", "only-15", "10%", **_ONLY),
    Row(
        "table 3, only the subset, ResNet20, 60 epochs, 1%",
        "table3-short",
        "1%",
        **_ONLY,
        rule="{} {share}, augmented",
        uniform="",
    ),
)

# What to do, and the difference that says so: a grid, two arms, and whether the first was found
# better (+), worse (-) or neither (=). A test holds the signs to the records.
DECISIONS = (
    (
        "Only a small subset is trained on",
        "try both: of 10,000 images a coreset was better, of all 50,000 a random subset",
        ("small-only", "coreset each epoch, augmented", "random each epoch, augmented", "+"),
    ),
    (
        "Only the subset, and selecting each epoch is too slow",
        "a random subset each epoch: a coreset kept for ten is no better",
        ("small-only", "coreset, not augmented", "random each epoch, not augmented", "-"),
    ),
    (
        "All originals are trained on as well",
        'a random subset, `weights="uniform"`',
        ("small-steps", "coreset, uniform weights 30%", "random 30%", "="),
    ),
    (
        "A coreset beside all originals",
        '`weights="uniform"`, the default, not cluster weights',
        ("small-steps", "coreset, uniform weights 30%", "coreset 30%", "+"),
    ),
    (
        "A random subset beside all originals",
        "every R epochs: fresh ones each epoch were not better",
        ("small-steps-3000-long", "random each epoch 30%", "random 30%", "="),
    ),
    (
        "Half of the labels are random",
        "no selector that seeks what is hard",
        ("table2-short", "max-loss 10%", "random 10%", "-"),
    ),
    (
        "Time for as many steps as everything takes",
        "augment everything, by extra copies or in place",
        ("small-steps", "full, appended", "none", "+"),
    ),
    (
        "As many steps, and augmenting is what costs",
        "a random subset of 30%: of 3,000 images in 100 epochs it kept three quarters of the gain",
        ("small-steps-3000-long", "random 30%", "none", "+"),
    ),
    (
        "Epochs are few",
        "more steps first: at equal steps augmenting gained nothing",
        (
            "table1-cifar10-short",
            "full, in place, as many steps as 30%",
            "none, as many steps as 30%",
            "-",
        ),
    ),
    (
        "Epochs are what counts, not steps",
        "extra copies: they are steps as well",
        ("small-epochs", "full, in place", "full, appended", "-"),
    ),
    (
        "How strong RandAugment should be",
        "magnitude 9 throughout: strength that grows over the run was not significantly better",
        ("in-place-50", "strength by time, in place", "full, in place", "="),
    ),
    (
        "The clock is what counts, and augmenting costs little",
        "nothing was better than none; a coreset with cluster weights was worse",
        ("small-time", "coreset 30%", "none", "-"),
    ),
)


@cache
def _read(name: str) -> tuple[Grid, Results]:
    grid = load_grid(name)
    return grid, load_results(grid)


def _values(name: str, arm: str) -> dict[int, float]:
    """Return the accuracies of an arm by seed, of those that the grid's questions are asked on."""
    return asked(*_read(name), arm)


def gap_of(name: str, first: str, second: str) -> Difference | None:
    """Return the difference of two arms of a grid; ``None`` without a pair."""
    mine, other = _values(name, first), _values(name, second)
    return difference(mine, other) if set(mine) & set(other) else None


def _gap(name: str, first: str, second: str) -> Difference:
    found = gap_of(name, first, second)
    if found is None:
        raise ValueError(f"{name} must have runs of {first!r} and {second!r} with one seed.")
    return found


def _in_two_precisions(name: str, first: str, second: str) -> int:
    """Return how many pairs of runs were not computed in the same precision."""
    results = _read(name)[1]
    of = {
        arm: {seed: Cell.of(run["cell"]).precision for seed, run in results[arm].items()}
        for arm in (first, second)
    }
    return sum(of[first][seed] != of[second][seed] for seed in of[first].keys() & of[second].keys())


# Sections.


def main_table() -> list[str]:
    """Return mean ± standard deviation of each row's arms, and how many seeds these are of."""
    lines = []
    for row in ROWS:
        cells, counts = [], set()
        for arm in row.arms().values():
            runs = _values(row.grid, arm) or (_values(row.also, arm) if row.also else {})
            if len(runs) < 2:
                cells.append("")
                continue
            counts.add(len(runs))
            values = list(runs.values())
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        if counts:
            seeds = "-".join(dict.fromkeys((str(min(counts)), str(max(counts)))))
            lines.append(f"| {' | '.join([row.words, *cells, seeds])} |")
    return table(["setting", *ROWS[0].arms(), "n"], lines)


def contrasts(first: str, second: str) -> list[tuple[Row, Difference]]:
    """Return the difference of two columns in every row that has both."""
    found = []
    for row in ROWS:
        arms = row.arms()
        gap = gap_of(row.grid, arms[first], arms[second])
        if gap is not None and gap.num_pairs > 1:
            found.append((row, gap))
    return found


def beside_originals() -> list[tuple[Row, Difference]]:
    """Return coreset minus random, uniform weights, where all originals are trained on as well."""
    return [
        (row, gap)
        for row, gap in contrasts("coreset, uniform", "random")
        if "only" not in row.words and "in place" not in row.arms()["random"]
    ]


def _pooled(pairs: Iterable[tuple[Row, Difference]]) -> str:
    gaps = [gap for _, gap in pairs]
    found = pool([g.mean for g in gaps], [g.spread / math.sqrt(g.num_pairs) for g in gaps])
    return f"{found.mean:+.2f} points ({found.low:+.2f} to {found.high:+.2f}; {len(gaps)} settings)"


def findings() -> list[str]:
    """Return what the records say, in five sentences or so each."""
    beside = beside_originals()
    table1 = [(row, gap) for row, gap in beside if row.grid == "table1-cifar10-short"]
    others = [(row, gap) for row, gap in beside if row.grid != "table1-cifar10-short"]
    weights = [
        (row, gap)
        for row, gap in contrasts("coreset, uniform", "coreset, cluster")
        if "only" not in row.words
    ]
    clean = [(row, gap) for row, gap in weights if "labels random" not in row.words]
    noisy = [(row, gap) for row, gap in weights if row.grid == "small-noise"]
    short = _gap("table1-cifar10-short", "full, appended", "none, as many steps as full")
    long = _gap("small-steps-3000-long", "full, appended", "none")
    kept = _gap("small-steps-3000-long", "random 30%", "none")
    part = _gap("in-place-50", "random 30%, in place", "full, in place")
    only = _gap("only-15", "coreset 1%", "random 1%")
    large = _gap("table3-short", "coreset 1%, augmented", "random 1%, augmented")
    roots = (
        "tempered-15",
        *(f"coreset, {x} weights 30%, in place" for x in ("tempered", "uniform")),
    )
    tempered, mixed = _gap(*roots), _in_two_precisions(*roots)
    smallest, largest = min(clean, key=lambda x: x[1].mean), max(clean, key=lambda x: x[1].mean)
    lines = [
        "1. **Which examples: a coreset or a random subset?** Beside all originals and with "
        "uniform weights, coreset minus random is "
        + " and ".join(f"{gap} ({row.share})" for row, gap in table1)
        + " points in the paper's table 1 in seven epochs, and over all other settings "
        f"{_pooled(others)}, by random effects. With five seeds a setting, "
        "the paper's 0.47 points could not be seen in most of them.",
        "2. **Cluster weights cost accuracy.** Uniform minus cluster weights is "
        f"{smallest[1].mean:+.1f} points ({smallest[0].words}) to {largest[1].mean:+.1f} "
        f"({largest[0].words}) with correct labels. Under label noise, at equal steps, it is "
        + " and ".join(f"{gap} ({row.share})" for row, gap in noisy)
        + ". Less uneven weights cost little, if anything: the root of cluster sizes, capped at "
        f"four times the mean, minus uniform weights is {tempered} points in place"
        f"{f', {mixed} of {tempered.num_pairs} pairs in two precisions' if mixed else ''}.",
        "3. **Much of what copies gain is steps.** Full augmentation beside no augmentation at "
        f"equal steps is {short} points in seven epochs of all images, and {long} in 100 epochs of "
        f"3,000, where a random 30% gains {kept}. In place, a random 30% minus everything is "
        f"{part} points (1,500 images, {part.num_pairs} seeds).",
        "4. **Only the subset.** Trained on 1% alone, chosen each epoch, a coreset with cluster "
        f"weights minus a random subset is {only} points of 10,000 images with a small network, "
        f"and {large} of all 50,000 with a ResNet20.",
        f"5. **How strongly.** {_strength()}",
    ]
    return lines


def _strength() -> str:
    """Return what is known of how strong augmentation should be."""
    grid, results = _read("in-place-50")
    place = _gap("small-steps", "full, in place", "full, appended")
    parts = [
        f"At equal steps, everything in place minus everything as extra copies is {place} points "
        "(1,500 images)."
    ]
    for choice in grid.choices:
        means = {
            arm: statistics.mean(values)
            for arm in choice.of
            if len(
                values := [
                    value
                    for seed, value in accuracies(results.get(arm, {})).items()
                    if seed in choice.seeds
                ]
            )
            == len(choice.seeds)
        }
        arm = choice.made(results)
        listed = ", ".join(
            f"{name.removesuffix(', in place')} {m:.1f}" for name, m in means.items()
        )
        if means:
            parts.append(
                f"On the seeds that the {choice.name} is chosen on: {listed}"
                + (f". Chosen: *{arm}*." if arm else "; the others are not complete.")
            )
    strength, magnitude = (grid.chosen(f"best {x}", results) for x in ("strength", "magnitude"))
    asked_of = [a for a in answers(grid, results) if a.primary.first == "best strength"]
    if strength == "strength by time, in place" and magnitude == "full, in place":
        parts.append(
            "By time, all images of an epoch have one strength; none that looks at each example "
            "was better on these seeds. As magnitude 9 is the best fixed one too, the grid's two "
            "questions about strength coincide."
        )
        asked_of = asked_of[:1]
    for a in asked_of:
        if a.gap is not None and a.gap.num_pairs > 1:
            parts.append(
                f"{a.primary.name} {a.gap} points, {a.words} ({a.gap.num_pairs} of {a.asked} "
                "seeds)."
            )
    if all(a.gap and a.gap.num_pairs == a.asked and a.gap.low <= 0 for a in asked_of):
        parts.append("So no such rule enters the library, and its default stays magnitude 9.")
    if not any(a.gap for a in asked_of):
        parts.append(
            "Whether a strength for each example beats a fixed one is asked in `in-place-50` and "
            "not answered yet."
        )
    return " ".join(parts)


def all_answers() -> list[tuple[Grid, Answer]]:
    """Return the primary questions of all grids."""
    found = []
    for name in grid_names():
        grid, results = _read(name)
        if name == "smoke":
            continue
        found += [(grid, answer) for answer in answers(grid, results)]
    return found


def primary_table() -> list[str]:
    """Return the primary questions, answered as far as they are."""
    lines = []
    for grid, a in all_answers():
        gap, count = "", 0
        if a.gap is not None:
            gap, count = str(a.gap), a.gap.num_pairs
        p = f"{a.p:.2g}" if math.isfinite(a.p) else ""
        lines.append(
            f"| `{grid.name}` | {a.primary.name} | {gap} | {p} | {count} of {a.asked} | {a.words} |"
        )
    return table(["grid", "question", "difference (95%)", "p (Holm)", "n", "answer"], lines)


def paper_rows() -> list[str]:
    """Return the paper's differences beside ours, where our interval leaves them out."""
    lines = []
    for row in ROWS:
        tables = [each for each in PAPER["table"] if each.get("few_epochs") == row.grid]
        printed = tables[0]["values"] if tables else {}
        arms = row.arms()
        for first, second in (
            ("coreset, cluster", "random"),
            ("coreset, uniform", "random"),
            ("coreset, cluster", "max-loss"),
            ("coreset, uniform", "max-loss"),
        ):
            gap = gap_of(row.grid, arms[first], arms[second])
            theirs = [
                _printed(printed.get(arms[name].replace("coreset, uniform weights", "coreset")))
                for name in (first, second)
            ]
            if gap is None or theirs[0] is None or theirs[1] is None:
                continue
            paper = theirs[0] - theirs[1]
            if gap.low <= paper <= gap.high:
                continue
            lines.append(f"| {row.words} | {first} - {second} | {paper:+.2f} | {gap} |")
    return table(["setting of ours", "difference", "paper", "ours (95%)"], lines)


def _printed(text: str | None) -> float | None:
    """Return a mean as the paper prints it; ``None`` where it prints none, or a bound."""
    return None if text is None or text.startswith("<") else float(text.split()[0])


def left_table() -> list[str]:
    """Return what was not run, and what it takes."""
    lines = []
    for name in grid_names():
        grid, results = _read(name)
        due = grid.due(results)
        left = [cell for cell in due if cell.seed not in results.get(cell.arm, {})]
        if not grid.primaries or not left or name == "smoke":
            continue
        own = [
            _total(run)
            for runs in results.values()
            for run in runs.values()
            if run.get("grid") == grid.digest
        ]
        # The fastest: most shared their core with something else.
        seconds = sum(min(own) if own else _seconds_of(cell) for cell in left)
        took = f"{seconds / 3600:.1f} hours"
        where = "one core" if left[0].device == "cpu" else "one data-centre GPU"
        lines.append(f"| `{name}` | {len(left)} of {len(due)} runs | {took} on {where} |")
    estimates = json.loads((RESULTS / "estimates.json").read_text())["grids"]
    for name, each in estimates.items():
        if name not in grid_names() or _read(name)[1]:
            continue
        days = each["hours"] / 24
        lines.append(f"| `{name}` | all runs | {days:,.0f} days on one core |")
    return table(["grid", "left", "takes about"], lines)


@cache
def _seconds_by_kind() -> dict[tuple[Any, ...], float]:
    """Return the median time of a run on record, by data, network, epochs and device."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for name in grid_names():
        for runs in _read(name)[1].values():
            for run in runs.values():
                kind = _kind_of(Cell.of(run["cell"]))
                found.setdefault(kind, []).append(run["result"]["seconds"]["total"])
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def _kind_of(cell: Cell) -> tuple[Any, ...]:
    return cell.data, cell.limit, cell.model, cell.epochs, cell.device


def _seconds_of(cell: Cell) -> float:
    return _seconds_by_kind()[_kind_of(cell)]


def time_table() -> list[str]:
    """Return the paper's table 5, times as fast as full augmentation, beside ours."""
    on_core, on_gpu = _read("times")[1], _read("times-gpu")[1]
    lines = []
    for arm, printed in PAPER["faster"].items():
        core = _faster(on_core, "full, one by one", f"{arm}, one by one", _total)
        gpu = _faster(on_gpu, "full", arm, _epoch)
        if core or gpu:
            lines.append(f"| {arm} | {printed:.2f} | {core} | {gpu} |")
    columns = [
        "arm",
        "paper, an A40",
        "one core, image by image, R = 2",
        "H200, in batches, R = 20",
    ]
    return table(columns, lines)


def _total(run: dict[str, Any]) -> float:
    seconds: float = run["result"]["seconds"]["total"]
    return seconds


def _epoch(run: dict[str, Any], every: int = 20) -> float:
    """Return the seconds of an epoch once graphs are captured, with its share of a selection."""
    first, *later = run["result"]["epoch_seconds"]
    return statistics.median(each["total"] for each in later) + first["selection"] / every


def _faster(
    results: Results, full: str, arm: str, seconds: Callable[[dict[str, Any]], float]
) -> str:
    """Return how many times as fast, a geometric mean over pairs; nothing without a run."""
    if arm not in results:
        return ""
    slow, fast = (
        {seed: math.log(seconds(run)) for seed, run in results[name].items()}
        for name in (full, arm)
    )
    gap = difference(slow, fast)
    return f"{math.exp(gap.mean):.1f} ({math.exp(gap.low):.1f} to {math.exp(gap.high):.1f})"


def decision_table() -> list[str]:
    """Return what to choose when, a line each."""
    lines = []
    for when, what, (name, first, second, _) in DECISIONS:
        gap = _gap(name, first, second)
        lines.append(f"| {when} | {what} | *{first}* - *{second}*: {gap} (`{name}`) |")
    return table(["when", "choose", "for example, in points"], lines)


def forest(path: Path) -> None:
    """Draw the primary questions, and below them each setting's coreset minus random."""
    asked = [
        (f"{grid.name}: {a.primary.name}", a.gap, "#2b8a4b")
        for grid, a in all_answers()
        if a.gap is not None and a.gap.num_pairs > 1
    ]
    seen = [
        (f"{row.words}", gap, "#8c8c8c") for row, gap in contrasts("coreset, uniform", "random")
    ]
    lines = [*asked, *seen]
    figure = new_figure(0.42 * len(lines) + 0.8)
    axes = figure.subplots()
    for at, (words, gap, colour) in enumerate(lines):
        axes.text(-4.5, at - 0.3, words, fontsize=9)
        axes.plot([gap.low, gap.high], [at, at], color=colour, lw=1.6)
        axes.plot(gap.mean, at, "o", color=colour, ms=5)
    axes.axvline(0, color="#222222", lw=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(lines) - 0.5, -0.8)
    axes.set_xlabel("difference in test accuracy, points, with 95% interval")
    axes.set_xlim(-4.5, 4.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path)


def render() -> str:
    """Return the page."""
    total = sum(path.read_text().count('"cell":') for path in RESULTS.glob("*.jsonl"))
    least = detectable(0.78, 5), detectable(0.78, 50)
    lines = [
        "# Results",
        "",
        "Does it matter which examples are augmented, and how? This page is written from the "
        f"{total:,} runs on record by `python -m benchmarks.results_page`; a test holds it to "
        "them. Most runs are small: 1,500 to 10,000 CIFAR-10 images, a small convolutional "
        "network, one copy, RandAugment, a processor core. Tables of the paper are all images, its "
        "networks and four copies, in a few epochs, on a GPU. Nothing here is at the paper's 200 "
        "epochs.",
        "",
        "## What we found",
        "",
        *findings(),
        "",
        "These are differences of seeds on one sample of images, with 95% intervals of a paired t "
        "test. Settings with five seeds were looked at many times, so an interval off zero there "
        f"is a lead. With a spread of 0.78 points, five seeds find {least[0]:.1f} points with 80% "
        f"power, fifty {least[1]:.1f}.",
        "",
        "## Accuracy by setting",
        "",
        "Test accuracy in percent after the last step, mean ± standard deviation over n seeds. "
        "*None* takes as many steps as the subsets do. *In place*: the copy replaces its original. "
        "Cells that are empty were not run.",
        "",
        *main_table(),
        "",
        "Any two arms: `python -m benchmarks.stats GRID ARM ARM`; with a grid alone, all its arms. "
        "Settings are in [benchmarks/grids](../benchmarks/grids/small-steps.toml).",
        "",
        "## Questions asked beforehand",
        "",
        "Each grid names at most five before its first run; the digest of what it declares is in "
        "each record made since. p values are corrected by Holm within a grid. Runs taken over "
        "from an older grid were there before the question.",
        "",
        *primary_table(),
        "",
        "![Differences with intervals](results-forest.svg)",
        "",
        "Green: asked beforehand. Gray: coreset with uniform weights minus random, in every "
        "setting that has both.",
        "",
        "## Where we differ from the paper",
        "",
        "The paper does not say whether cluster sizes or uniform weights gave its numbers; its "
        "released script leaves copies at weight 1. Below are the differences that our intervals "
        "leave out, of its own tables cut to a few epochs: with cluster weights nearly all, with "
        "uniform weights those named so.",
        "",
        *paper_rows(),
        "",
        "## Where the time goes",
        "",
        "Times as fast as augmenting everything, four copies, ResNet20, three runs each, with 95% "
        "intervals: the grids `times` (1,000 images) and `times-gpu` (10,000), the latter before a "
        "batch took one launch, which was not measured. With four copies, steps alone allow 3.57 "
        "at 10% and 2.27 at 30%; more takes copies that cost more than their steps, as on the "
        "paper's machine.",
        "",
        *time_table(),
        "",
        "## What was not run",
        "",
        "One command each, `python -m benchmarks.train GRID --data CIFAR10`, stopped and continued "
        "at will. Hours follow from the fastest of the grid's own runs, or from runs of the same "
        "data, network and epochs; a busy core takes two or three times as long, and one without "
        "bfloat16 many times unless told `--precision float32`. Days, for the paper's settings and "
        "all seeds, are estimated from two steps of each network.",
        "",
        *left_table(),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the page, its picture, and the table of choices."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--docs", type=Path, default=PAGE.parent, help="folder of the pages")
    docs = parser.parse_args(arguments).docs
    (docs / PAGE.name).write_text(render())
    forest(docs / "results-forest.svg")
    choosing = docs / "choosing.md"
    if choosing.is_file():
        choosing.write_text(between(choosing.read_text(), "decisions", decision_table()))


if __name__ == "__main__":
    main()
