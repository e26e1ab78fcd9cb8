"""The section on what came of the leads of a pilot."""

from __future__ import annotations

from benchmarks.answers import accuracies, answer_to, signed
from benchmarks.paired import Difference, difference
from benchmarks.train import load_grid, load_results

__all__ = ["leads_section"]


def _points(gap: Difference) -> str:
    return f"{signed(gap.mean)} points ({signed(gap.low)} to {signed(gap.high)})"


def _answered(name: str, words: str) -> str:
    question, gap, winner = answer_to(name, words)
    resolved = "resolved" if winner else "unresolved"
    return f"*{question.first}* over *{question.second}* {_points(gap)}, {resolved}"


def leads_section() -> list[str]:
    """Return what came of the leads of a pilot of one or two seeds; nothing before it was run."""
    names = ("small-steps", "small-epochs", "frontier")
    steps, epochs, frontier = (load_results(load_grid(name)) for name in names)
    if not (steps and epochs and frontier):
        return []
    none, full = accuracies(epochs["none"]), accuracies(epochs["full, appended"])
    longer = accuracies(steps["none"])
    of_steps, in_all = difference(longer, none), difference(full, none)
    gains = [
        f"*{arm}* {_points(difference(accuracies(steps[arm]), longer))}"
        for arm in ("random 10%", "random 30%", "full, appended")
    ]
    return [
        "## What a pilot suggested, and what came of it",
        "",
        f"- **Are appended copies gradient steps, more than augmentation?** At equal epochs full "
        f"augmentation appended is {_points(in_all)} above none; none, trained for as many steps, "
        f"is {_points(of_steps)} above none: {of_steps.mean / in_all.mean:.0%} of that gain is "
        "steps.",
        "- **Is in place better than appended, at equal steps?** "
        f"{_answered('small-steps', 'Is in place better than appended?')}; at 30%: "
        f"{_answered('small-steps', 'Random, 30%: better in place?')}.",
        f"- **Does the gain grow with the share?** Over none, at equal steps: {'; '.join(gains)}.",
        "- **Do cluster weights cost accuracy at the same clusters?** "
        f"{_answered('small-steps', 'Coreset, 30%: uniform or cluster weights?')}; "
        f"{_answered('frontier', 'Rotating coreset, 30%: uniform or cluster weights?')}.",
        "- **Does the rotating coreset with uniform weights tie a fresh random subset?** "
        f"{_answered('small-steps', 'Rotating coreset or fresh random, 30%?')}.",
        "- **Does it matter how fresh a random subset is?** "
        f"{_answered('small-steps', 'Random, 30%: better when fresh?')}.",
        "",
    ]
