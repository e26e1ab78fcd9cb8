"""The section on what came of the leads of a pilot."""

from __future__ import annotations

from statistics import fmean

from benchmarks.answers import accuracies, answer_to, points, shown_p
from benchmarks.paired import difference
from benchmarks.train import load_grid, load_results

__all__ = ["leads_section"]


def _answered(name: str, words: str) -> str:
    answer = answer_to(name, words)
    asked = answer.question
    return f"*{asked.first}* over *{asked.second}* {points(answer.gap)}, {answer.verdict}"


def leads_section() -> list[str]:
    """Return what came of the leads of a pilot of one or two seeds; nothing before all was run."""
    grids = [load_grid(name) for name in ("small-steps", "small-epochs", "frontier", "in-place")]
    found = [load_results(grid) for grid in grids]
    for grid, results in zip(grids, found, strict=True):
        if {cell.arm for cell in grid.cells} != set(results):
            return []
    steps, epochs, _, in_place = found
    none, full = accuracies(epochs["none"]), accuracies(epochs["full, appended"])
    longer = accuracies(steps["none"])
    of_steps, in_all = difference(longer, none), difference(full, none)
    means = {arm: fmean(accuracies(records).values()) for arm, records in in_place.items()}
    rules = [mean for arm, mean in means.items() if arm.endswith("30%, in place")]
    span, gain = max(rules) - min(rules), means["full, in place"] - means["none"]
    gains = [
        _answered("small-steps", words)
        for words in (
            "Random, 10%: better than none?",
            "Random, 30%: better than none?",
            "Does augmenting everything help?",
        )
    ]
    return [
        "## What a pilot suggested, and what came of it",
        "",
        f"- **Are appended copies gradient steps, more than augmentation?** At equal epochs full "
        f"augmentation appended is {points(in_all)} above none (p = {shown_p(in_all.p)}); none, "
        f"trained for as many steps, is {points(of_steps)} above none (p = {shown_p(of_steps.p)}): "
        f"{of_steps.mean / in_all.mean:.0%} of that gain is steps.",
        "- **Is in place better than appended, at equal steps?** "
        f"{_answered('small-steps', 'Is in place better than appended?')}; at 30%: "
        f"{_answered('small-steps', 'Random, 30%: better in place?')}.",
        f"- **Does the gain grow with the share?** At equal steps: {'; '.join(gains)}. In place: "
        f"{_answered('in-place', 'Fresh random, 30%, in place: better than none?')}; "
        f"{_answered('in-place', 'Fresh random, 60%, in place: better than none?')}; "
        f"{_answered('in-place', 'Fresh random, 60%, or everything in place?')}.",
        "- **Do cluster weights cost accuracy at the same clusters?** "
        f"{_answered('small-steps', 'Coreset, 30%: uniform or cluster weights?')}; "
        f"{_answered('frontier', 'Rotating coreset, 30%: uniform or cluster weights?')}. In place: "
        f"{_answered('in-place', 'Coreset, 30%, in place: uniform or cluster weights?')}; "
        f"{_answered('in-place', 'Rotating coreset, 30%, in place: uniform or cluster weights?')}.",
        "- **Does the rotating coreset with uniform weights tie a fresh random subset?** "
        f"{_answered('small-steps', 'Rotating coreset or fresh random, 30%?')}; in place: "
        f"{_answered('in-place', 'Rotating coreset, uniform, or fresh random, 30%, in place?')}.",
        "- **Does it matter how fresh a random subset is?** "
        f"{_answered('small-steps', 'Random, 30%: better when fresh?')}; in place: "
        f"{_answered('in-place', 'Fresh random, 30%, in place: better than as old?')}.",
        "- **Does the rule matter less than augmenting at all?** In place at 30% the means of "
        f"{len(rules)} rules span {span:.2f} points, beside {gain:.2f} that augmenting everything "
        "in place has over none: means alone, without a test.",
        "",
    ]
