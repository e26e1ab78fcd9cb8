"""The section on where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.pictures import new_figure, save_figure
from benchmarks.train import load_grid, load_results

__all__ = ["times_section"]


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
