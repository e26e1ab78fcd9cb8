"""The paper's tables beside ours, and each of its statements with the command that checks it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.answers import Records, accuracies, answers, better, signed
from benchmarks.paired import summary_of
from benchmarks.train import load_grid, load_results

__all__ = ["PAPER", "map_section", "paper_section"]

PAPER = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())


def paper_section(table: dict[str, Any], hours: Mapping[str, float]) -> list[str]:
    """Return one of the paper's tables beside ours, or what it would take."""
    results = load_results(load_grid(table["grid"]))
    lines = [f"### {table['title']}", "", table["setting"], ""]
    if not results:
        took = _hours(table["grid"], hours)
        lines += [f"`python -m benchmarks.train {table['grid']}`: **not run** ({took}).", ""]
    lines += ["| arm | paper | ours | runs |", "| --- | --- | --- | --- |"]
    for arm, theirs in table["values"].items():
        ours, runs = "not run", "0"
        if arm in results:
            found = summary_of(list(accuracies(results[arm]).values()))
            ours, runs = f"{found.mean:.2f} ± {found.spread:.2f}", str(found.num_runs)
        lines.append(f"| {arm} | {theirs} | {ours} | {runs} |")
    return [*lines, ""]


def _hours(grid: str, hours: Mapping[str, float]) -> str:
    if grid not in hours:
        return "not estimated"
    took = hours[grid]
    shown = f"{took:,.0f} hours" if took < 72 else f"{took / 24:,.0f} days"
    return f"about {shown} on one core, all seeds"


def map_section(hours: Mapping[str, float]) -> list[str]:
    """Return every system, table and figure with its command and its result."""
    lines = ["| | what | command | result |", "| --- | --- | --- | --- |"]
    lines += [_mapped(row, hours) for row in PAPER["row"]]
    return [
        "## The paper, row by row",
        "",
        "Systems (S), tables, figures and statements of theory (T), each with the command that "
        "checks it and what came of it.",
        "",
        *lines,
        "",
    ]


def _mapped(row: dict[str, str], hours: Mapping[str, float]) -> str:
    command, result = row.get("command", ""), row.get("result", "")
    if "grid" in row:
        grid = load_grid(row["grid"])
        done = sum(len(records) for records in load_results(grid).values())
        command = f"python -m benchmarks.train {grid.name}"
        result = f"not run: {_hours(grid.name, hours)}"
        if done:
            where = f"`benchmarks/results/train/{grid.name}`"
            result = f"{done} of {len(grid.cells)} cells, {where}"
        if done and "question" in row:
            result = f"{_headline(row['question'], load_results(grid))}; {result}"
        if done and "paper" in row:
            result += f". The paper: {row['paper']}"
    shown = f"`{command}`" if command else ""
    return f"| {row['name']} | {row['what']} | {shown} | {result} |"


def _headline(words: str, results: Records) -> str:
    """Return what was found of a question, in bold where it is resolved."""
    (question, gap, p), *_ = [each for each in answers(results) if each[0].words == words]
    winner = better(question, gap, p)
    if winner is None:
        return f"{question.first} over {question.second}: {signed(gap.mean)} points, unresolved"
    loser = question.second if winner == question.first else question.first
    return f"**{winner} is {abs(gap.mean):.2f} points above {loser}**"
