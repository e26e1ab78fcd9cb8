"""What the records say to each question: paired differences, resolved or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.paired import Difference, difference, holm
from benchmarks.questions import Question, questions
from benchmarks.train import Grid, load_grid, load_results

__all__ = [
    "RESOLVED_BELOW",
    "Answer",
    "Records",
    "accuracies",
    "answer_to",
    "answers",
    "in_parts",
    "pairs_of",
    "points",
    "question_table",
    "shown_p",
    "signed",
]

Runs = Mapping[int, dict[str, Any]]  # by seed
Records = Mapping[str, Runs]  # by arm
Read = Callable[[Runs], dict[int, float]]
Each = TypeVar("Each")

RESOLVED_BELOW = 0.05  # Holm-corrected p


@dataclass(frozen=True)
class Answer:
    """What records say to a question.

    Args:
        question: Which.
        gap: Of its first arm over its second.
        p: Corrected by Holm for all questions of the same table; NaN for one pair.
    """

    question: Question
    gap: Difference
    p: float

    @property
    def is_resolved(self) -> bool:
        """Whether one arm is told to be better; NaN tells nothing."""
        return self.p < RESOLVED_BELOW

    @property
    def better(self) -> str:
        """The arm of the higher mean."""
        return self.question.first if self.gap.mean > 0 else self.question.second

    @property
    def worse(self) -> str:
        """The other."""
        return self.question.second if self.gap.mean > 0 else self.question.first

    @property
    def winner(self) -> str | None:
        """The arm that is resolved to be better, if one is."""
        return self.better if self.is_resolved else None

    @property
    def verdict(self) -> str:
        """In words: resolved, with its p, or unresolved."""
        return f"resolved, p = {shown_p(self.p)}" if self.is_resolved else "unresolved"


def accuracies(records: Runs) -> dict[int, float]:
    """Return each seed's last accuracy, in percent."""
    return {seed: 100 * each["result"]["accuracies"][-1] for seed, each in records.items()}


def pairs_of(first: Runs, second: Runs) -> tuple[Runs, Runs]:
    """Return the runs of the seeds that both have, on one kind of device and in one precision.

    A grid may go on where it was not begun: what differs by more than the arm is no pair.
    """

    def where(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return record["environment"]["device"], record["cell"]["precision"]

    seeds = [seed for seed in first if seed in second and where(first[seed]) == where(second[seed])]
    return {seed: first[seed] for seed in seeds}, {seed: second[seed] for seed in seeds}


def signed(value: float) -> str:
    """Return a difference as it is shown."""
    return f"{value:+.2f}"


def points(gap: Difference) -> str:
    """Return a difference with its interval."""
    interval = f" ({signed(gap.low)} to {signed(gap.high)})" if gap.num_pairs > 1 else ""
    return f"{signed(gap.mean)} points{interval}"


def shown_p(p: float) -> str:
    """Return p with two digits, or as many as show on which side of the bound it is."""
    for digits in range(2, 17):
        text = f"{p:.{digits}g}"
        if (float(text) < RESOLVED_BELOW) == (p < RESOLVED_BELOW):
            return text
    return repr(p)


def in_parts(grid: Grid, arms: Mapping[str, Each]) -> dict[str, dict[str, Each]]:
    """Return what there is of each arm, by part of the grid, under names without the part.

    An arm of no part belongs to all. A grid without parts is one, of no name.
    """
    if not grid.parts:
        return {"": dict(arms)}
    endings = tuple(f", {part}" for part in grid.parts)
    return {
        part: {
            arm.removesuffix(f", {part}"): each
            for arm, each in arms.items()
            if arm.endswith(f", {part}") or not arm.endswith(endings)
        }
        for part in grid.parts
    }


def answers(results: Records, read: Read | None = None) -> list[Answer]:
    """Return what records say to each question they have both arms for, corrected by Holm.

    Args:
        results: Of one table.
        read: Takes what is compared out of an arm's records, by seed; the accuracy by default.
    """
    found, read = [], read or accuracies
    for question in questions(results):
        first, second = map(read, pairs_of(results[question.first], results[question.second]))
        if set(first) & set(second):
            found.append((question, difference(first, second)))
    corrected = holm([gap.p for _, gap in found])
    return [Answer(question, gap, p) for (question, gap), p in zip(found, corrected, strict=True)]


def answer_to(name: str, words: str) -> Answer:
    """Return what a grid says to a question.

    Raises:
        ValueError: If it says nothing yet.
    """
    grid = load_grid(name)
    for results in in_parts(grid, load_results(grid)).values():
        for answer in answers(results):
            if answer.question.words == words:
                return answer
    raise ValueError(f"{name} has no answer to {words!r} yet.")


def question_table(results: Records, read: Read | None = None) -> list[str]:
    """Return what is asked of a grid, answered where it is resolved; see :func:`answers`."""
    lines = [
        "| question | pairs | difference, points | spread | 95% interval | p (Holm) | better |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = answers(results, read)
    for answer in found:
        gap = answer.gap
        spread, interval, shown = "", "", ""
        if gap.num_pairs > 1:
            spread, shown = f"{gap.spread:.2f}", shown_p(answer.p)
            interval = f"{signed(gap.low)} to {signed(gap.high)}"
        better = f"**{answer.winner}**" if answer.is_resolved else "unresolved"
        lines.append(
            f"| {answer.question.words} | {gap.num_pairs} | {signed(gap.mean)} | {spread} | "
            f"{interval} | {shown} | {better} |"
        )
    return lines if found else []
