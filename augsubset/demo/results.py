"""What the demo's runs say: a table, and a conclusion computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from augsubset.demo.training import ARMS, Run

__all__ = ["compare", "conclude", "format_table", "name_arms", "summarize"]

Runs = Mapping[str, Sequence[Run]]


def name_arms(fraction: float) -> dict[str, str]:
    """Return what each arm augments, in words."""
    return {name: arm.label.format(share=f"{fraction:.0%}") for name, arm in ARMS.items()}


def summarize(runs: Runs) -> dict[str, dict[str, Any]]:
    """Return the figures of each arm: accuracies and counts are means over seeds, times medians."""
    # Medians: one run that shared its cores with something else must not decide a ratio.
    return {
        name: {
            "accuracy": fmean(run.accuracies[-1] for run in each),
            "accuracies": [run.accuracies[-1] for run in each],
            "augmented": fmean(float(run.augmented) for run in each),
            "steps": fmean(float(run.steps[-1]) for run in each),
            "seconds": {
                part: median(run.seconds[part] for run in each) for part in each[0].seconds
            },
        }
        for name, each in runs.items()
    }


def compare(summary: Mapping[str, Mapping[str, Any]], arm: str, other: str) -> dict[str, Any]:
    """Compare two arms' accuracies seed by seed, in points.

    Returns:
        ``difference``: mean of arm minus other; ``interval``: 95% t-interval, ``None`` for one
        seed; ``significant``: whether it excludes 0.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    pairs = zip(summary[arm]["accuracies"], summary[other]["accuracies"], strict=True)
    differences = [100 * (mine - theirs) for mine, theirs in pairs]
    n, mean = len(differences), fmean(differences)
    if n == 1:
        return {"difference": mean, "interval": None, "significant": False}
    error = (sum((each - mean) ** 2 for each in differences) / (n - 1) / n) ** 0.5
    half = float(t.ppf(0.975, n - 1)) * error
    interval = (mean - half, mean + half)
    return {"difference": mean, "interval": interval, "significant": interval[0] * interval[1] > 0}


def conclude(
    summary: Mapping[str, Mapping[str, Any]], fraction: float
) -> tuple[str, dict[str, str]]:
    """Return a headline, and a paragraph on each of its claims, by what it is about."""
    share = f"{fraction:.0%}"
    coreset = compare(summary, "coreset", "random")
    full = compare(summary, "full", "random")
    ratio = summary["full"]["seconds"]["total"] / summary["random"]["seconds"]["total"]
    if coreset["significant"]:
        first = f"A coreset of {share} did {_describe(coreset)} than a random {share}"
    else:
        first = f"No significant difference between a random {share} and a coreset"
    second = (
        f"augmenting everything was {_describe(full)} than the random {share}"
        if full["significant"]
        else f"augmenting everything made no significant difference to the random {share}"
    )
    paragraphs = {
        "Random or coreset?": f"Test accuracy was {_percent(summary, 'random')} with a random "
        f"{share} augmented and {_percent(summary, 'coreset')} with a coreset of {share}: "
        f"{_give(coreset)}.",
        "A part or everything?": f"With everything augmented it was {_percent(summary, 'full')}, "
        f"compared with the random {share} {_give(full)}, at {ratio:.1f} times the time.",
        "Augmentation or more training?": _judge_steps(summary),
    }
    return f"{first}; {second}, at {ratio:.1f} times the time", paragraphs


def _judge_steps(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how much of what augmenting everything gains comes with more gradient steps alone."""
    none, steps, full = (summary[name]["accuracy"] for name in ("none", "none-steps", "full"))
    lead = (
        f"Copies are extra gradient steps: {summary['full']['steps']:.0f} with everything "
        f"augmented, {summary['none']['steps']:.0f} with nothing. Trained without augmentation, "
        f"but for {summary['none-steps']['steps']:.0f} steps, the network reached "
        f"{_percent(summary, 'none-steps')}, up from {_percent(summary, 'none')}: "
    )
    gain = compare(summary, "full", "none")
    if full <= none or not (gain["significant"] or gain["interval"] is None):
        return f"{lead}there was no significant gain from augmenting everything to explain."
    part = (steps - none) / (full - none)
    if part >= 1:
        return f"{lead}more training alone gained as much as augmenting everything."
    if part <= 0:
        return f"{lead}more training alone explains nothing of what augmenting everything gained."
    return f"{lead}{part:.0%} of what augmenting everything gained is more gradient steps."


def _percent(summary: Mapping[str, Mapping[str, Any]], arm: str) -> str:
    return f"{100 * summary[arm]['accuracy']:.1f}%"


def _describe(found: Mapping[str, Any]) -> str:
    way = "better" if found["difference"] > 0 else "worse"
    return f"{abs(found['difference']):.1f} points {way}"


def _give(found: Mapping[str, Any]) -> str:
    """Return a difference with its interval."""
    if found["interval"] is None:
        return f"{found['difference']:+.1f} points in one seed, which may be chance"
    low, high = found["interval"]
    mean = round(found["difference"], 1) + 0.0  # no -0.0
    verdict = "" if found["significant"] else ", not significant"
    return f"{mean:+.1f} points (95% interval {low:+.1f} to {high:+.1f}{verdict})"


def format_table(summary: Mapping[str, Mapping[str, Any]], fraction: float) -> str:
    """Return the table as text, a line per arm."""
    labels = name_arms(fraction)
    width = max(map(len, labels.values()))
    head = "accuracy, %   lowest..highest   gradient steps   seconds"
    lines = [f"{'augmented':<{width}}  {head}"]
    for name, row in summary.items():
        low, high = 100 * min(row["accuracies"]), 100 * max(row["accuracies"])
        lines.append(
            f"{labels[name]:<{width}}  {100 * row['accuracy']:>11.2f}   {low:>7.2f}..{high:<6.2f}"
            f"   {row['steps']:>14.0f}   {row['seconds']['total']:>7.2f}"
        )
    return "\n".join(lines)
