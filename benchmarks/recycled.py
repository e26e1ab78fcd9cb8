"""What recycled probing costs and how stale it is, on CIFAR-10.

``python -m benchmarks.recycled --data CIFAR10 [--out JSON]`` trains a ResNet20 through the loader
for some epochs, with and without recording, in turn; then compares what was recorded in the last
epoch with a scan of the same weights: how far residuals moved, and what a coreset that was selected
from recorded residuals costs on the true ones, beside one from the scan and a random subset.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    CropFlip,
    GradientProbe,
    LoaderOptions,
    RandomSelector,
    SubsetAugmentLoader,
    select_coreset,
)
from augsubset.normalization import Normalization
from benchmarks.datasets import ImageData, load_cifar10
from benchmarks.harness import environment, unchanged
from benchmarks.models import build_model
from benchmarks.workloads import error_of


def one_epoch(model: nn.Module, loader: SubsetAugmentLoader, lr: float) -> float:
    """Train one epoch by SGD; return its seconds without selection."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    model.train()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = [entry for entry in loader.history if entry["event"] == "epoch"][-1]
    return last["total_seconds"] - last["selection_seconds"]


def compare(data: ImageData, epochs: int = 6, fraction: float = 0.1) -> dict[str, Any]:
    """Return seconds of epochs with and without recording, and how the recorded rows differ."""
    models, loaders = [], []
    for recycle in (None, 1):
        model = build_model("resnet20", data, 0)
        models.append(model)
        loaders.append(
            SubsetAugmentLoader(
                DataLoader(TensorDataset(data.x_train, data.y_train), 128, shuffle=True),
                model,
                unchanged,
                fraction=fraction,
                copies=1,
                every=epochs + 1,
                selector=RandomSelector(),
                base=CropFlip(4),
                normalize=data.mean_std,
                seed=0,
                options=LoaderOptions(recycle=recycle),
            )
        )
    seconds: list[list[float]] = [[], []]
    for epoch in range(epochs):
        for model, loader, taken in zip(models, loaders, seconds, strict=True):
            taken.append(one_epoch(model, loader, 0.1 * (1 - epoch / epochs)))

    model, loader = models[1], loaders[1]
    normalization = Normalization(data.mean_std, None)
    probe = GradientProbe(model)
    dataset = TensorDataset(data.x_train, data.y_train)

    def prepare(batch: Any) -> Any:
        return normalization.to_model(batch[0]), batch[1]

    cache = loader.prober._cache
    recorded = cache.ages
    begin = time.perf_counter()
    true = probe.scan(dataset, prepare=prepare)
    scanned = time.perf_counter()
    old = probe.scan(dataset, prepare=prepare, reuse=cache, max_age=len(loader))
    recycled = time.perf_counter()
    assert old.ages is not None
    selections = {
        "scan": select_coreset(true, fraction=fraction).indices,
        "recycled": select_coreset(old, fraction=fraction).indices,
    }
    generator = torch.Generator().manual_seed(0)
    selections["random"] = torch.randperm(len(true), generator=generator)[: len(selections["scan"])]
    errors = {name: error_of(true, chosen) for name, chosen in selections.items()}
    moved = (old.residual - true.residual).norm(dim=1)
    chosen = [set(selections[name].tolist()) for name in ("scan", "recycled")]
    return {
        "examples": len(true),
        "epochs": epochs,
        "epoch_seconds_without": seconds[0],
        "epoch_seconds_with": seconds[1],
        "cost_of_recording": statistics.median(
            b / a for a, b in zip(seconds[0][1:], seconds[1][1:], strict=True)
        ),
        "scan_seconds": scanned - begin,
        "recycled_seconds": recycled - scanned,
        "mean_age_in_epochs": float(old.ages.double().mean()) / len(loader),
        "rows_recycled": int(((recorded >= 0) & (recorded <= len(loader))).sum()),
        "mean_residual_norm": float(true.residual.norm(dim=1).mean()),
        "mean_residual_moved": float(moved.mean()),
        "correlation": float(
            torch.corrcoef(torch.stack([true.residual.flatten(), old.residual.flatten()]))[0, 1]
        ),
        "errors": errors,
        "recycled_over_scan": errors["recycled"] / errors["scan"],
        "random_over_scan": errors["random"] / errors["scan"],
        "overlap": len(chosen[0] & chosen[1]) / len(chosen[0]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recycled", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if given.data is None:
        parser.error("--data is needed: a torchvision CIFAR-10 root or an .npz")
    data = load_cifar10(given.data).limited(given.limit)
    result = compare(data, given.epochs)
    print(
        f"recording: {result['cost_of_recording']:.3f} of an epoch without; scan "
        f"{result['scan_seconds']:.1f} s, recycled {result['recycled_seconds']:.1f} s\n"
        f"age {result['mean_age_in_epochs']:.2f} epochs: residuals moved by "
        f"{result['mean_residual_moved']:.3f} of {result['mean_residual_norm']:.3f}, correlation "
        f"{result['correlation']:.3f}\n"
        f"error on the true residuals over that of a scan's coreset: recycled "
        f"{result['recycled_over_scan']:.3f}, random {result['random_over_scan']:.3f}; overlap "
        f"{result['overlap']:.2f}"
    )
    if given.out is not None:
        record = {"environment": environment(data), "recycled": result}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
