"""The sections on what rules select: over the epochs, most often, and never."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.datasets import load_cifar10
from benchmarks.pictures import new_figure, save_figure
from benchmarks.train import load_grid, load_results

__all__ = ["dynamics_section", "gallery_section", "never_selected_section"]

_NEVER_SELECTED = Path(__file__).parent / "results" / "never-selected.json"


def dynamics_section(pictures: dict[str, Callable[[Path], None]]) -> list[str]:
    """Return what rules select as a network trains."""
    results = load_results(load_grid("dynamics"))
    if not results:
        return []
    ((_, records),) = results.items()
    record = records[0]
    shadows = record["dynamics"]["shadows"]
    lines = [
        "| rule | share | cost ξ | gradient error | overlap with max-loss | never selected | "
        "Gini | top 10% in common with max-loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    some = next(iter(shadows.values()))["selections"]
    nothing = fmean(entry["gradient_norm"] for entry in some if entry["epoch"] > 0)
    for name, track in shadows.items():
        rule, share = name.rsplit(" ", 1)
        later = [entry for entry in track["selections"] if entry["epoch"] > 0]
        error, gradient, overlap = (
            fmean([entry[key] for entry in later])
            for key in ("error", "gradient_error", "overlap_with_max_loss")
        )
        lines.append(
            f"| {rule} | {float(share):.0%} | {error:.3f} | {gradient:.4f} | {overlap:.0%} | "
            f"{track['never_selected']:.1%} | {track['gini']:.2f} | "
            f"{track['top_overlap']['0.1']:.0%} |"
        )
    pictures["results-dynamics.svg"] = lambda path: draw_dynamics(shadows, path)
    pictures["results-selected.svg"] = lambda path: draw_selected(shadows, path)
    pictures["results-times-selected.svg"] = lambda path: draw_times_selected(shadows, path)
    pictures["results-overlap.svg"] = lambda path: draw_overlap(shadows, path)
    pictures["results-top-overlap.svg"] = lambda path: draw_top_overlap(shadows, path)
    environment = record["environment"]
    return [
        "## What rules select as a network trains",
        "",
        "`python -m benchmarks.train dynamics --data CIFAR10`. ResNet20, 20 epochs on 10,000 "
        "CIFAR-10 images, a new selection every epoch. One run, which follows the coreset at 10%; "
        "at each epoch every rule is asked what it would select of the same gradients, so that "
        "rules differ and models do not. Costs and errors are means over epochs 1 to 19, over the "
        "summed norms of the gradients. For the cost 1 is as good as selecting nothing; for the "
        f"gradient error that is {nothing:.3f}, the norm of the sum. The gradient error is with "
        "each rule's own weights. One seed: no spread is known. "
        f"{environment['device']}, commit {environment['commit']}.",
        "",
        *lines,
        "",
        "![What rules select over the epochs](results-dynamics.svg)",
        "",
        "Figure 3a of the paper is the overlap of coresets and max-loss subsets of 30%, by epoch; "
        "it says that it grows after the first phase of training. Here, at 30%, it "
        f"{_moves(shadows)}. By share:",
        "",
        "![Overlap with max-loss over the epochs, by share](results-overlap.svg)",
        "",
        "Figure 6 is the overlap of the N examples that each selects most often over a run, of "
        "subsets of 30%; it says that it grows with N, as that of unrelated rankings does, being "
        f"N / n. Here, with ties broken at random, in expectation: {_tops(shadows)}.",
        "",
        "![Overlap of the most selected with those of max-loss](results-top-overlap.svg)",
        "",
        "How much of the data was selected at least once, by share and rule; what is left at the "
        "end is never selected. Max-loss stays with the same examples longest; random subsets "
        "spread widest.",
        "",
        "![Share of the data selected so far](results-selected.svg)",
        "",
        "How often: the share of the data that was selected at least so many times in 20 "
        "selections. Gini's coefficient, in the table, says the same in a number: 0 where all are "
        "selected as often, 1 less the share where the same are selected always.",
        "",
        "![How often examples are selected](results-times-selected.svg)",
        "",
    ]


def gallery_section(pictures: dict[str, Callable[[Path], None]], data: str | None) -> list[str]:
    """Return the images selected most often by the coreset and by max-loss (figure 7)."""
    results = load_results(load_grid("dynamics"))
    if not results:
        return []
    ((_, records),) = results.items()
    track = records[0]["dynamics"]["shadows"]["coreset 0.1"]
    if data is not None:
        pictures["results-gallery.png"] = lambda path: draw_gallery(track, data, path)
    return [
        "## What is selected most often",
        "",
        "The ten images that the coreset at 10% selected in most of the 20 epochs of the run above "
        "(top), and max-loss (bottom): figure 7 of the paper.",
        "",
        "![Most selected images](results-gallery.png)",
        "",
    ]


def never_selected_section() -> list[str]:
    """Return what random subsets skip, beside the closed form and the paper."""
    if not _NEVER_SELECTED.is_file():
        return []
    lines = [
        "## What random subsets never select",
        "",
        "`python -m benchmarks.dynamics`. Subsets drawn anew each epoch miss an example with "
        "probability (1 - share)^epochs; five seeds, beside table 6 of the paper.",
        "",
        "| share | epochs | never selected, % | closed form | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    papers = {0.002: "67.03", 0.005: "36.70"}
    for row in json.loads(_NEVER_SELECTED.read_text())["never_selected"]:
        found = [100 * share for share in row["measured"]]
        lines.append(
            f"| {row['fraction']:.1%} | {row['epochs']} | {min(found):.2f} to {max(found):.2f} | "
            f"{100 * row['closed_form']:.2f} | {papers[row['fraction']]} |"
        )
    return [*lines, ""]


def draw_dynamics(shadows: Mapping[str, Any], path: Path) -> None:
    """Draw cost, gradient error and overlap at 10% over the epochs."""
    from benchmarks.page import COLOURS

    figure = new_figure(11, 3.4)
    axes = figure.subplots(1, 3)
    others = ("#8e5bb5", "#c9a227", "#c23b5a", "#2bb0b0", "#7a5c43")
    rules = dict.fromkeys(name.rsplit(" ", 1)[0] for name in shadows)
    colours = dict(zip((rule for rule in rules if rule not in COLOURS), others, strict=False))
    colours |= COLOURS
    keys = {
        "error": "cost ξ over summed norms",
        "gradient_error": "gradient error over summed norms",
        "overlap_with_max_loss": "overlap with max-loss",
    }
    for axis, (key, label) in zip(axes, keys.items(), strict=True):
        for name, track in shadows.items():
            rule, share = name.rsplit(" ", 1)
            if float(share) != 0.1:
                continue
            epochs = [entry["epoch"] for entry in track["selections"]]
            values = [entry[key] for entry in track["selections"]]
            axis.plot(epochs, values, color=colours[rule], label=rule, lw=1.6)
        axis.set(xlabel="epoch", title=label)
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    axes[2].legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    save_figure(figure, path)


def _moves(shadows: Mapping[str, Any]) -> str:
    """Return how the coreset's overlap with max-loss at 30% moves from a run's start to its end."""
    found = [each["overlap_with_max_loss"] for each in shadows["coreset 0.3"]["selections"]]
    first, last = fmean(found[1:4]), fmean(found[-3:])  # the network of epoch 0 is untrained
    return f"goes from {first:.0%} in epochs 1 to 3 to {last:.0%} in the last three"


def _tops(shadows: Mapping[str, Any]) -> str:
    """Return the coreset's overlap with max-loss among the most selected, at 30%, in words."""
    found = shadows["coreset 0.3"]["top_overlap"]
    return ", ".join(f"{found[top]:.0%} of the top {float(top):.0%}" for top in found)


