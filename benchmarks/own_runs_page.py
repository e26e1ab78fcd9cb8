"""The section on what each rule selects in runs of its own, and what that gives by epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.answers import Records
from benchmarks.grids_page import setting_of
from benchmarks.pictures import new_figure, save_figure
from benchmarks.train import GRIDS, load_grid, load_results

__all__ = ["observed", "own_runs_section"]

_SHORT = "table1-cifar10-short"
_ONLY = "small-only"
_ALONE = {
    "random each epoch, augmented": ("random, augmented", "#2a78b5", "-"),
    "random each epoch, not augmented": ("random, not augmented", "#2a78b5", "--"),
    "coreset each epoch, augmented": ("coreset, augmented", "#2b8a4b", "-"),
}
_DRAWN = {
    "random 10%": ("random", "#2a78b5"),
    "max-loss 10%": ("max-loss", "#d1742a"),
    "coreset 10%": ("coreset", "#2b8a4b"),
    "coreset, uniform weights 10%": ("coreset, uniform weights", "#8e5bb5"),
}


def _names() -> list[str]:
    """Return the grids that measure what rules select in their own runs."""
    names = [_SHORT, "small-observed", *sorted(path.stem for path in GRIDS.glob("*.toml"))]
    return [
        name
        for name in dict.fromkeys(names)
        if any(cell.is_observed and not cell.shadows for cell in load_grid(name).cells)
    ]


def observed(results: Records) -> dict[str, Mapping[int, dict[str, Any]]]:
    """Return the arms whose selections were measured."""
    return {
        arm: records
        for arm, records in results.items()
        if all("error" in entry for entry in _last_selections(records))
    }


def _last_selections(records: Mapping[int, dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last selection of each run, empty where there is none."""
    return [[{}, *each["dynamics"]["selections"]][-1] for each in records.values()]


def own_runs_section(pictures: dict[str, Callable[[Path], None]]) -> list[str]:
    """Return what rules select in runs that follow them."""
    lines = []
    for name in _names():
        grid = load_grid(name)
        results = load_results(grid)
        found = observed(results)
        if found:
            lines += [f"**{grid.title}.** {setting_of(grid, results)}", "", *_table(found), ""]
    short = observed(load_results(load_grid(_SHORT)))
    if all(_has_curve(short.get(arm, {})) for arm in _DRAWN):
        pictures["results-own-runs.svg"] = lambda path: draw_own_runs(short, path)
        lines += [
            f"Of `{_SHORT}`, by epoch: accuracy over that of max-loss (figure 3b of the "
            "paper), accuracy by the share of the data selected so far (beside all originals), the "
            "cost, and the overlap with what max-loss would select of "
            "the same gradients (figure 3a). Means over the seeds that all four have.",
            "",
            "![Rules in runs of their own, by epoch](results-own-runs.svg)",
            "",
        ]
    alone = load_results(load_grid(_ONLY))
    if set(_ALONE) <= set(alone):
        pictures["results-only.svg"] = lambda path: draw_alone(alone, path)
        lines += [
            f"Where only the subset is trained on (`{_ONLY}`, chosen anew each epoch, in as many "
            "steps each): accuracy by the share of the data that was trained on so far, figures 3c "
            "and 5 of the paper, in small. Means over the seeds.",
            "",
            "![Accuracy by the share of the data trained on so far](results-only.svg)",
            "",
        ]
    if not lines:
        return []
    return [
        "## What each rule selects in its own run",
        "",
        "Above, rules are compared on one model. Here each has trained its own: means over the "
        "selections after the first, then over runs. The cost ξ and the gradient error are over "
        "the summed norms of the gradients. For the cost 1 is as good as selecting nothing; for "
        "the gradient error that is the column beside it, the norm of the sum: weights that add up "
        "to less than n cannot come near zero. The gradient error is with the weight that the rule "
        "gives an example, all its copies together. Max-loss is asked for as many examples of the "
        "same gradients.",
        "",
        *lines,
    ]


