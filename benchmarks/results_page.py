"""Write ``docs/results.md`` from the records: what was run, what was not, and what is resolved.

``python -m benchmarks.results_page [--data CIFAR10]`` reads ``benchmarks/results`` and writes the
page with its pictures; the gallery is drawn where the images are at hand. Nothing on the page is
typed in but the paper's own numbers and the words around ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.datasets import load_cifar10
from benchmarks.paired import Difference, difference, holm, summary_of
from benchmarks.tables import between
from benchmarks.train import load_grid, load_results

__all__ = ["PAGE", "render"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
PAPER = tomllib.loads((ROOT / "benchmarks" / "paper.toml").read_text())
RESULTS = ROOT / "benchmarks" / "results"
Records = Mapping[str, Mapping[int, dict[str, Any]]]

_RESOLVED_BELOW = 0.05  # Holm-corrected p


@dataclass(frozen=True)
class Question:
    """A comparison that the text makes: is the first arm better than the second, as named?"""

    words: str
    first: str
    second: str


# What is asked of every grid that has both arms.
QUESTIONS = [
    Question(*each)
    for each in (
        ("Does augmenting everything help?", "full, appended", "none"),
        ("Is in place better than appended?", "full, in place", "full, appended"),
        *(
            tuple(part.replace("SHARE", share) for part in question)
            for share in ("10%", "30%")
            for question in (
                ("Random, SHARE: better than none?", "random each epoch SHARE", "none"),
                ("Random, SHARE: better when fresh?", "random each epoch SHARE", "random SHARE"),
                ("Coreset or random, SHARE, as old?", "coreset SHARE", "random SHARE"),
                ("Coreset or fresh random, SHARE?", "coreset SHARE", "random each epoch SHARE"),
                ("Max-loss or fresh random, SHARE?", "max-loss SHARE", "random each epoch SHARE"),
                ("Coreset or max-loss, SHARE?", "coreset SHARE", "max-loss SHARE"),
                (
                    "Not learned early or fresh random, SHARE?",
                    "not learned early SHARE",
                    "random each epoch SHARE",
                ),
                (
                    "Coreset, SHARE: uniform or cluster weights?",
                    "coreset, uniform weights SHARE",
                    "coreset SHARE",
                ),
                (
                    "Coreset of uniform weights or random, SHARE?",
                    "coreset, uniform weights SHARE",
                    "random SHARE",
                ),
            )
        ),
        ("Random, 30%: better weighted n / k?", "random, weighted n / k 30%", "random 30%"),
        (
            "Rotating coreset or fresh random, 30%?",
            "rotating coreset 30%",
            "random each epoch 30%",
        ),
        ("Random, 30%: better in place?", "random 30%, in place", "random 30%"),
        ("Coreset, 30%: better in place?", "coreset 30%, in place", "coreset 30%"),
        ("Coreset or random, 30%, in place?", "coreset 30%, in place", "random 30%, in place"),
        ("Max-loss or random, 30%, in place?", "max-loss 30%, in place", "random 30%, in place"),
        ("Score-proportional or max-loss, 30%?", "score-proportional 30%", "max-loss 30%"),
        ("InfoBatch or fresh random, 30%?", "infobatch 30%", "random each epoch 30%"),
        ("Gradient matching or coreset, 30%?", "gradient-matching 30%", "coreset 30%"),
        ("Coreset alone: does augmenting help?", "coreset, augmented", "coreset, not augmented"),
        ("Random alone: does augmenting help?", "random, augmented", "random, not augmented"),
        ("Coreset or random, augmented?", "coreset, augmented", "random, augmented"),
        ("Coreset or random, not augmented?", "coreset, not augmented", "random, not augmented"),
        ("Max-loss or random, augmented?", "max-loss, augmented", "random, augmented"),
        # Of the frontier.
        *(
            (f"{rule[0].upper()}{rule[1:]} or fresh random, {share}?", f"{rule} {share}", fresh)
            for share, fresh in (("10%", "random each epoch 10%"), ("30%", "random each epoch 30%"))
            for rule in (
                *("rotating coreset, uniform", "rotating coreset, clusters"),
                "coreset until it drifts",
            )
        ),
        *(
            (f"{rule[0].upper()}{rule[1:]} or fresh random, 10%?", f"{rule} 10%", fresh)
            for rule in ("infobatch", "gradient-matching", "score-proportional")
            for fresh in ("random each epoch 10%",)
        ),
        (
            "Adaptive budget or fresh random of 30%?",
            "adaptive budget, error 0.1",
            "random each epoch 30%",
        ),
        *(
            (
                f"Rotating coreset, {share}: uniform or cluster weights?",
                f"rotating coreset, uniform {share}",
                f"rotating coreset, clusters {share}",
            )
            for share in ("10%", "30%")
        ),
        # Of the ablations.
        *(
            (
                f"{change[0].upper()}{change[1:]}: better than the coreset as it is?",
                change,
                "coreset",
            )
            for change in (
                *("similarity exp", "similarity shifted_sq", "weights uniform"),
                *("weights unscaled", "weights capped at 2.0", "gradients of the last layer"),
                *("recycled probe", "R = 1", "R = 5", "R = 30", "selected from epoch 10"),
                "base frozen",
            )
        ),
    )
]


def accuracies(records: Mapping[int, dict[str, Any]]) -> dict[int, float]:
    """Return each seed's last accuracy, in percent."""
    return {seed: 100 * each["result"]["accuracies"][-1] for seed, each in records.items()}


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def arm_table(results: Records) -> list[str]:
    """Return a table of the arms: runs, accuracy, its spread and interval, steps."""
    lines = [
        "| arm | runs | test accuracy, % | spread | 95% interval | steps | augmented rows |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, records in results.items():
        found = summary_of(list(accuracies(records).values()))
        steps = fmean([each["result"]["steps"] for each in records.values()])
        augmented = fmean([each["result"]["augmented"] for each in records.values()])
        spread, interval = "", ""
        if found.num_runs > 1:
            spread, interval = f"{found.spread:.2f}", f"{found.low:.2f} to {found.high:.2f}"
        lines.append(
            f"| {arm} | {found.num_runs} | {found.mean:.2f} | {spread} | {interval} | "
            f"{steps:,.0f} | {augmented:,.0f} |"
        )
    return lines


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


def question_table(results: Records) -> list[str]:
    """Return what is asked of a grid, answered where it is resolved."""
    lines = [
        "| question | pairs | difference, points | 95% interval | p (Holm) | better |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found = answers(results)
    for question, gap, p in found:
        winner = better(question, gap, p)
        interval = f"{_signed(gap.low)} to {_signed(gap.high)}" if gap.num_pairs > 1 else ""
        shown = f"{p:.2g}" if gap.num_pairs > 1 else ""
        answer = "unresolved" if winner is None else f"**{winner}**"
        lines.append(
            f"| {question.words} | {gap.num_pairs} | {_signed(gap.mean)} | {interval} | {shown} | "
            f"{answer} |"
        )
    return lines if found else []


def in_short(names: Sequence[str]) -> list[str]:
    """Return every difference that is resolved, and how many are not."""
    lines, unresolved = [], 0
    for name in names:
        grid = load_grid(name)
        for question, gap, p in answers(load_results(grid)):
            winner = better(question, gap, p)
            unresolved += winner is None
            if winner is not None:
                loser = question.second if winner == question.first else question.first
                lines.append(
                    f"- {grid.title.split(':')[0]}: *{winner}* is {abs(gap.mean):.2f} points above "
                    f"*{loser}* ({min(abs(gap.low), abs(gap.high)):.2f} to "
                    f"{max(abs(gap.low), abs(gap.high)):.2f}, {gap.num_pairs} seeds)."
                )
    tail = f"{unresolved} other questions of the tables below are unresolved so far."
    return ["## What is resolved", "", *lines, "" if lines else "Nothing yet.", tail, ""]


# ------------------------------------------------------------------------------------- sections


def accuracy_section(name: str, before: str) -> list[str]:
    """Return a grid's section, or nothing where it has no results yet."""
    grid = load_grid(name)
    results = load_results(grid)
    if not results:
        return []
    cell = next(each for each in grid.cells if each.strong != "none")
    planned = len(grid.cells)
    environments = [each["environment"] for arm in results.values() for each in arm.values()]
    done, environment = len(environments), environments[0]
    commits = ", ".join(sorted({each["commit"] for each in environments}))
    setting = (
        f"{cell.model}, batch {cell.batch_size}, peak rate {cell.lr}, schedule of {cell.epochs} "
        f"epochs, {cell.copies} cop{'y' if cell.copies == 1 else 'ies'}, strong policy "
        f"{cell.strong}, R = {cell.every}, {cell.precision}; {done} of {planned} cells; "
        f"{environment['device']}, torch {environment['torch']}, commits {commits}."
    )
    return [
        f"## {grid.title}",
        "",
        before,
        "",
        f"`python -m benchmarks.train {name} --data CIFAR10`. {setting}",
        "",
        *arm_table(results),
        "",
        *question_table(results),
        "",
    ]


def clean_section() -> list[str]:
    """Return the share of clean labels among what rules select under noise."""
    results = load_results(load_grid("small-noise"))
    lines = []
    for arm, records in results.items():
        entries = [each["dynamics"]["selections"] for each in records.values()]
        if "clean_share" not in entries[0][0] or arm.startswith(("none", "full")):
            continue
        share, weight = (
            fmean([fmean([entry[key] for entry in run]) for run in entries])
            for key in ("clean_share", "clean_weight")
        )
        lines.append(f"| {arm} | {len(records)} | {100 * share:.1f} | {100 * weight:.1f} |")
    if not lines:
        return []
    return [
        "Clean labels among the selected, of the number and of the weight, over all selections "
        "(55% of all labels are clean: a random label is right once in ten):",
        "",
        "| arm | runs | clean, % of the selected | % of the weight |",
        "| --- | --- | --- | --- |",
        *lines,
        "",
    ]


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
        "top 10% in common with max-loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, track in shadows.items():
        rule, share = name.rsplit(" ", 1)
        later = [entry for entry in track["selections"] if entry["epoch"] > 0]
        error, gradient, overlap = (
            fmean([entry[key] for entry in later])
            for key in ("error", "gradient_error", "overlap_with_max_loss")
        )
        lines.append(
            f"| {rule} | {float(share):.0%} | {error:.3f} | {gradient:.4f} | {overlap:.0%} | "
            f"{track['never_selected']:.1%} | {track['top_overlap']['0.1']:.0%} |"
        )
    pictures["results-dynamics.svg"] = lambda path: draw_dynamics(shadows, path)
    environment = record["environment"]
    return [
        "## What rules select as a network trains",
        "",
        "`python -m benchmarks.train dynamics --data CIFAR10`. ResNet20, 20 epochs on 10,000 "
        "CIFAR-10 images, a new selection every epoch. One run, which follows the coreset at 10%; "
        "at each epoch every rule is asked what it would select of the same gradients, so that "
        "rules differ and models do not. Costs and errors are means over epochs 1 to 19, over the "
        "summed norms of the gradients: 1 is as good as selecting nothing. The gradient error is "
        "with each rule's own weights. One seed: no spread is known. "
        f"{environment['device']}, commit {environment['commit']}.",
        "",
        *lines,
        "",
        "![What rules select over the epochs](results-dynamics.svg)",
        "",
    ]


def never_selected_section() -> list[str]:
    """Return what random subsets skip, beside the closed form and the paper."""
    path = RESULTS / "never-selected.json"
    if not path.is_file():
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
    for row in json.loads(path.read_text())["never_selected"]:
        found = [100 * share for share in row["measured"]]
        lines.append(
            f"| {row['fraction']:.1%} | {row['epochs']} | {min(found):.2f} to {max(found):.2f} | "
            f"{100 * row['closed_form']:.2f} | {papers[row['fraction']]} |"
        )
    return [*lines, ""]


def times_section(pictures: dict[str, Callable[[Path], None]]) -> list[str]:
    """Return where the time goes, and speed-ups with augmentation either way."""
    results = load_results(load_grid("times"))
    if "full, paper" not in results or "full, one by one" not in results:
        return []
    buckets = ("selection", "step", "augmentation", "loading")
    seconds = {
        arm: {
            key: median([each["result"]["seconds"][key] for each in records.values()])
            for key in (*buckets, "total")
        }
        for arm, records in results.items()
    }
    lines = [
        "| arm | augmentation | selection, s | steps, s | augmentation, s | loading, s | "
        "total, s | faster than full |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, spent in seconds.items():
        name, _, strong = arm.rpartition(", ")
        name = name or arm
        reference = (
            seconds[f"full, {strong}"]["total"] if strong in ("paper", "one by one") else None
        )
        faster = "" if reference is None else f"{reference / spent['total']:.2f}x"
        where = {"paper": "batches", "one by one": "one by one"}.get(strong, "")
        parts = " | ".join(f"{spent[key]:.2f}" for key in (*buckets, "total"))
        lines.append(f"| {name} | {where} | {parts} | {faster} |")
    pictures["results-times.svg"] = lambda path: draw_times(seconds, path)
    record = next(iter(results["full, paper"].values()))
    environment = record["environment"]
    return [
        "## Where the time goes",
        "",
        "`python -m benchmarks.train times --data CIFAR10` on an idle machine. ResNet20 on 1,000 "
        "CIFAR-10 images, four copies, two epochs and one selection (R = 2; at the paper's R = 20 "
        "a selection is a tenth of that an epoch). Medians of three runs on one core. *Batches*: "
        "our policies on the training device, here the same core. *One by one*: torchvision's "
        "RandAugment on PIL images, what a worker process does, its time counted in full as the "
        "paper counts it; workers that are idle otherwise hide it. "
        f"{environment['device']}, commit {environment['commit']}.",
        "",
        *lines,
        "",
        "![Seconds of selection, steps and augmentation](results-times.svg)",
        "",
        "The paper reports 6.31x at 10% and 3.43x at 30% on CIFAR-10 (table 5, an A40). With r = 4 "
        "steps alone allow at most 5 / 1.4 = 3.57x and 5 / 2.2 = 2.27x: what is above that can "
        "only come from augmentation that costs more than the steps, the *one by one* rows here.",
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


# ---------------------------------------------------------------------------------- the paper's


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
        return f"{question.first} over {question.second}: {_signed(gap.mean)} points, unresolved"
    loser = question.second if winner == question.first else question.first
    return f"**{winner} is {abs(gap.mean):.2f} points above {loser}**"


# --------------------------------------------------------------------------------------- pictures


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "augsubset"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)


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
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_times(seconds: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw three-part bars, an arm a row."""
    from benchmarks.page import BUCKET_LABELS, BUCKETS

    figure = new_figure(9, 0.28 * len(seconds) + 1.0)
    axis = figure.subplots()
    left = [0.0] * len(seconds)
    names = [arm.replace(", paper", ", batches") for arm in seconds]
    for bucket, colour in BUCKETS.items():
        width = [spent[bucket] for spent in seconds.values()]
        axis.barh(names, width, left=left, color=colour, label=BUCKET_LABELS[bucket])
        left = [a + b for a, b in zip(left, width, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="seconds a run")
    axis.legend(frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
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


# ------------------------------------------------------------------------------------------ leads


def _points(gap: Difference) -> str:
    return f"{_signed(gap.mean)} points ({_signed(gap.low)} to {_signed(gap.high)})"


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


# -------------------------------------------------------------------------------------- decisions

# What to do, and the answers that say so: a grid and a question each, and whether the first of its
# two arms was found better (+), worse (-) or not told apart (=). A test holds them to the records.
DECISIONS = (
    (
        "Only the subset is trained on, and it is small",
        "a coreset with its weights",
        (
            ("small-only", "Coreset or random, augmented?", "+"),
            ("small-only", "Coreset or random, not augmented?", "+"),
        ),
    ),
    (
        "All originals are trained on as well",
        'a random subset, `weights="uniform"`',
        (
            ("small-steps", "Coreset of uniform weights or random, 10%?", "="),
            ("small-steps", "Coreset of uniform weights or random, 30%?", "="),
        ),
    ),
    (
        "A coreset beside all originals",
        '`weights="uniform"`, not its cluster sizes',
        (
            ("small-steps", "Coreset, 10%: uniform or cluster weights?", "+"),
            ("small-steps", "Coreset, 30%: uniform or cluster weights?", "+"),
            ("small-epochs", "Coreset, 10%: uniform or cluster weights?", "+"),
        ),
    ),
    (
        "A random subset beside all originals",
        "every R epochs: that fresh ones each epoch are better was not found",
        (
            ("small-steps", "Random, 10%: better when fresh?", "="),
            ("small-steps", "Random, 30%: better when fresh?", "="),
        ),
    ),
    (
        "Half of the labels are wrong",
        "no rule that seeks what is hard",
        (("small-noise", "Not learned early or fresh random, 30%?", "-"),),
    ),
    (
        "There is time for as many steps as everything takes",
        "augment everything, appended or in place: not told apart",
        (
            ("small-steps", "Does augmenting everything help?", "+"),
            ("small-steps", "Is in place better than appended?", "="),
        ),
    ),
    (
        "Epochs are what counts, not steps",
        "append: copies are steps as well",
        (("small-epochs", "Is in place better than appended?", "-"),),
    ),
)


def answer_to(name: str, words: str) -> tuple[Question, Difference, str | None]:
    """Return a question of a grid, the difference found, and the better arm if there is one."""
    for question, gap, p in answers(load_results(load_grid(name))):
        if question.words == words:
            return question, gap, better(question, gap, p)
    raise ValueError(f"{name} has no answer to {words!r} yet.")


def decision_table() -> list[str]:
    """Return what to choose when, with what says so."""
    lines = ["| when | choose | because |", "| --- | --- | --- |"]
    for when, what, evidence in DECISIONS:
        found = []
        for name, words, _ in evidence:
            question, gap, winner = answer_to(name, words)
            title = load_grid(name).title.split(":")[0].split(" of ")[0]
            resolved = "resolved" if winner else "unresolved"
            found.append(
                f"{title}: *{question.first}* over *{question.second}* {_signed(gap.mean)} "
                f"({_signed(gap.low)} to {_signed(gap.high)}), {resolved}"
            )
        lines.append(f"| {when} | {what} | {'; '.join(found)} |")
    return lines


# ------------------------------------------------------------------------------------------ page


def render(data: str | None = None) -> tuple[str, dict[str, Callable[[Path], None]]]:
    """Return the page, and what draws its pictures.

    Args:
        data: CIFAR-10, for the gallery.
    """
    estimates = RESULTS / "estimates.json"
    hours: dict[str, float] = {}
    processor = ""
    if estimates.is_file():
        record = json.loads(estimates.read_text())
        hours = {name: each["hours"] for name, each in record["grids"].items()}
        processor = record["environment"]["device"]
    pictures: dict[str, Callable[[Path], None]] = {}
    paper = [line for table in PAPER["table"] for line in paper_section(table, hours)]
    lines = [
        "# Results",
        "",
        "Does a coreset beat a random subset? The paper's headline gaps, over max-loss on "
        "CIFAR-10, are 0.15 points at 10% and 0.06 at 30%, with spreads as large. So this "
        "page asks with paired seeds, intervals, and the controls that the paper leaves out: as "
        "many gradient steps without augmentation, everything augmented in place, and a random "
        "subset drawn afresh each epoch.",
        "",
        "A difference is called resolved where the paired t test over the seeds, corrected by Holm "
        "for all questions of its table, is below 0.05; anything else is unresolved, and says "
        "nothing. Accuracy is that after the last step. Arms of one seed share initial weights and "
        "order. This page is written by `python -m benchmarks.results_page` from the records in "
        "`benchmarks/results`; a test holds it to them.",
        "",
        *in_short(
            (
                *("small-steps", "small-epochs", "small-noise", "small-noise-epochs"),
                *("small-only", "frontier", "ablations"),
            )
        ),
        *accuracy_section(
            "small-steps",
            "Every arm takes as many gradient steps as full augmentation appended takes, so that "
            "what is left is what augmentation does.",
        ),
        *accuracy_section(
            "small-epochs",
            "The form that the paper reports: as many epochs each, so that appended copies are "
            "also additional steps. *None* here against *none* above is what steps alone give.",
        ),
        *accuracy_section(
            "small-noise", "As the first table, with half of the labels drawn at random."
        ),
        *clean_section(),
        *accuracy_section("small-noise-epochs", "The same in as many epochs each."),
        *accuracy_section(
            "small-only",
            "Only the subset is trained on, chosen anew every ten epochs, originals and one copy: "
            "the paper's section 5.2 in small. All arms take as many steps.",
        ),
        *accuracy_section(
            "frontier", "Rules from elsewhere and variations, each beside a fresh random subset."
        ),
        *accuracy_section("ablations", "One change at a time of a coreset of 30%."),
        *leads_section(),
        *dynamics_section(pictures),
        *gallery_section(pictures, data),
        *never_selected_section(),
        *times_section(pictures),
        "## The paper's tables",
        "",
        "The paper's settings: 200 epochs, batch and rate of its released recipe (it does not give "
        "them), crop and flip frozen for R = 20 epochs, two random operations of Wu et al. (2020), "
        "four copies, five runs. The paper's numbers as printed. "
        "Estimates are `python -m benchmarks.train GRID --estimate`, from two steps of each "
        f"network on one core of {processor or 'no machine yet'}. With `--device cuda` images stay "
        "on the GPU and networks run in bfloat16; `--budget-minutes` ends a call between cells.",
        "",
        *paper,
        *map_section(hours),
    ]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n", pictures


def main(arguments: list[str] | None = None) -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    text, pictures = render(given.data)
    given.out.write_text(text)
    choosing = given.out.parent / "choosing.md"
    if choosing.is_file():
        choosing.write_text(between(choosing.read_text(), "decisions", decision_table()))
    for name, draw in pictures.items():
        draw(given.out.parent / name)


if __name__ == "__main__":
    main()
