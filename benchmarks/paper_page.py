"""The paper's tables beside ours, at its size where they were run and in small where they were."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.answers import Answer, Records, accuracies, answers, in_parts, points, shown_p
from benchmarks.cells import Cell
from benchmarks.grids_page import part_tables, setting_of
from benchmarks.questions import Question
from benchmarks.train import Grid, load_grid, load_results

__all__ = [
    "PAPER",
    "Estimates",
    "disagreements",
    "gain_of",
    "in_small",
    "not_run",
    "other_reading",
    "paper_gap",
    "paper_section",
    "printed_of",
    "share_of_gain",
    "table_of",
    "told",
    "told_or_open",
    "where",
]

PAPER = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())
Estimates = Mapping[str, Mapping[str, Any]]  # hours of a grid, and of its arms


def printed_of(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the paper's numbers of a table by arm: those of coresets for both readings of weights.

    It defines weights that add up to n; the released code divides them by their mean. Which gave
    its numbers is not said. With several copies, which that code does not make, they share it.
    """
    values: dict[str, str] = table["values"]
    return values | {
        _of_mean_one(arm): value for arm, value in values.items() if _of_mean_one(arm) != arm
    }


def _of_mean_one(arm: str) -> str:
    """Return the name of a coreset's arm with weights of mean 1; of others, theirs."""
    return re.sub(r"^coreset (?=[\d.]+%)", "coreset, weights of mean 1 ", arm)


def paper_gap(printed: Mapping[str, str], first: str, second: str) -> float | None:
    """Return what the paper has the first arm above the second, if it prints both.

    What it prints as below a bound is taken for the bound: the order is then right, the gap least.
    """
    if first not in printed or second not in printed:
        return None
    values = [
        float(re.match(r"<?([\d.]+)", printed[arm])[1])  # type: ignore[index]
        for arm in (first, second)
    ]
    return values[0] - values[1]


def disagreements(found: Iterable[Answer], printed: Mapping[str, str]) -> list[Answer]:
    """Return the answers that are resolved the other way round than the paper prints them."""
    against = []
    for answer in found:
        gap = paper_gap(printed, answer.question.first, answer.question.second)
        if answer.is_resolved and gap is not None and gap * answer.gap.mean < 0:
            against.append(answer)
    return against


def told(answer: Answer, printed: Mapping[str, str]) -> str:
    """Return a resolved answer in words, and what the paper has."""
    theirs = paper_gap(printed, answer.better, answer.worse)
    words = (
        f"{answer.better} is {abs(answer.gap.mean):.2f} points above {answer.worse} "
        f"(p = {shown_p(answer.p)})"
    )
    if theirs is None or theirs == 0:
        return words
    return f"{words}, in the paper {abs(theirs):.2f} {'above' if theirs > 0 else 'below'} it"


def where(name: str) -> str:
    """Return a grid's name, after what of its size is not the paper's."""
    cell = load_grid(name).cells[0]
    if cell.limit is not None:
        return f"in small (`{name}`)"
    if name.endswith("-short"):
        return f"in {cell.epochs} epochs (`{name}`)"
    return f"`{name}`"


# ----------------------------------------------------------------------------------------- tables


def paper_section(table: Mapping[str, Any], estimates: Estimates) -> list[str]:
    """Return one of the paper's tables beside ours, or what it would take."""
    grid = load_grid(table["grid"])
    results = load_results(grid)
    part, printed = table.get("part", ""), printed_of(table)
    lines = [f"### {table['title']}", "", table["setting"], ""]
    ours = in_parts(grid, results)
    lines += _headlines("Ours", answers(ours[part]), printed)
    for small in table.get("small", ()):
        _, found = in_small(small)
        lines += _headlines(f"Ours {where(small['grid'])}", found, printed)
    if results:
        lines += [setting_of(grid, results), ""]
        cells = in_parts(grid, {cell.arm: cell for cell in grid.cells})
        for name in ours:
            lines += [f"**{name}**" if name else "", ""]
            lines += part_tables(cells[name], ours[name], printed if name == part else {})
    else:
        lines += [not_run(grid.name, estimates), ""]
    lines += _small_table(table, printed)
    lines += _gain_table(table, ours[part], printed)
    lines += _never_table(table, ours[part])
    return lines + _at_equal_steps(table, estimates)


def not_run(name: str, estimates: Estimates) -> str:
    """Return the command of a grid, and what it would take."""
    return f"`python -m benchmarks.train {name}`: **not run** ({hours_of(name, estimates)})."