def _table(found: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
    lines = [
        "| arm | runs | cost ξ | gradient error | of nothing | overlap with max-loss | "
        "never selected | Gini |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, records in found.items():
        tracks = [each["dynamics"] for each in records.values()]
        error, gradient, nothing, overlap = (
            fmean(_later(track, key) for track in tracks)
            for key in ("error", "gradient_error", "gradient_norm", "overlap_with_max_loss")
        )
        never, gini = (fmean(track[key] for track in tracks) for key in ("never_selected", "gini"))
        lines.append(
            f"| {arm} | {len(records)} | {error:.3f} | {gradient:.4f} | {nothing:.3f} | "
            f"{overlap:.0%} | "
            f"{never:.1%} | {gini:.2f} |"
        )
    return lines


def _later(track: Mapping[str, Any], key: str) -> float:
    """Return the mean over the selections but the first, of an untrained network; or of that."""
    entries = track["selections"]
    return fmean(entry[key] for entry in entries[1:] or entries)


def _has_curve(records: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether there are runs, each evaluated after every epoch and selecting in every one."""
    return bool(records) and all(
        len(each["result"]["accuracies"]) == len(each["dynamics"]["selections"])
        for each in records.values()
    )


def draw_own_runs(found: Mapping[str, Mapping[int, dict[str, Any]]], path: Path) -> None:
    """Draw accuracy, cost and overlap of four rules by epoch, over the seeds that all have."""
    seeds = sorted(set.intersection(*(set(found[arm]) for arm in _DRAWN)))

    def curve(arm: str, read: Callable[[Mapping[str, Any]], list[float]]) -> list[float]:
        return [fmean(values) for values in zip(*(read(found[arm][s]) for s in seeds), strict=True)]

    def selections(key: str) -> Callable[[Mapping[str, Any]], list[float]]:
        return lambda record: [entry[key] for entry in record["dynamics"]["selections"]]

    def percent(record: Mapping[str, Any]) -> list[float]:
        return [100 * accuracy for accuracy in record["result"]["accuracies"]]

    figure = new_figure(11, 6)
    (gap, spread), (cost, overlap) = figure.subplots(2, 2)
    base = curve("max-loss 10%", percent)
    for arm, (label, colour) in _DRAWN.items():
        style: dict[str, Any] = {"color": colour, "label": label, "lw": 1.6}
        accuracy = curve(arm, percent)
        epochs = range(1, len(accuracy) + 1)
        gap.plot(epochs, [a - b for a, b in zip(accuracy, base, strict=True)], **style)
        shares = [100 * share for share in curve(arm, selections("selected_so_far"))]
        spread.plot(shares, accuracy, marker="o", ms=3, **style)
        cost.plot(epochs, curve(arm, selections("error")), **style)
        overlap.plot(epochs, curve(arm, selections("overlap_with_max_loss")), **style)
    cost.set_yscale("log")
    overlap.set_ylim(bottom=0)
    gap.set(xlabel="epoch", title="test accuracy over that of max-loss, points")
    spread.set(xlabel="data selected so far, %", title="test accuracy, %")
    cost.set(xlabel="epoch", title="cost ξ over summed norms")
    overlap.set(xlabel="epoch", title="overlap with max-loss")
    for axis in (gap, spread, cost, overlap):
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    gap.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_alone(results: Records, path: Path) -> None:
    """Draw accuracy by the share of the data that was trained on so far."""
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    for arm, (label, colour, style) in _ALONE.items():
        points = zip(*(_by_share(record) for record in results[arm].values()), strict=True)
        means = [tuple(map(fmean, zip(*each, strict=True))) for each in points]
        axis.plot(
            *zip(*means, strict=True), style, color=colour, label=label, marker="o", ms=3, lw=1.6
        )
    axis.set(xlabel="data trained on so far, %", ylabel="test accuracy, %", xlim=(0, 100))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _by_share(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the share of the data selected at each evaluation of a run, and the accuracy."""
    entries, every = record["dynamics"]["selections"], record["cell"]["evaluate_every"]
    found = []
    for number, accuracy in enumerate(record["result"]["accuracies"], start=1):
        entry = entries[min(number * every, len(entries)) - 1]
        found.append((100 * entry["selected_so_far"], 100 * accuracy))
    return found
