"""What the loader costs when it does nothing, what it saves when it works, and what it never loses.

``python -m benchmarks.loader --data CIFAR10 --out FILE`` measures each figure beside its
counterpart in turn and prints it with its target, met or MISSED. ``--quick`` shrinks every size;
``--only NAME ...`` runs some. A count that misses its target (rows lost, decodes), which no
machine's speed explains, ends in exit status 1.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from augsubset import (
    CoresetSelector,
    CropFlip,
    GradientProbe,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentLoader,
    WeightedCoresetSampler,
)
from benchmarks.crashes import kill_and_resume
from benchmarks.datasets import ImageData, load_cifar10
from benchmarks.harness import environment, unchanged
from benchmarks.measuring import Figure, PeakMemory, in_turn
from benchmarks.models import build_model

BATCH_SIZE = 128
COPIES = 4
EVERY = 20  # epochs between selections, the loader's default


class Photos(Dataset[tuple[Tensor, int]]):
    """Images as PIL, each with a transform, as torchvision's datasets have them.

    Args:
        data: Where images come from.
        augment: Strong augmentation on PIL, for copies; ``None``: originals alone.
        copies: Augmented copies of each example beside the original.
        weak: Whether images are cropped and mirrored.
        floats: Whether items are what a model takes, floats in [0, 1], or bytes.
    """

    def __init__(
        self,
        data: ImageData,
        augment: Callable[[Any], Any] | None = None,
        copies: int = 0,
        *,
        weak: bool = False,
        floats: bool = False,
    ) -> None:
        self.images = data.x_train.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = data.y_train.tolist()
        self.augment, self.copies = augment, copies
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if weak else []
        steps += [v2.PILToTensor()]
        steps += [v2.ToDtype(torch.float32, scale=True)] if floats else []
        self.to_tensor = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.targets) * (1 + self.copies)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        n = len(self.targets)
        image = Image.fromarray(self.images[index % n])
        if index >= n and self.augment is not None:
            image = self.augment(image)
        return self.to_tensor(image), self.targets[index % n]


class Jpegs(Dataset[tuple[Tensor, int]]):
    """JPEG files of 224 pixels in memory, decoded at each access and counted."""

    def __init__(self, num_images: int) -> None:
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(num_images):
            coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize((224, 224)).save(file, "JPEG")
            self.files.append(file.getvalue())
        self.targets = [index % 10 for index in range(num_images)]
        self.decoded = 0
        self.to_tensor = v2.PILToTensor()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.decoded += 1
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        return self.to_tensor(image), self.targets[index]


def linear(data: Any = None, num_features: int = 3 * 32 * 32) -> nn.Module:
    """Return the smallest model: loaders are measured, not models."""
    return nn.Sequential(nn.Flatten(), nn.Linear(num_features, 10))


def consumed(loader: Iterable[Any]) -> int:
    """Go through an epoch and return its batches."""
    return sum(1 for _ in loader)


def _median_ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Return the median of the ratios of calls made next to each other."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def nothing_selected(data: ImageData, quick: bool) -> list[Figure]:
    """Compare batches a second with one copy of one example a class to the bare DataLoader."""
    figures = []
    floats = TensorDataset(data.x_train.float() / 255, data.y_train)
    for name, dataset, workers, target in (
        ("PIL data, 2 workers", Photos(data, weak=True, floats=True), 2, 0.98),
        ("tensor data, 0 workers", floats, 0, 0.93),
    ):
        options = {"batch_size": BATCH_SIZE, "num_workers": workers}
        bare = DataLoader(
            dataset,
            shuffle=True,
            persistent_workers=workers > 0,
            **options,  # type: ignore[arg-type]
        )
        inner = DataLoader(
            dataset,
            shuffle=True,
            persistent_workers=workers > 0,
            **options,  # type: ignore[arg-type]
        )
        ours = SubsetAugmentLoader(
            inner,
            linear(),
            unchanged,
            fraction=1e-9,
            copies=1,
            every=10**6,
            selector=RandomSelector(),
        )
        counts = {"bare": consumed(bare), "ours": consumed(ours)}  # workers start, caches warm
        seconds = in_turn(
            {"bare": lambda b=bare: consumed(b), "ours": lambda o=ours: consumed(o)},  # type: ignore[misc]
            5 if quick else 21,
        )
        ratio = _median_ratio(seconds, "bare", "ours") * counts["ours"] / counts["bare"]
        figures.append(
            Figure(
                f"batches a second over the bare DataLoader, {name}", ratio, "x", "higher", target
            )
        )
        del bare, inner, ours
        gc.collect()
    return figures


def overhead(data: ImageData, quick: bool) -> list[Figure]:
    """Time what a batch costs beyond a DataLoader's where pixels cost next to nothing.

    Images of 4 pixels a side, a tenth of them selected, the paper's policy, crop and flip, and
    normalisation: keys, plans and calls are left. The DataLoader beside it gathers a batch at once
    too, which is several times faster than row by row.
    """
    small = data.x_train[:, :, ::8, ::8].contiguous()

    def gather(rows: list[int]) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(np.array(rows))
        return small[at], data.y_train[at]

    bare = DataLoader(range(len(small)), BATCH_SIZE, shuffle=True, collate_fn=gather)
    ours = SubsetAugmentLoader(
        DataLoader(TensorDataset(small, data.y_train), BATCH_SIZE, shuffle=True),
        nn.Sequential(nn.Flatten(), nn.Linear(small[0].numel(), 10)),
        RandomOps.paper(),
        base=CropFlip(1),
        normalize=((0.5,) * 3, (0.25,) * 3),
        every=10**6,
        selector=RandomSelector(),
    )
    calls = {"bare": lambda: consumed(bare), "ours": lambda: consumed(ours)}
    batches = {name: call() for name, call in calls.items()}
    seconds = in_turn(calls, 5 if quick else 41)
    each = {name: [s / batches[name] * 1e6 for s in raw] for name, raw in seconds.items()}
    pairs = zip(each["ours"], each["bare"], strict=True)
    beyond = statistics.median(ours - bare for ours, bare in pairs)
    return [
        Figure(
            "a batch of 128 small images beyond a DataLoader that gathers", beyond, "us", "lower"
        ),
        Figure("a batch of that DataLoader", statistics.median(each["bare"]), "us", "lower"),
    ]


def against_workers(data: ImageData, quick: bool) -> list[Figure]:
    """Compare an epoch at 5, 10, 30 and 100% to augmenting everything on the workers.

    Below 100% a coreset is selected after each epoch, probe and solve, and of that time one part in
    ``EVERY`` is added to the epoch's: what a run pays that selects so often.

    Batches are what the model takes: workers that augment make floats of images too, as is usual;
    ours send bytes, and the loader makes floats of all rows.
    """
    everything = DataLoader(
        Photos(data, v2.RandAugment(), COPIES, floats=True),
        BATCH_SIZE,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    arms: dict[str, SubsetAugmentLoader] = {}
    mixed, grouped = LoaderOptions(), LoaderOptions(layout="grouped")
    for name, fraction, options in (
        ("5%", 0.05, mixed),
        ("10%", 0.1, mixed),
        ("30%", 0.3, mixed),
        ("100%", 1.0, mixed),
        ("10% grouped", 0.1, grouped),
        ("100% grouped", 1.0, grouped),
    ):
        inner = DataLoader(
            Photos(data), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True
        )
        arms[name] = SubsetAugmentLoader(
            inner,
            linear(),
            RandomOps.paper(),
            fraction=fraction,
            copies=COPIES,
            every=10**6,  # selections are made by hand, and timed apart
            options=options,
        )
    calls: dict[str, Callable[[], Any]] = {"workers": lambda: consumed(everything)}
    for name, loader in arms.items():
        calls[name] = lambda each=loader: consumed(each)  # type: ignore[misc]
        if not name.startswith("100%"):
            calls[f"selection, {name}"] = loader.reselect
    in_turn(calls, 1)
    seconds = in_turn(calls, 3 if quick else 9)
    figures = []
    for name in arms:
        selections = seconds.get(f"selection, {name}")
        if selections is not None:
            seconds[name] = [
                epoch + selection / EVERY
                for epoch, selection in zip(seconds[name], selections, strict=True)
            ]
        figures.append(
            Figure(
                f"epoch at {name} with {COPIES} copies"
                f"{'' if selections is None else f' and 1/{EVERY} of a selection'}"
                ", faster than all on workers",
                _median_ratio(seconds, "workers", name),
                "x",
                "higher",
                {"10%": 10.0}.get(name),
            )
        )
    return figures


def decodes(data: ImageData, quick: bool) -> list[Figure]:
    """Count the JPEG files decoded an example where all are selected, with four copies."""
    figures = []
    for layout, target in (("grouped", 1.0), ("mixed", None)):
        files = Jpegs(40 if quick else 200)
        loader = SubsetAugmentLoader(
            DataLoader(files, 50, shuffle=True),
            linear(num_features=3 * 224 * 224),
            unchanged,
            fraction=1.0,
            copies=COPIES,
            options=LoaderOptions(layout=layout),  # type: ignore[arg-type]
        )
        files.decoded = 0
        consumed(loader)
        figures.append(
            Figure(f"decodes an example, {layout}", files.decoded / len(files), "", "lower", target)
        )
    return figures


def probing(data: ImageData, quick: bool) -> list[Figure]:
    """Compare a loader's probe to a bare evaluation pass, and recording to a training step.

    The probe is what a selection makes: items fetched by keys, collated with them, checked, made
    into what the model takes, and probed.
    """
    few = data.limited(min(len(data.x_train), 500 if quick else 5000))
    model = build_model("resnet20", few, seed=0)
    loader = DataLoader(Photos(few, floats=True), 512)
    ours = SubsetAugmentLoader(loader, model, unchanged, selector=MaxLossSelector())

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for x, y in loader:
                F.cross_entropy(model(x), y, reduction="none")
        model.train()

    repeats = 3 if quick else 9
    calls: dict[str, Callable[[], Any]] = {"bare": evaluate, "selection": ours.reselect}
    in_turn(calls, 1)
    seconds = in_turn(calls, repeats)
    probed = [entry["probe_seconds"] for entry in ours.history if entry["event"] == "selection"]
    seconds["probe"] = probed[-repeats:]
    figures = [
        Figure(
            "the loader's probe over a bare evaluation pass",
            _median_ratio(seconds, "probe", "bare"),
            "x",
            "lower",
            1.05,
        )
    ]

    images = TensorDataset(few.x_train.float() / 255, few.y_train)
    batches = list(DataLoader(images, BATCH_SIZE))[:8]
    probe = GradientProbe(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    turns = itertools.cycle(batches)

    def recorded() -> None:
        x, y = next(turns)
        with probe.attached(len(images)) as cache:
            cache.expect(torch.arange(len(y)), y)
            step(x, y)

    # Step by step, so that what else the machine does falls on both alike.
    calls = {"bare": lambda: step(*next(turns)), "recorded": recorded}
    in_turn(calls, 2)
    seconds = in_turn(calls, 5 if quick else 150)
    figures.append(
        Figure(
            "recording over a training step",
            _median_ratio(seconds, "recorded", "bare") - 1,
            "share",
            "lower",
            0.01,
        )
    )
    return figures


def memory(data: ImageData, quick: bool, size: tuple[int, int] | None = None) -> list[Figure]:
    """Watch the memory of this process and its workers over a million batches of tiny rows.

    Each selection probes all examples, by workers that come and go, and solves.
    """
    num_batches, reselections = size or ((4_000, 20) if quick else (1_000_000, 100))
    n, batch_size = num_batches // reselections, 1
    generator = torch.Generator().manual_seed(0)
    tiny = TensorDataset(torch.rand(n, 1, generator=generator), torch.arange(n) % 2)
    loader = SubsetAugmentLoader(
        DataLoader(
            tiny,
            batch_size,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            prefetch_factor=16,
        ),
        nn.Linear(1, 2),
        unchanged,
        fraction=1e-9,
        copies=1,
        every=1,
        selector=CoresetSelector(),
    )
    process = psutil.Process()

    def anonymous() -> int:
        # Without the pages of libraries, which are a process's own only while nobody else maps
        # them; and what workers share with this process once.
        gc.collect()
        everybody = [process, *process.children(recursive=True)]
        rollups = (Path(f"/proc/{each.pid}/smaps_rollup").read_text() for each in everybody)
        return sum(int(rollup.split("Pss_Anon:")[1].split()[0]) for rollup in rollups)

    found, seen = [], 0
    for _ in range(reselections):
        seen += consumed(loader)
        found.append(anonymous())
    # The first epoch also holds what is compiled and imported once.
    early = statistics.median(found[1 : max(2, reselections // 10)])
    late = statistics.median(found[-reselections // 10 :])
    selections = sum(entry["event"] == "selection" for entry in loader.history)
    if selections != reselections or seen < num_batches:
        raise RuntimeError(f"{seen} batches and {selections} selections were not what was asked.")
    return [
        Figure(
            f"memory growth after the first tenth of {seen} batches, {selections} reselections by "
            "probe",
            late / early - 1,
            "share",
            "lower",
            0.02,
        )
    ]


def crashes(data: ImageData, quick: bool) -> list[Figure]:
    """Kill runs at random points, restart them, and count what is not as it should be."""
    wanted, at_once = (4, 1) if quick else (50, 4)
    kinds = [(layout, workers) for layout in ("mixed", "grouped") for workers in (0, 2)]
    outcomes = []
    for seed, first in enumerate(range(0, wanted, at_once)):
        layout, workers = kinds[seed % len(kinds)]
        kills = min(at_once, wanted - first)
        outcomes.append(kill_and_resume(layout, workers, kills, seed))  # type: ignore[arg-type]
    kills = sum(outcome.kills for outcome in outcomes)
    rows = sum(outcome.rows for outcome in outcomes)
    return [
        Figure(f"kills over {rows} rows", float(kills), "", "higher", float(wanted)),
        Figure(
            "mismatched rows", float(sum(each.mismatched for each in outcomes)), "", "lower", 0.0
        ),
        Figure("lost rows", float(sum(each.lost for each in outcomes)), "", "lower", 0.0),
        Figure("rows seen twice", float(sum(each.twice for each in outcomes)), "", "lower", 0.0),
        Figure(
            "runs with other weights at the end",
            float(sum(not each.same_weights for each in outcomes)),
            "",
            "lower",
            0.0,
        ),
    ]


def keys(data: ImageData, quick: bool) -> list[Figure]:
    """Start an epoch of ten million keys: the median of three, each in a sampler of its own."""
    num_keys = 100_000 if quick else 10_000_000
    k = num_keys // (10 + COPIES)
    n = num_keys - COPIES * k
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(n)[:k])
    selection = Selection.equally_weighted(chosen, n)
    seconds = []
    with PeakMemory() as peak:
        for _ in range(3):
            sampler = WeightedCoresetSampler(range(n), selection, copies=COPIES)
            begin = time.perf_counter()
            next(iter(sampler))
            seconds.append(time.perf_counter() - begin)
    title = f"starting an epoch of {len(sampler)} keys"
    return [
        Figure(title, statistics.median(seconds), "s", "lower", 1.0),
        Figure("its memory", peak.extra_bytes / 1e6, "MB", "lower", 200.0),
    ]


WORKLOADS = {
    # Memory first: what others leave with the allocator would be reused unseen.
    "keys": keys,
    "memory": memory,
    "nothing selected": nothing_selected,
    "overhead": overhead,
    "against workers": against_workers,
    "decodes": decodes,
    "probing": probing,
    "crashes": crashes,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--quick", action="store_true", help="every workload at a small size")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, help="a JSON file to write; other workloads in it stay")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    data = stand_in(given.limit) if given.data is None else load_cifar10(given.data)
    data = data.limited(min(given.limit, 1000) if given.quick else given.limit)
    torch.set_num_threads(1)  # two workers have the cores; waiting for a third thread is no work
    found = {}
    miscounted = []
    for name in WORKLOADS:
        if name not in given.only:
            continue
        print(name)
        figures = WORKLOADS[name](data, given.quick)
        for figure in figures:
            print(f"  {figure}", flush=True)
        miscounted += [str(each) for each in figures if each.unit == "" and each.met is False]
        found[name] = [figure.as_record() for figure in figures]
        gc.collect()  # workers that are forked next would find their predecessors' handles
    if given.out is not None:
        kept = json.loads(given.out.read_text()) if given.out.exists() else {}
        setting = environment(data)
        commits = dict.fromkeys(found, setting.get("commit"))
        record = {
            "environment": setting,
            "workloads": kept.get("workloads", {}) | found,
            "commits": kept.get("commits", {}) | commits,
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    if miscounted:
        sys.exit("; ".join(miscounted))


def stand_in(num_images: int) -> ImageData:
    """Return random images of CIFAR-10's shape, where there is no archive."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(num_images) % 10
    return ImageData("synthetic", x, y, x[:10], y[:10], ([0.5] * 3, [0.25] * 3))


if __name__ == "__main__":
    main()
