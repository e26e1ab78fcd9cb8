"""Train the same network five ways and show what augmenting a subset costs and gains.

``python -m benchmarks.demo`` uses scikit-learn's digits; ``--data PATH`` uses CIFAR-10. Prints a
table and writes ``demo-report/index.html`` with ``results.json`` beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    CoresetSelector,
    CropFlip,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    RowKeys,
    Selection,
    SubsetAugmentLoader,
    select_coreset,
)
from benchmarks.datasets import ImageData, load_cifar10, load_digits_images
from benchmarks.harness import RunResult, TrainingPlan, environment, train, unchanged
from benchmarks.models import MODELS, build_model
from benchmarks.page import Gallery, render_page, render_picture


@dataclass(frozen=True)
class Arm:
    """One way to train: which examples are augmented, and by which rule."""

    label: str
    selector: Callable[[], Any] | None = None  # everything
    augmented: bool = True
    equal_steps: bool = False


ARMS = {
    "none": Arm("no strong augmentation", augmented=False),
    "full": Arm("full augmentation"),
    "random": Arm("random subset", RandomSelector),
    "max-loss": Arm("max-loss subset", MaxLossSelector),
    "coreset": Arm("coreset", CoresetSelector),
    # The control that tells augmentation from training longer; not among the default five.
    "none-steps": Arm("none, as many steps as full", augmented=False, equal_steps=True),
}
DEFAULT_ARMS = ("none", "full", "random", "max-loss", "coreset")


@dataclass(frozen=True)
class Setting:
    """Everything that a run depends on but its arm and seed."""

    data: str
    model: str
    limit: int | None
    epochs: int
    batch_size: int
    lr: float
    fraction: float
    copies: int
    every: int
    base: bool
    device: str
    workers: int


def run_arm(
    arm: Arm,
    data: ImageData,
    setting: Setting,
    seed: int,
    after_epoch: Callable[[int, float], None] | None = None,
) -> tuple[RunResult, list[tuple[int, Selection]]]:
    """Train one arm from the seed's initial weights; return its record and its selections."""
    model = build_model(setting.model, data, seed).to(setting.device)
    if arm.equal_steps:
        setting = replace(setting, epochs=setting.epochs * (1 + setting.copies))
    loader = SubsetAugmentLoader(
        DataLoader(
            TensorDataset(data.x_train, data.y_train),
            batch_size=setting.batch_size,
            shuffle=True,
            num_workers=setting.workers,
            persistent_workers=setting.workers > 0,
        ),
        model,
        RandomOps.paper() if arm.augmented else unchanged,
        fraction=1.0 if arm.selector is None else setting.fraction,
        copies=setting.copies if arm.augmented else 1,
        every=setting.every,
        selector=None if arm.selector is None else arm.selector(),
        originals="all" if arm.augmented else "none",
        base=CropFlip(4) if setting.base else None,
        normalize=data.mean_std,
        seed=seed,
    )
    selections: list[tuple[int, Selection]] = []

    def remember(epoch: int, accuracy: float) -> None:
        if loader.selection is not None and epoch % setting.every == 0:
            selections.append((epoch, loader.selection))
        if after_epoch is not None:
            after_epoch(epoch, accuracy)

    plan = TrainingPlan(setting.epochs, setting.lr)
    result = train(model, loader, data, plan, after_epoch=remember)
    return result if arm.augmented else replace(result, augmented=0), selections


def warm_up(data: ImageData, model_name: str, device: str) -> None:
    """Compile and load everything once, so that no arm pays for being the first."""
    select_coreset(torch.rand(8, 2), budget=2)
    few = data.x_train[:64].to(device)
    rows = RowKeys(0, 0, torch.arange(len(few)), 1)
    model = build_model(model_name, data, 0).to(device)
    for _ in range(3):
        model(few.float() / 255).sum().backward()
    for policy in (RandomOps.paper(), CropFlip(1)) * 2:
        policy(few, rows)


