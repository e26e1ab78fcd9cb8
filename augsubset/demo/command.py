"""Run the demo: train every arm from every seed, print the table, write the page."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from augsubset.demo.data import Images, load_arrays, load_digits
from augsubset.demo.page import render_page, show_most_selected
from augsubset.demo.results import conclude, format_table, name_arms, summarize
from augsubset.demo.training import ARMS, Run, Setting, train_arm, warm_up
from augsubset.utils.checkpoint import write_whole

__all__ = ["add_demo_arguments", "run_demo"]


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    setting = Setting(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("demo-report"), help="folder")
    parser.add_argument(
        "--data", type=Path, help=".npz of x_train, y_train, x_test, y_test, instead of the digits"
    )
    parser.add_argument("--limit", type=int, help="number of training images to use")
    parser.add_argument("--seeds", type=int, default=5, help="number of runs per way to train")
    parser.add_argument("--epochs", type=int, default=setting.epochs, help="passes over the images")
    parser.add_argument("--batch-size", type=int, default=setting.batch_size, help="rows per batch")
    parser.add_argument("--lr", type=float, default=setting.lr, help="peak learning rate")
    parser.add_argument(
        "--fraction", type=float, default=setting.fraction, help="share of images to augment"
    )
    parser.add_argument(
        "--copies", type=int, default=setting.copies, help="copies of each of these"
    )
    parser.add_argument(
        "--every", type=int, default=setting.every, help="epochs between selections"
    )
    parser.add_argument(
        "--crop-flip", action="store_true", help="also crop and mirror all images at random"
    )
    parser.add_argument("--device", default=setting.device, help="where to train")


def run_demo(given: argparse.Namespace) -> str:
    """Run the demo, printing its progress, and return what to print last.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If an optional package is missing.
    """
    setting = Setting(**{field.name: getattr(given, field.name) for field in fields(Setting)})
    for name in ("epochs", "batch_size", "copies", "every"):
        if getattr(setting, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={getattr(setting, name)}.")
    if given.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got seeds={given.seeds}.")
    if given.data is None:
        images = load_digits() if given.limit is None else load_digits(given.limit)
    else:
        images = load_arrays(given.data, given.limit)
    begin, seeds = time.perf_counter(), list(range(given.seeds))
    # Digits are so small that threads only wait for one another, long where cores are busy.
    with _use_threads(1 if given.data is None else torch.get_num_threads()):
        runs, gallery = _train_all(images, setting, seeds)
        environment = _describe_environment(setting.device)
    summary = summarize(runs)
    headline, conclusion = conclude(summary, setting.fraction)
    record = {
        "headline": headline,
        "conclusion": conclusion,
        "setting": asdict(setting),
        "environment": environment,
        "data": {
            "name": images.name,
            "num_train": len(images.x_train),
            "num_test": len(images.x_test),
            "sha256": images.digest,
        },
        "seeds": seeds,
        "summary": summary,
        "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_whole(given.out / "results.json", (json.dumps(record, indent=1) + "\n").encode())
    write_whole(given.out / "index.html", render_page(record, gallery).encode())
    paragraphs = "\n".join(f"{question} {answer}" for question, answer in conclusion.items())
    return (
        f"\n{format_table(summary, setting.fraction)}\n\n{headline}.\n{paragraphs}\n\n"
        f"{time.perf_counter() - begin:.0f} s in all. The page: {given.out / 'index.html'}"
    )


@contextmanager
def _use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_all(
    images: Images, setting: Setting, seeds: list[int]
) -> tuple[dict[str, list[Run]], str]:
    """Train every arm from every seed; return the runs, and the first coreset's images."""
    labels = name_arms(setting.fraction)
    sys.stdout.write(
        f"{len(images.x_train)} training and {len(images.x_test)} test images of {images.name}, "
        f"{len(ARMS)} ways to train x {len(seeds)} seeds, on {setting.device}\n"
    )
    warm_up(images, setting)
    runs: dict[str, list[Run]] = {name: [] for name in ARMS}
    gallery = ""
    for seed in seeds:
        for name, arm in ARMS.items():
            run, selections = train_arm(arm, images, setting, seed)
            runs[name].append(run)
            if name == "coreset" and seed == seeds[0]:
                gallery = show_most_selected(images, selections, seed)
            sys.stdout.write(
                f"  seed {seed}, augmented: {labels[name]:52} {100 * run.accuracies[-1]:6.2f}% "
                f"{run.seconds['total']:7.2f} s\n"
            )
            sys.stdout.flush()
    return runs, gallery


def _describe_environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on beside the code's arguments."""
    on_gpu = torch.device(device).type == "cuda"
    found: dict[str, Any] = {
        "augsubset": version("augsubset"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu else _name_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    root = Path(__file__).parents[2]
    if (root / ".git").exists():  # a clone, not an installed package
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        found["commit"] = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    return found


def _name_processor() -> str:
    """Return the processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
