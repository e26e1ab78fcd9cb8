"""The sections of grids: what was run, each arm, and what is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.answers import Records, accuracies, answers, better, question_table
from benchmarks.paired import summary_of
from benchmarks.train import load_grid, load_results

__all__ = ["accuracy_section", "arm_table", "clean_section", "in_short"]


def arm_table(results: Records) -> list[str]:
    """Return a table of the arms: runs, accuracy, its spread and interval, steps."""
    lines = [
        "| arm | runs | test accuracy, % | spread | 95% interval | steps | augmented rows |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, records in results.items():
        found = summary_of(list(accuracies(records).values()))
        steps = fmean([each["result"]["steps"] for each in records.values()])
        augmented = fmean([each["result"]["augmented"] for each in records.values()])
        spread, interval = "", ""
        if found.num_runs > 1:
            spread, interval = f"{found.spread:.2f}", f"{found.low:.2f} to {found.high:.2f}"
        lines.append(
            f"| {arm} | {found.num_runs} | {found.mean:.2f} | {spread} | {interval} | "
            f"{steps:,.0f} | {augmented:,.0f} |"
        )
    return lines


def in_short(names: Sequence[str]) -> list[str]:
    """Return every difference that is resolved, and how many are not."""
    lines, unresolved = [], 0
    for name in names:
        grid = load_grid(name)
        for question, gap, p in answers(load_results(grid)):
            winner = better(question, gap, p)
            unresolved += winner is None
            if winner is not None:
                loser = question.second if winner == question.first else question.first
                lines.append(
                    f"- {grid.title.split(':')[0]}: *{winner}* is {abs(gap.mean):.2f} points above "
                    f"*{loser}* ({min(abs(gap.low), abs(gap.high)):.2f} to "
                    f"{max(abs(gap.low), abs(gap.high)):.2f}, {gap.num_pairs} seeds)."
                )
    tail = f"{unresolved} other questions of the tables below are unresolved so far."
    return ["## What is resolved", "", *lines, "" if lines else "Nothing yet.", tail, ""]


def accuracy_section(name: str, before: str) -> list[str]:
    """Return a grid's section, or nothing where it has no results yet."""
    grid = load_grid(name)
    results = load_results(grid)
    if not results:
        return []
    cell = next(each for each in grid.cells if each.strong != "none")
    planned = len(grid.cells)
    environments = [each["environment"] for arm in results.values() for each in arm.values()]
    done, environment = len(environments), environments[0]
    commits = ", ".join(sorted({each["commit"] for each in environments}))
    setting = (
        f"{cell.model}, batch {cell.batch_size}, peak rate {cell.lr}, schedule of {cell.epochs} "
        f"epochs, {cell.copies} cop{'y' if cell.copies == 1 else 'ies'}, strong policy "
        f"{cell.strong}, R = {cell.every}, {cell.precision}; {done} of {planned} cells; "
        f"{environment['device']}, torch {environment['torch']}, commits {commits}."
    )
    return [
        f"## {grid.title}",
        "",
        before,
        "",
        f"`python -m benchmarks.train {name} --data CIFAR10`. {setting}",
        "",
        *arm_table(results),
        "",
        *question_table(results),
        "",
    ]


def clean_section() -> list[str]:
    """Return the share of clean labels among what rules select under noise."""
    results = load_results(load_grid("small-noise"))
    lines = []
    for arm, records in results.items():
        entries = [each["dynamics"]["selections"] for each in records.values()]
        if "clean_share" not in entries[0][0] or arm.startswith(("none", "full")):
            continue
        share, weight = (
            fmean([fmean([entry[key] for entry in run]) for run in entries])
            for key in ("clean_share", "clean_weight")
        )
        lines.append(f"| {arm} | {len(records)} | {100 * share:.1f} | {100 * weight:.1f} |")
    if not lines:
        return []
    return [
        "Clean labels among the selected, of the number and of the weight, over all selections "
        "(55% of all labels are clean: a random label is right once in ten):",
        "",
        "| arm | runs | clean, % of the selected | % of the weight |",
        "| --- | --- | --- | --- |",
        *lines,
        "",
    ]
