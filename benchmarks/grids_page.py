"""The sections of grids: what was run, each arm, and what is resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

from benchmarks.answers import (
    Answer,
    Records,
    accuracies,
    answers,
    in_parts,
    question_table,
    shown_p,
)
from benchmarks.cells import Cell
from benchmarks.paired import summary_of
from benchmarks.train import GRIDS, Grid, load_grid, load_results

__all__ = [
    "SHORT",
    "arm_table",
    "grid_section",
    "grids_but",
    "in_short",
    "part_tables",
    "setting_of",
]

# The paper's tables in few epochs.
SHORT = (
    *("table1-cifar10-short", "table1-imbalanced-short", "table2-short"),
    *("table3-short", "table6-short"),
)
# In the order of the page; grids that are not named follow, by name.
_FIRST = (
    *SHORT,
    *(
        "small-steps",
        "small-steps-3000",
        "small-steps-3000-long",
        "small-epochs",
        "small-time",
        "small-noise",
        "small-noise-epochs",
    ),
    *("small-imbalanced", "small-imbalanced-epochs", "small-only", "in-place"),
    *("frontier", "frontier-epochs", "ablations", "ablations-epochs"),
)
# What is no table of accuracies: pages of their own, and what CI runs.
_ELSEWHERE = ("dynamics", "times", "times-gpu", "smoke")


def grids_but(others: Iterable[str]) -> list[str]:
    """Return the grids on file in the order of the page, but for these and for pages' own."""
    names = sorted(path.stem for path in GRIDS.glob("*.toml"))
    without = {*others, *_ELSEWHERE, *(name for name in names if name.endswith("-observed"))}
    return [each for each in dict.fromkeys((*_FIRST, *names)) if each not in without]


def grid_section(name: str) -> list[str]:
    """Return a grid's section, or nothing where it has no results yet."""
    grid = load_grid(name)
    results = load_results(grid)
    if not results:
        return []
    lines = [f"## {grid.title}", "", grid.about, "", setting_of(grid, results), ""]
    cells = in_parts(grid, {cell.arm: cell for cell in grid.cells})
    for part, of_part in in_parts(grid, results).items():
        if of_part:
            lines += [f"**{part}**" if part else "", "", *part_tables(cells[part], of_part)]
    return lines


def part_tables(
    cells: Mapping[str, Cell], results: Records, printed: Mapping[str, str] | None = None
) -> list[str]:
    """Return the arms, the questions, and what was selected.

    Args:
        cells: One of each arm that is planned.
        results: Of those that were run.
        printed: The paper's numbers: they bring a column, and lines of arms that were not run.
    """
    return [
        *arm_table(results, cells, printed),
        "",
        *question_table(results),
        "",
        *_clean_table(cells, results),
        *_tail_table(results),
    ]


def setting_of(grid: Grid, results: Records) -> str:
    """Return the command, the setting, how many cells there are, and where they were run."""
    cells = [cell for cell in grid.cells if cell.strong != "none"]
    rates = {cell.every for cell in cells if cell.every < 10_000 and cell.fraction < 1}
    cell = cells[0]
    records = [each for arm in results.values() for each in arm.values()]
    environments = [each["environment"] for each in records]
    length = f"schedule of {cell.epochs} epochs" if cell.seconds is None else f"{cell.seconds} s"
    return (
        f"`python -m benchmarks.train {grid.name} --data {cell.data.upper()}`. {cell.model}, batch "
        f"{cell.batch_size}, peak rate {cell.lr}, {length}, "
        f"copies: {_or(each.copies for each in cells)}, "
        f"strong policy {_or(each.strong for each in cells)}, "
        f"R = {_or(sorted(rates)) if rates else cell.every}, "
        f"{_or(each['cell']['precision'] for each in records)}"
        f"{', CUDA graphs' if any(each['cell'].get('graphed') for each in records) else ''}; "
        f"{len(environments)} of {len(grid.cells)} cells; "
        f"{_or(each['device'] for each in environments)}, "
        f"torch {_or(each['torch'] for each in environments)}, "
        f"commits {', '.join(sorted({each['commit'] for each in environments}))}."
    )


def _or(values: Iterable[Any]) -> str:
    return " or ".join(str(each) for each in dict.fromkeys(values))


