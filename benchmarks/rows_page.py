"""The paper row by row: each of its statements with the command that checks it, and what came."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.answers import RESOLVED_BELOW, Answer, answers, in_parts, shown_p
from benchmarks.paired import difference, holm
from benchmarks.paper_page import (
    PAPER,
    Estimates,
    disagreements,
    hours_of,
    in_small,
    other_reading,
    printed_of,
    table_of,
    told,
    told_or_open,
    where,
)
from benchmarks.times_page import log_ratios
from benchmarks.train import load_grid, load_results

__all__ = ["map_section"]

Row = Mapping[str, Any]


def map_section(estimates: Estimates) -> list[str]:
    """Return every system, table and figure with its command and its result."""
    lines = ["| | what | command | result |", "| --- | --- | --- | --- |"]
    for row in PAPER["row"]:
        command = row.get("command", "")
        if not command and "grid" in row:
            command = f"python -m benchmarks.train {row['grid']}"
        shown = f"`{command}`" if command else ""
        lines.append(f"| {row['name']} | {row['what']} | {shown} | {_result(row, estimates)} |")
    return [
        "## The paper, row by row",
        "",
        "Systems (S), tables, figures, statements of theory (T) and what the published version "
        "adds (N), each with the command that checks it and what came of it. Where ours is "
        "resolved against the paper's order, that stands first. Ours in small are those of "
        "1,500 images and a small network (10,000 where only the subset is trained on).",
        "",
        *lines,
        "",
    ]


def _result(row: Row, estimates: Estimates) -> str:
    """Return what came of a row: what is against the paper first, then the rest."""
    against, rest = [], []
    if "against" in row:
        times = _times_of(row["ratio"], estimates) if "ratio" in row else 0.0
        against.append(row["against"].format(times=times))
    if "faster" in row:
        for is_against, told_so in _speed_ups(row["faster"]):
            (against if is_against else rest).append(told_so)
    if "table" in row:
        against += _against(table_of(row["table"]))
    table = table_of(row["of"]) if "of" in row else {}
    for name, words in row.get("asked", ()):
        for is_against, told_so in _of_question(name, words, table):
            (against if is_against else rest).append(told_so)
    if "ratio" in row:
        rest.append(_ratio(row["ratio"], estimates))
    if "result" in row:
        rest.append(row["result"])
    if "took" in row:
        took = row["took"]
        hours = estimates[took["grid"]]["arms"][took["arm"]] * took["of"]
        rest.append(took["words"].format(hours=hours))
    for key in ("grid", "steps"):
        if key in row:
            rest.append(_state(row[key], estimates, named=key == "steps"))
    if "paper" in row:
        rest.append(f"The paper: {row['paper']}")
    first = [f"**Disagrees with the paper, {'; '.join(against)}**"] if against else []
    sentences = [*first, *rest]
    return ". ".join(f"{each[0].upper()}{each[1:]}" for each in sentences)


def _speed_ups(arms: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Yield arms' speed-ups beside the paper's, and whether ours are resolved to be lower.

    Tested in logarithms, and corrected for all arms that the paper has, whichever a row names.
    """
    times, where_run = load_results(load_grid("times")), "on one core with R = 2"
    full = times.get("full, one by one")
    known = [arm for arm in PAPER["faster"] if full and f"{arm}, one by one" in times]
    if full is None or not known:
        return
    found = []
    for arm in known:
        logs = log_ratios(full, times[f"{arm}, one by one"])
        found.append(difference(logs, dict.fromkeys(logs, math.log(PAPER["faster"][arm]))))
    corrected = holm([gap.p for gap in found])
    for arm, gap, p in zip(known, found, corrected, strict=True):
        if arm not in arms:
            continue
        theirs = PAPER["faster"][arm]
        words = f"{arm} {where_run} is {theirs * math.exp(gap.mean):.2f} times as fast as full, "
        is_resolved = p < RESOLVED_BELOW
        how = f"p = {shown_p(p)}" if is_resolved else "unresolved"
        yield is_resolved and gap.mean < 0, f"{words}in the paper {theirs:.2f} ({how})"


def _against(table: Mapping[str, Any]) -> list[str]:
    """Return where our grid of a table is against it, and the first of the others that is."""
    grid, printed = load_grid(table["grid"]), printed_of(table)
    ours = in_parts(grid, load_results(grid))[table.get("part", "")]
    at_size = _told(grid.name, answers(ours), printed)
    others = (_told(each["grid"], in_small(each)[1], printed) for each in table.get("small", ()))
    return [each for each in (at_size, next(filter(None, others), "")) if each]


def _told(name: str, found: list[Answer], printed: Mapping[str, str]) -> str:
    """Return where a grid is against the printed numbers, or nothing."""
    against = disagreements(found, printed)
    told_so = [told(answer, printed) for answer in against]
    told_so += other_reading(against, found, printed)
    return f"{where(name)}: {'; '.join(told_so)}" if told_so else ""


def _of_question(name: str, words: str, table: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield what a grid says to a question, if it does, and whether that is against the paper."""
    printed = printed_of(table) if table else {}
    small = next((each for each in table.get("small", ()) if each["grid"] == name), {"grid": name})
    for answer in in_small(small)[1]:
        if answer.question.words == words:
            is_against = bool(disagreements([answer], printed))
            yield is_against, f"{where(name)}: {told_or_open(answer, printed)}"


def _ratio(ratio: Mapping[str, Any], estimates: Estimates) -> str:
    """Return in words how many times as long one arm would take as another."""
    words: str = ratio["words"]
    return words.format(times=_times_of(ratio, estimates))


def _times_of(ratio: Mapping[str, Any], estimates: Estimates) -> float:
    """Return how many times as long one arm would take as another, by the measured costs."""
    (slow, of_slow), (fast, of_fast) = ratio["slow"], ratio["fast"]
    times: float = estimates[slow]["arms"][of_slow] / estimates[fast]["arms"][of_fast]
    return times


def _state(name: str, estimates: Estimates, *, named: bool = False) -> str:
    """Return how much of a grid was run, or what it would take."""
    grid = load_grid(name)
    done = sum(len(records) for records in load_results(grid).values())
    which = f"`{name}` " if named else ""
    if not done:
        return f"{which}not run: {hours_of(name, estimates)}"
    return f"{done} of {len(grid.cells)} cells, `benchmarks/results/train/{name}`"