def hours_of(name: str, estimates: Estimates) -> str:
    """Return what a grid would take, in words."""
    if name not in estimates:
        return "not estimated"
    took = estimates[name]["hours"]
    shown = f"{took:,.0f} hours" if took < 72 else f"{took / 24:,.0f} days"
    return f"about {shown} on one core, all seeds"


def _headlines(who: str, found: Iterable[Answer], printed: Mapping[str, str]) -> list[str]:
    found = list(found)
    against = disagreements(found, printed)
    if not against:
        return []
    listed = "; ".join(told(answer, printed) for answer in against)
    other = "; ".join(other_reading(against, found, printed))
    return [
        f"**{who} disagrees with the paper**: {listed}{f'; {other}' if other else ''}.",
        "",
    ]


def other_reading(
    against: Iterable[Answer], found: Iterable[Answer], printed: Mapping[str, str]
) -> list[str]:
    """Return what weights of mean 1 say where a coreset's disagree with the paper.

    Nothing of what disagrees with it itself: that is told already.
    """
    said = {(each.question.first, each.question.second): each for each in found}
    told_so = {(each.question.first, each.question.second) for each in against}
    pairs = {(_of_mean_one(first), second) for first, second in told_so} - told_so
    words = [told_or_open(each, printed) for pair, each in said.items() if pair in pairs]
    told_of = "with weights of mean 1, by which the released code divides: "
    return [f"{told_of}{'; '.join(words)}"] if words else []


def told_or_open(answer: Answer, printed: Mapping[str, str]) -> str:
    """Return an answer in words, resolved or not."""
    if answer.is_resolved:
        return told(answer, printed)
    question = answer.question
    return f"{question.first} over {question.second}: {points(answer.gap)}, unresolved"


def _at_equal_steps(table: Mapping[str, Any], estimates: Estimates) -> list[str]:
    """Return the same arms in as many steps each, which the paper does not have."""
    if "steps" not in table:
        return []
    grid = load_grid(table["steps"])
    results = load_results(grid)
    lines = ["At equal steps, which the paper does not report:", ""]
    if not results:
        return [*lines, not_run(grid.name, estimates), ""]
    lines += [setting_of(grid, results), ""]
    cells = in_parts(grid, {cell.arm: cell for cell in grid.cells})
    for name, of_part in in_parts(grid, results).items():
        lines += [f"**{name}**" if name else "", "", *part_tables(cells[name], of_part)]
    return lines


def _never_table(table: Mapping[str, Any], results: Records) -> list[str]:
    """Return the share that is never selected beside the paper's, where it prints one."""
    if "never" not in table:
        return []
    lines = ["| arm | never selected, %: paper | ours |", "| --- | --- | --- |"]
    for arm, theirs in table["never"].items():
        ours = "not run"
        if arm in results:
            shares = [each["dynamics"]["never_selected"] for each in results[arm].values()]
            ours = f"{100 * fmean(shares):.2f}, runs: {len(shares)}"
        lines.append(f"| {arm} | {theirs} | {ours} |")
    return [*lines, ""]


# --------------------------------------------------------------------------------------- in small


def in_small(small: Mapping[str, Any]) -> tuple[Records, list[Answer]]:
    """Return what a small grid has, under the names of the paper's table, and what it answers.

    Args:
        small: The name of a ``grid``, and the paper's ``names`` of arms that it calls otherwise.
    """
    results = load_results(load_grid(small["grid"]))
    names = small.get("names", {})

    def named(question: Question) -> Question:
        first, second = (names.get(arm, arm) for arm in (question.first, question.second))
        return replace(question, first=first, second=second)

    found = [replace(each, question=named(each.question)) for each in answers(results)]
    return {names.get(arm, arm): each for arm, each in results.items()}, found


def _small_table(table: Mapping[str, Any], printed: Mapping[str, str]) -> list[str]:
    """Return the paper's numbers beside those of small grids, with what differs in words."""
    columns = {
        small["grid"]: found for small in table.get("small", ()) if (found := in_small(small)[0])
    }
    if not columns:
        return [] if load_results(load_grid(table["grid"])) else _printed_table(table["values"])
    grids = [load_grid(name) for name in columns]
    names = " | ".join(
        f"ours {how}, % (runs): {which}"
        for how, which in (
            where(name).replace("(", "").replace(")", "").rsplit(" ", 1) for name in columns
        )
    )
    lines = [f"| arm | paper, % | {names} |", f"|{' --- |' * (2 + len(columns))}"]
    for arm, theirs in printed.items():
        ours = " | ".join(_mean_of(found, arm) for found in columns.values())
        if arm not in table["values"] and not ours.strip(" |"):
            continue  # the other reading, which none of these grids has
        lines.append(f"| {arm} | {theirs} | {ours} |")
    named = {small["grid"]: small.get("names", {}) for small in table["small"]}
    settings = "; ".join(
        f"`{grid.name}`: {_small_setting(grid, named[grid.name])}" for grid in grids
    )
    words = f"These are other settings, and say nothing of the paper's: {settings}."
    return [words, "", *lines, ""]