def arm_table(
    results: Records, planned: Iterable[str] = (), printed: Mapping[str, str] | None = None
) -> list[str]:
    """Return a table of the arms: runs, accuracy, its spread and interval, steps.

    Args:
        results: Of the arms that were run.
        planned: Arms in order; those that were not run have a line where ``printed`` is given.
        printed: The paper's numbers, for a column.
    """
    has_classes = any(_balanced_differs(records) for records in results.values())
    columns = ["arm", "runs", "test accuracy, %", "spread", "95% interval"]
    columns += ["mean of classes, %"] * has_classes + ["steps", "augmented rows"]
    rows = []
    for arm in dict.fromkeys((*planned, *results)):
        if arm in results:
            rows.append([arm, *_row(results[arm], has_classes)])
        elif printed is not None:
            rows.append([arm, "0", "not run", *[""] * (len(columns) - 3)])
    if printed is not None:
        columns.insert(1, "paper, %")
        for row in rows:
            row.insert(1, printed.get(row[0], "not printed"))
    return [
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _row(records: Mapping[int, dict[str, Any]], has_classes: bool) -> list[str]:
    found = summary_of(list(accuracies(records).values()))
    results = [each["result"] for each in records.values()]
    spread, interval = "", ""
    if found.num_runs > 1:
        spread, interval = f"{found.spread:.2f}", f"{found.low:.2f} to {found.high:.2f}"
    classes = [f"{100 * fmean(each['balanced_accuracy'] for each in results):.2f}"] * has_classes
    steps, augmented = (fmean(each[key] for each in results) for key in ("steps", "augmented"))
    row = [str(found.num_runs), f"{found.mean:.2f}", spread, interval, *classes]
    return [*row, f"{steps:,.0f}", f"{augmented:,.0f}"]


def _balanced_differs(records: Mapping[int, dict[str, Any]]) -> bool:
    """Whether the test data has classes of several sizes, so that their mean is another number."""
    return any(
        abs(each["result"]["balanced_accuracy"] - each["result"]["accuracies"][-1]) > 1e-6
        for each in records.values()
    )


# ------------------------------------------------------------------------------ what was selected


def _selections(results: Records, key: str) -> dict[str, list[list[dict[str, Any]]]]:
    """Return each run's selections, by arm, where they hold this and are not of everything."""
    found = {
        arm: [each["dynamics"]["selections"] for each in records.values()]
        for arm, records in results.items()
        if not arm.startswith(("none", "full"))
    }
    return {arm: runs for arm, runs in found.items() if all(run and key in run[0] for run in runs)}


def _mean(runs: list[list[dict[str, Any]]], key: str) -> str:
    return f"{100 * fmean(fmean(entry[key] for entry in run) for run in runs):.1f}"


def _clean_table(cells: Mapping[str, Cell], results: Records) -> list[str]:
    """Return the share of clean labels among what rules select under noise."""
    found = _selections(results, "clean_share")
    if not found:
        return []
    cell = cells[next(iter(found))]
    # Of ten classes: a label drawn from all of them is right once in ten.
    clean = 1 - cell.noise * (0.9 if cell.noise_kind == "any" else 1.0)
    why = ": a random label is right once in ten" if cell.noise_kind == "any" else ""
    return [
        "Clean labels among the selected, of the number and of the weight, over all selections "
        f"({clean:.0%} of all labels are clean{why}):",
        "",
        "| arm | runs | clean, % of the selected | % of the weight |",
        "| --- | --- | --- | --- |",
        *(
            f"| {arm} | {len(runs)} | {_mean(runs, 'clean_share')} | "
            f"{_mean(runs, 'clean_weight')} |"
            for arm, runs in found.items()
        ),
        "",
    ]


def _tail_table(results: Records) -> list[str]:
    """Return the share of the small classes that rules select of a long tail."""
    found = _selections(results, "tail_recall")
    if not found:
        return []
    return [
        "The tail, the smallest third of the classes: how many of its test images are classified "
        "correctly at the end, and how much of it is selected, over all selections. A rule that "
        "does not look at classes selects its own share of it.",
        "",
        "| arm | runs | test recall of the tail, % | spread | selected, % of the tail |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {arm} | {len(records)} | {_recall_of_tail(records)} | "
            f"{_mean(found[arm], 'tail_recall') if arm in found else ''} |"
            for arm, records in results.items()
        ),
        "",
        "The same questions of the recall of the tail:",
        "",
        *question_table(results, _tail_recalls),
        "",
    ]


def _recall_of_tail(records: Mapping[int, dict[str, Any]]) -> str:
    recalls = list(_tail_recalls(records).values())
    if not recalls:
        return " | "
    spread = f"{stdev(recalls):.2f}" if len(recalls) > 1 else ""
    return f"{fmean(recalls):.2f} | {spread}"


def _tail_recalls(records: Mapping[int, dict[str, Any]]) -> dict[int, float]:
    """Return the recall of the tail by seed, in percent; older records have none."""
    found = {seed: each["result"].get("tail_accuracy") for seed, each in records.items()}
    return {seed: 100 * recall for seed, recall in found.items() if recall is not None}


# --------------------------------------------------------------------------------------- in short


def in_short(names: Iterable[str]) -> list[str]:
    """Return every difference that is resolved, table by table, and how many are not."""
    lines: list[str] = []
    unresolved = 0
    for name in names:
        grid = load_grid(name)
        for part, results in in_parts(grid, load_results(grid)).items():
            title = grid.title if grid.title.startswith("Table") else grid.title.split(":")[0]
            asked = [(answer, "") for answer in answers(results)]
            asked += [(each, "recall of the tail: ") for each in answers(results, _tail_recalls)]
            told = [f"- {of}{_told(answer)}" for answer, of in asked if answer.is_resolved]
            unresolved += len(asked) - len(told)
            if told:
                lines += [f"**{title}{f', {part}' if part else ''}**", "", *told, ""]
    tail = f"Other questions of the tables below, unresolved so far: {unresolved}."
    return ["## What is resolved", "", *(lines or ["Nothing yet.", ""]), tail, ""]


def _told(answer: Answer) -> str:
    """Return a resolved answer, the better arm first."""
    low, high = sorted((abs(answer.gap.low), abs(answer.gap.high)))
    return (
        f"*{answer.better}* is {abs(answer.gap.mean):.2f} points above *{answer.worse}* "
        f"({low:.2f} to {high:.2f}, p = {shown_p(answer.p)}, {answer.gap.num_pairs} seeds)."
    )
