"""What the records say to each question: paired differences, resolved or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paired import Difference, difference, holm
from benchmarks.questions import QUESTIONS, Question
from benchmarks.train import load_grid, load_results

__all__ = ["Records", "accuracies", "answer_to", "answers", "better", "question_table", "signed"]

Records = Mapping[str, Mapping[int, dict[str, Any]]]  # by arm, then by seed

_RESOLVED_BELOW = 0.05  # Holm-corrected p


def accuracies(records: Mapping[int, dict[str, Any]]) -> dict[int, float]:
    """Return each seed's last accuracy, in percent."""
    return {seed: 100 * each["result"]["accuracies"][-1] for seed, each in records.items()}


def signed(value: float) -> str:
    """Return a difference as it is shown."""
    return f"{value:+.2f}"


def answers(results: Records) -> list[tuple[Question, Difference, float]]:
    """Return what a grid says to each question it has both arms for, with Holm's corrected p."""
    found = []
    for question in QUESTIONS:
        if question.first in results and question.second in results:
            first, second = (accuracies(results[arm]) for arm in (question.first, question.second))
            if set(first) & set(second):
                found.append((question, difference(first, second)))
    corrected = holm([gap.p for _, gap in found])
    return [(question, gap, p) for (question, gap), p in zip(found, corrected, strict=True)]


def better(question: Question, gap: Difference, p: float) -> str | None:
    """Return the arm that is resolved to be better, if one is."""
    if not p < _RESOLVED_BELOW:  # NaN, of a single pair, resolves nothing
        return None
    return question.first if gap.mean > 0 else question.second


def answer_to(name: str, words: str) -> tuple[Question, Difference, str | None]:
    """Return a question of a grid, the difference found, and the better arm if there is one."""
    for question, gap, p in answers(load_results(load_grid(name))):
        if question.words == words:
            return question, gap, better(question, gap, p)
    raise ValueError(f"{name} has no answer to {words!r} yet.")


def question_table(results: Records) -> list[str]:
    """Return what is asked of a grid, answered where it is resolved."""
    lines = [
        "| question | pairs | difference, points | 95% interval | p (Holm) | better |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found = answers(results)
    for question, gap, p in found:
        winner = better(question, gap, p)
        interval = f"{signed(gap.low)} to {signed(gap.high)}" if gap.num_pairs > 1 else ""
        shown = f"{p:.2g}" if gap.num_pairs > 1 else ""
        answer = "unresolved" if winner is None else f"**{winner}**"
        lines.append(
            f"| {question.words} | {gap.num_pairs} | {signed(gap.mean)} | {interval} | {shown} | "
            f"{answer} |"
        )
    return lines if found else []