def _gain_table(table: Mapping[str, Any], ours: Records, printed: Mapping[str, str]) -> list[str]:
    """Return how much of full augmentation's gain each arm has: the measure of the paper's table 1.

    Nothing where the paper has no full augmentation, or nothing of ours has both ends.
    """
    if not {"none", "full, appended"} <= set(printed):
        return []
    found = {table["grid"]: ours}
    found |= {small["grid"]: in_small(small)[0] for small in table.get("small", ())}
    found = {name: each for name, each in found.items() if _gain(each, "full, appended")}
    theirs = {arm: float(re.match(r"[\d.]+", text)[0]) for arm, text in printed.items()}  # type: ignore[index]
    low, high = theirs["none"], theirs["full, appended"]
    arms = [arm for arm in printed if arm not in ("none", "full, appended")]
    if not found:
        return []
    names = " | ".join(f"ours {where(name)}" for name in found)
    lines = [f"| arm | paper | {names} |", f"|{' --- |' * (2 + len(found))}"]
    for arm in arms:
        values = [f"{share_of_gain(low, high, theirs[arm]):.0f}%"]
        values += [_gain(each, arm) for each in found.values()]
        if any(values[1:]):
            lines.append(f"| {arm} | {' | '.join(values)} |")
    words = "Share of the way from none to full augmentation appended, the paper's own measure:"
    return [words, "", *lines, ""]


def _gain(results: Records, arm: str) -> str:
    """Return the share of full augmentation's gain that an arm has; nothing if it was not run."""
    share = gain_of(results, arm)
    return "" if share is None else f"{share:.0f}%"


def gain_of(results: Records, arm: str) -> float | None:
    """Return the share of full augmentation's gain, in percent, over the seeds that all have."""
    ends = ("none", "full, appended", arm)
    if not set(ends) <= set(results):
        return None
    runs = [accuracies(results[each]) for each in ends]
    seeds = set.intersection(*map(set, runs))
    if not seeds:
        return None
    low, high, mine = (fmean(each[seed] for seed in seeds) for each in runs)
    return share_of_gain(low, high, mine)


def share_of_gain(low: float, high: float, value: float) -> float:
    """Return how far a value is from low to high, in percent."""
    return 100 * (value - low) / (high - low)


def table_of(title: str) -> Mapping[str, Any]:
    """Return one of the paper's tables."""
    (found,) = [each for each in PAPER["table"] if each["title"] == title]
    return found


def _printed_table(printed: Mapping[str, str]) -> list[str]:
    lines = ["| arm | paper, % |", "| --- | --- |"]
    return [*lines, *(f"| {arm} | {value} |" for arm, value in printed.items()), ""]


def _mean_of(results: Records, arm: str) -> str:
    if arm not in results:
        return ""
    values = list(accuracies(results[arm]).values())
    return f"{fmean(values):.2f} ({len(values)})"


def _images(cell: Cell) -> str:
    """Return how many images there are, or are before a long tail is cut off."""
    cut = "" if cell.imbalance is None else f" before the tail is cut to 1 in {cell.imbalance:g}"
    return f"{'all' if cell.limit is None else f'{cell.limit:,}'} images{cut}"


def _small_setting(grid: Grid, names: Iterable[str]) -> str:
    """Return what of a small grid, or of its arms of these names, is not as in the paper."""
    names = list(names) or [cell.arm for cell in grid.cells]
    cell = next(each for each in grid.cells if each.strong != "none" and each.arm in names)
    length = f"{cell.epochs} epochs"
    if cell.passes is not None:
        length = f"in every arm as many steps as {cell.epochs} epochs of {cell.passes:g} n rows"
    copies = "one copy" if cell.copies == 1 else f"{cell.copies} copies"
    return f"{_images(cell)}, {cell.model}, {copies}, {cell.strong}, R = {cell.every}, {length}"