def summarise(results: dict[str, list[RunResult]]) -> list[dict[str, Any]]:
    """Return one table row an arm; ``None`` where a figure is undefined.

    Accuracies and counts are means over the seeds, seconds medians.
    """
    accuracy = {name: [run.accuracies[-1] for run in runs] for name, runs in results.items()}
    # Medians: one run that shared its cores with something else must not decide a speed-up.
    total = {name: median([run.seconds["total"] for run in runs]) for name, runs in results.items()}
    gain = None
    if {"none", "full"} <= results.keys():
        gain = fmean(accuracy["full"]) - fmean(accuracy["none"])
    rows = []
    for name, runs in results.items():
        share = None
        if gain is not None and gain > 0:
            share = (fmean(accuracy[name]) - fmean(accuracy["none"])) / gain
        rows.append(
            {
                "arm": name,
                "label": ARMS[name].label,
                "accuracy": fmean(accuracy[name]),
                "accuracies": accuracy[name],
                "share_of_gain": share,
                "augmented": fmean([float(run.augmented) for run in runs]),
                "steps": fmean([float(run.steps) for run in runs]),
                "seconds": {
                    bucket: median([run.seconds[bucket] for run in runs])
                    for bucket in runs[0].seconds
                },
                "speed_up": total["full"] / total[name] if "full" in total else None,
            }
        )
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the table as text, one line an arm."""
    lines = [
        f"{'':28}{'test acc.':>11}{'lowest..highest':>17}{'of full gain':>14}{'augmented':>11}"
        f"{'steps':>7}{'selection':>11}{'gradient':>10}{'augment.':>10}{'speed-up':>10}",
        f"{'':28}{'%':>11}{'over the seeds':>17}{'%':>14}{'examples':>11}"
        f"{'':>7}{'s':>11}{'steps, s':>10}{'s':>10}{'over full':>10}",
    ]
    for row in rows:
        share = "n/a" if row["share_of_gain"] is None else f"{100 * row['share_of_gain']:.0f}"
        speed_up = "n/a" if row["speed_up"] is None else f"{row['speed_up']:.2f}x"
        spread = "n/a"
        if len(row["accuracies"]) > 1:
            spread = f"{100 * min(row['accuracies']):.2f}..{100 * max(row['accuracies']):.2f}"
        seconds = row["seconds"]
        lines.append(
            f"{row['label']:28}{100 * row['accuracy']:>11.2f}{spread:>17}{share:>14}"
            f"{row['augmented']:>11.0f}{row['steps']:>7.0f}{seconds['selection']:>11.2f}"
            f"{seconds['step']:>10.2f}{seconds['augmentation']:>10.2f}{speed_up:>10}"
        )
    return "\n".join(lines)


def caveat(num_seeds: int) -> str:
    """Return what the number of seeds lets a reader conclude."""
    if num_seeds == 1:
        return "One seed: how much runs vary is not known, so differences may be chance."
    return (
        f"Accuracy is the mean over {num_seeds} seeds, seconds are medians. A difference smaller "
        "than the range over the seeds may be chance."
    )


def most_selected(
    data: ImageData, selections: list[tuple[int, Selection]], seed: int, count: int = 10
) -> list[Gallery]:
    """Return the images selected most often, each with two of the copies that were trained on."""
    times = torch.zeros(len(data.x_train), dtype=torch.int64)
    weight = torch.zeros(len(data.x_train), dtype=torch.float64)
    last = torch.zeros(len(data.x_train), dtype=torch.int64)
    for epoch, selection in selections:
        times[selection.indices] += 1
        weight[selection.indices] += selection.weights
        last[selection.indices] = epoch
    # By how often, then by how many examples they stood for.
    order = sorted(range(len(times)), key=lambda i: (-int(times[i]), -float(weight[i]), i))
    policy = RandomOps.paper()
    shown = []
    for index in order[:count]:
        image = data.x_train[index : index + 1]
        copies = [policy(image, RowKeys(seed, int(last[index]), index, copy)) for copy in (1, 2)]
        shown.append(
            Gallery(
                [part[0] for part in (image, *copies)],
                f"#{index}, class {int(data.y_train[index])}: {int(times[index])} of "
                f"{len(selections)}, for {float(weight[index]):.0f} examples",
            )
        )
    return shown


def parse(arguments: list[str]) -> tuple[Setting, list[str], list[int], Path]:
    """Read the command line; the defaults depend on the data."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", help="CIFAR-10: a torchvision root or an .npz (default: digits)")
    parser.add_argument("--model", choices=sorted(MODELS), default="convnet")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--every", type=int)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--seed", type=int, nargs="+")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-report"))
    given = parser.parse_args(arguments)
    digits = given.data is None

    def default(value: Any, for_digits: Any, for_cifar: Any) -> Any:
        return value if value is not None else (for_digits if digits else for_cifar)

    setting = Setting(
        data="digits" if digits else given.data,
        model=given.model,
        limit=given.limit,
        epochs=default(given.epochs, 12, 30),
        batch_size=default(given.batch_size, 64, 128),
        lr=default(given.lr, 0.05, 0.1),
        fraction=default(given.fraction, 0.3, 0.1),
        copies=given.copies,
        every=default(given.every, 4, 10),
        base=not digits,  # a mirrored digit is none
        device=given.device,
        workers=given.workers,
    )
    seeds = default(given.seed, [0, 1, 2], [0])
    return setting, list(dict.fromkeys(given.arms)), seeds, given.out


