"""The section on where the time goes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.answers import Runs, pairs_of
from benchmarks.paired import summary_of
from benchmarks.paper_page import PAPER
from benchmarks.pictures import new_figure, save_figure
from benchmarks.train import load_grid, load_results

__all__ = ["log_ratios", "ratio_of", "steps_a_copy", "times_section"]

_WORKER_SHARES = ("5%", "10%", "30%")
_LOADER = Path(__file__).parent / "results" / "loader.json"
_WHERE = {"paper": "batches", "one by one": "one by one"}


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
        "total, s | faster than full | 95% interval | paper |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, spent in seconds.items():
        name, _, strong = arm.rpartition(", ")
        parts = " | ".join(f"{spent[key]:.2f}" for key in buckets)
        totals = [each["result"]["seconds"]["total"] for each in results[arm].values()]
        total = f"{spent['total']:.2f} ({min(totals):.2f} to {max(totals):.2f})"
        faster = " |  | "
        if strong in _WHERE:
            mean, low, high = ratio_of(results[f"full, {strong}"], results[arm])
            faster = f"{mean:.2f}x | {low:.2f} to {high:.2f} | "
            if name == "full":
                faster = "1.00x |  | "
        # Their augmentation ran on the processor.
        theirs = PAPER["faster"].get(name) if strong == "one by one" else None
        faster += "" if theirs is None else f"{theirs:.2f}x"
        lines.append(f"| {name or arm} | {_WHERE.get(strong, '')} | {parts} | {total} | {faster} |")
    pictures["results-times.svg"] = lambda path: draw_times(seconds, path)
    record = next(iter(results["full, paper"].values()))
    environment, slow = record["environment"], seconds["full, one by one"]
    printed = PAPER["faster"]
    return [
        "## Where the time goes",
        "",
        "`python -m benchmarks.train times --data CIFAR10` on an idle machine. ResNet20 on 1,000 "
        "CIFAR-10 images, four copies, two epochs and one selection (R = 2; at the paper's R = 20 "
        "a selection is a tenth of that an epoch). Medians of three runs on one core, the total "
        "with its least and most; times as fast as full are geometric means over pairs of one "
        "seed, with a t interval of their logarithms. *Batches*: our policy of two random "
        "operations on the training device, here the same core. *One by one*: torchvision's "
        "RandAugment on PIL images, what a worker process does, its time counted in full as the "
        "paper counts it; workers that are idle otherwise hide it. The two are other policies, so "
        "that each is to be read against its own *full* alone. *Paper*: table 5, an A40, "
        "augmentation on its host. "
        f"{environment['device']}, commit {environment['commit']}.",
        "",
        *lines,
        "",
        "![Seconds of selection, steps and augmentation](results-times.svg)",
        "",
        "With r = 4 steps alone allow at most 5 / 1.4 = 3.57x at 10% and 5 / 2.2 = 2.27x at 30%. "
        f"The paper's {printed['coreset 10%']}x takes a copy that costs "
        f"{steps_a_copy(0.1, printed['coreset 10%']):.1f} times a row's step to augment; its "
        f"{printed['coreset 30%']}x, {printed['max-loss 30%']}x and {printed['random 30%']}x at "
        "30% are above 1 / 0.3 = 3.33x, all that copies of one price each allow even where steps "
        f"cost nothing. Here the steps of *full* take {slow['step'] / slow['augmentation']:.0f} "
        "times as long as its augmentation one by one, so that even those rows are near the steps' "
        "limit. The other end is a loop that only waits for its workers: at "
        f"{', '.join(_WORKER_SHARES)} "
        f"ours is then {', '.join(f'{against_workers(share):.1f}' for share in _WORKER_SHARES)} "
        "times as fast as two workers that augment everything, a linear model's selection every 20 "
        "epochs included ([the loader's figures](loader.md#what-it-costs)).",
        "",
        *_on_gpu(),
        *_table_five(results),
    ]


def _on_gpu() -> list[str]:
    """Return an epoch's time on a GPU, once graphs are captured, and speed-ups at R = 20."""
    grid = load_grid("times-gpu")
    results = load_results(grid)
    if "full" not in results:
        return []
    lines = [
        "| arm | loading, s | augmentation, s | rest, s | an epoch, s | a selection, s | "
        "faster than full, R = 20 | 95% interval |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, records in results.items():
        each = _epoch_of(records)
        parts = " | ".join(f"{each[key]:.3f}" for key in ("loading", "augmentation", "step"))
        faster, selection = "1.00x | " if arm == "full" else " | ", ""
        if arm not in ("none", "full"):
            selection = f"{each['selection']:.2f}"
            mean, low, high = _on_gpu_faster(results["full"], records)
            faster = f"{mean:.2f}x | {low:.2f} to {high:.2f}"
        lines.append(f"| {arm} | {parts} | {each['total']:.3f} | {selection} | {faster} |")
    environments = [each["environment"] for each in results["full"].values()]
    environment, seeds = environments[0], len(environments)
    commits = sorted({each["commit"] for each in environments})
    return [
        f"**On a GPU.** `python -m benchmarks.train {grid.name} --data CIFAR10`, one cell at a "
        "time: 10,000 images, four copies, batches of 512, images resident, bfloat16, passes as "
        f"CUDA graphs. Medians of the two epochs after the first of {seeds} seeds; times as fast "
        "as full are geometric means over pairs of one seed, with a t interval of their "
        "logarithms. A selection is that before the first. Augmentation is the time from a batch's "
        "first kernel of it to the last, on a stream beside the network's, most of it the "
        "launching, which differs between runs by up to half: arms of one share are not told "
        "apart, and what is above the steps' limit is within that. The rest is what is left of the "
        "epoch. "
        f"{environment['device']}, torch {environment['torch']}, "
        f"commits {', '.join(commits)}.",
        "",
        *lines,
        "",
    ]


def _on_gpu_faster(slow: Runs, fast: Runs) -> tuple[float, float, float]:
    """Return how many times as fast epochs are, selections at R = 20 counted, and its interval."""
    slower, faster = (
        [_with_selection(_epoch_of({0: run})) for run in runs.values()]
        for runs in pairs_of(slow, fast)
    )
    logs = [math.log(one / other) for one, other in zip(slower, faster, strict=True)]
    found = summary_of(logs)
    return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


def _epoch_of(records: Runs) -> dict[str, float]:
    """Return median seconds of an epoch but the first, and those of the first one's selection."""
    runs = [record["result"]["epoch_seconds"] for record in records.values()]
    later = [epoch for run in runs for epoch in run[1:]]
    found = {
        key: median([epoch[key] for epoch in later])
        for key in ("loading", "augmentation", "step", "total")
    }
    return {**found, "selection": median([run[0]["selection"] for run in runs])}


def _with_selection(spent: Mapping[str, float], every: int = 20) -> float:
    return spent["total"] + spent["selection"] / every


def _table_five(results: Mapping[str, Runs]) -> list[str]:
    """Return the paper's table 5, whole, beside ours by its way of counting."""
    gpu = load_results(load_grid("times-gpu"))
    lines = [
        "| arm | paper: CIFAR-10, ResNet20 | paper: SVHN, ResNet32 | ours, one by one | "
        "ours on a GPU | ours over two workers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    svhn = PAPER["faster-svhn"]
    workers = {f"coreset {share}": against_workers(share) for share in _WORKER_SHARES}
    for arm, theirs in PAPER["faster"].items():
        fast = results.get(f"{arm}, one by one")
        ours = "not run"
        if fast is not None:
            ours = f"{ratio_of(results['full, one by one'], fast)[0]:.2f}x"
        on_gpu = "not run"
        if arm in gpu and "full" in gpu:
            mean, low, high = _on_gpu_faster(gpu["full"], gpu[arm])
            on_gpu = f"{mean:.2f}x ({low:.2f} to {high:.2f})"
        over = f"{workers[arm]:.2f}x" if arm in workers else "not run"
        lines.append(f"| {arm} | {theirs:.2f}x | {svhn[arm]:.2f}x | {ours} | {on_gpu} | {over} |")
    return [
        "Table 5 of the paper, times as fast as full augmentation. Ours one by one are those of "
        "the first table above, with R = 2; on a GPU those of the second, augmented in batches; "
        "over two workers those of a loop without a training step, which only waits for them, and "
        "whose probe is of a linear model, R = 20.",
        "",
        *lines,
        "",
    ]


def ratio_of(slow: Runs, fast: Runs) -> tuple[float, float, float]:
    """Return how many times as fast runs are, over the seeds that both have, and its interval."""
    found = summary_of(list(log_ratios(slow, fast).values()))
    return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


def log_ratios(slow: Runs, fast: Runs) -> dict[int, float]:
    """Return the logarithm of how many times as fast a run is, by seed."""
    slower, faster = (
        {seed: each["result"]["seconds"]["total"] for seed, each in runs.items()}
        for runs in pairs_of(slow, fast)
    )
    return {seed: math.log(total / faster[seed]) for seed, total in slower.items()}


def against_workers(share: str) -> float:
    """Return the loader's own figure against augmentation on workers, at a share."""
    workloads = json.loads(_LOADER.read_text())["workloads"]
    (found,) = [each for each in workloads["against workers"] if f" {share} with" in each["name"]]
    value: float = found["value"]
    return value


def steps_a_copy(fraction: float, faster: float, copies: int = 4) -> float:
    """Return how many times a row's step a copy must cost to augment for such a speed-up.

    Full takes 1 + r steps a row and r copies, a share f of it 1 + r f and r f. No price gives
    1 / f or more.
    """
    if faster * fraction >= 1:
        return math.inf
    return (faster * (1 + copies * fraction) - 1 - copies) / (copies * (1 - faster * fraction))


def draw_times(seconds: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw three-part bars, an arm a row."""
    from benchmarks.page import draw_bars

    figure = new_figure(9, 0.28 * len(seconds) + 1.0)
    names = {arm: arm.replace(", paper", ", batches") for arm in seconds}
    draw_bars(figure.subplots(), {names[arm]: spent for arm, spent in seconds.items()})
    save_figure(figure, path)