def draw_overlap(shadows: Mapping[str, Any], path: Path) -> None:
    """Draw the overlap with max-loss over the epochs, a panel a budget."""

    def curve(track: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        entries = track["selections"]
        epochs = [entry["epoch"] for entry in entries]
        return epochs, [entry["overlap_with_max_loss"] for entry in entries]

    _draw_budgets(shadows, path, curve, ("epoch", "overlap with max-loss"), ("random", "coreset"))


def draw_top_overlap(shadows: Mapping[str, Any], path: Path) -> None:
    """Draw the overlap of the N most selected with those of max-loss, a panel a budget."""

    def curve(track: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        tops = track["top_overlap"]
        return [100 * float(top) for top in tops], list(tops.values())

    labels = ("N, % of the data", "overlap of the N most selected")
    _draw_budgets(shadows, path, curve, labels, ("random", "coreset"))


def draw_selected(shadows: Mapping[str, Any], path: Path) -> None:
    """Draw the share of the data selected so far over the epochs, a panel a budget."""

    def curve(track: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        entries = track["selections"]
        epochs = [entry["epoch"] + 1 for entry in entries]
        return epochs, [entry["selected_so_far"] for entry in entries]

    _draw_budgets(shadows, path, curve, ("selections", "share selected so far"))


def draw_times_selected(shadows: Mapping[str, Any], path: Path) -> None:
    """Draw the share of the data selected at least so many times, a panel a budget."""
    _draw_budgets(shadows, path, at_least, ("times", "share selected so often or more"))


def at_least(track: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Return 1, 2, ... selections, and the share of the data selected at least so often."""
    counts = track["times_selected"]
    times = list(range(1, len(track["selections"]) + 1))
    return times, [sum(counts[number:]) / sum(counts) for number in times]


def _draw_budgets(
    shadows: Mapping[str, Any],
    path: Path,
    curve: Callable[[Mapping[str, Any]], tuple[Sequence[float], list[float]]],
    labels: tuple[str, str],
    rules: Sequence[str] = ("random", "coreset", "max-loss"),
) -> None:
    from benchmarks.page import COLOURS

    shares = sorted({float(name.rsplit(" ", 1)[1]) for name in shadows})
    figure = new_figure(11, 2.9)
    axes = figure.subplots(1, len(shares), sharey=True)
    for axis, share in zip(axes, shares, strict=True):
        for rule in rules:
            x, y = curve(shadows[f"{rule} {share:.3g}"])
            axis.plot(x, y, color=COLOURS[rule], label=rule, lw=1.6)
        axis.set(xlabel=labels[0], title=f"{share:.0%} a selection", ylim=(0, 1))
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(labels[1])
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_gallery(track: Mapping[str, Any], data: str, path: Path) -> None:
    """Draw the most selected images of the rule and of max-loss."""
    images = load_cifar10(data).x_train
    figure = new_figure(8, 1.9)
    rows = [track["most_selected"], track["most_selected_by_max_loss"]]
    axes = figure.subplots(2, len(rows[0]))
    for label, line, most in zip(("coreset", "max-loss"), axes, rows, strict=True):
        for axis, (index, times) in zip(line, most, strict=True):
            axis.imshow(images[index].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_title(f"{times} times", fontsize=7)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=8)
    save_figure(figure, path)