def main(arguments: list[str] | None = None) -> None:
    """Run the arms, print the table and write the page."""
    setting, arms, seeds, out = parse(sys.argv[1:] if arguments is None else arguments)
    begin = time.perf_counter()
    whole = load_digits_images() if setting.data == "digits" else load_cifar10(setting.data)
    data = whole.limited(setting.limit)
    print(
        f"{data.name}: {len(data.x_train)} training and {len(data.x_test)} test images, "
        f"{setting.model} on {setting.device}, {setting.epochs} epochs, {len(arms)} arms x "
        f"{len(seeds)} seeds, {setting.fraction:.0%} augmented with {setting.copies} copies, "
        f"selected every {setting.every} epochs"
    )
    warm_up(data, setting.model, setting.device)
    results: dict[str, list[RunResult]] = {name: [] for name in arms}
    galleries: list[Gallery] = []
    interactive = sys.stdout.isatty()
    for seed in seeds:
        for name in arms:

            def progress(epoch: int, accuracy: float, name: str = name, seed: int = seed) -> None:
                if interactive:
                    print(
                        f"\r  seed {seed}  {ARMS[name].label:28} epoch {epoch + 1:3}  "
                        f"{100 * accuracy:6.2f}%",
                        end="",
                        flush=True,
                    )

            result, selections = run_arm(ARMS[name], data, setting, seed, progress)
            results[name].append(result)
            if name == "coreset" and seed == seeds[0]:
                galleries = most_selected(data, selections, seed)
            print(
                f"{chr(13) if interactive else ''}  seed {seed}  {ARMS[name].label:28} "
                f"{100 * result.accuracies[-1]:6.2f}%  {result.seconds['total']:7.2f} s",
                flush=True,
            )
    rows = summarise(results)
    record = {
        "setting": asdict(setting),
        "environment": environment(data),
        "seeds": seeds,
        "caveat": caveat(len(seeds)),
        "total_seconds": time.perf_counter() - begin,
        "summary": rows,
        "runs": {name: [asdict(run) for run in runs] for name, runs in results.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "index.html").write_text(render_page(record, galleries), encoding="utf-8")
    render_picture(record).savefig(out / "summary.png", dpi=110)
    print(f"\n{format_table(rows)}\n")
    print(
        f"{caveat(len(seeds))} The speed-up is of the whole training run, fetching batches "
        "included, evaluation not.\nFull augmentation also takes more gradient steps than none: "
        "--arms none full none-steps shows what the steps alone give."
    )
    print(f"{time.perf_counter() - begin:.0f} s in all. The page: {out / 'index.html'}")


if __name__ == "__main__":
    main()
