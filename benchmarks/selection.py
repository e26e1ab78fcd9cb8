"""Time one selection and hold its error against random and max-loss subsets.

``python -m benchmarks.selection --quick --data CIFAR10`` trains a ResNet20 for one epoch on 10,000
CIFAR-10 images, probes it, and selects 10%. Solve times exclude probing and compilation.
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

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    AllSelector,
    CropFlip,
    GradientProbe,
    LastLayerGradients,
    MaxLossSelector,
    SubsetAugmentLoader,
    select_coreset,
)
from augsubset.pixels import PixelRange
from benchmarks.harness import (
    ImageData,
    TrainingPlan,
    build_model,
    environment,
    load_cifar10,
    train,
    unchanged,
)


def trained_gradients(data: ImageData, epochs: int = 1, seed: int = 0) -> LastLayerGradients:
    """Return the residuals of a ResNet20 after training on the data with crop and flip."""
    model = build_model("resnet20", data, seed)
    loader = SubsetAugmentLoader(
        DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=128, shuffle=True),
        model,
        unchanged,
        copies=1,
        selector=AllSelector(),
        raw="none",
        base=CropFlip(4),
        normalize=data.mean_std,
        seed=seed,
    )
    train(model, loader, data, TrainingPlan(epochs, 0.1, warmup=0.25))
    pixels = PixelRange(data.mean_std, None)
    return GradientProbe(model).scan(
        TensorDataset(data.x_train, data.y_train),
        prepare=lambda batch: (pixels.to_model(batch[0]), batch[1]),
    )


def error_of(gradients: LastLayerGradients, chosen: torch.Tensor) -> float:
    """Return the cost xi of any subset: distances to the nearest chosen of one's class, summed."""
    error = 0.0
    residual = gradients.residual.double()
    for label in torch.unique(gradients.labels):
        members = (gradients.labels == label).nonzero().squeeze(1)
        centres = members[torch.isin(members, chosen)]
        distances = torch.cdist(
            residual[members],
            residual[centres],
            compute_mode="donot_use_mm_for_euclid_dist",  # the Gram form loses near-duplicates
        )
        error += float(distances.amin(1).sum())
    return error


def random_with_budgets(
    gradients: LastLayerGradients, like: torch.Tensor, seed: int
) -> torch.Tensor:
    """Return a random subset with as many examples of each class as another has."""
    rng = np.random.default_rng(seed)
    parts = []
    for label in torch.unique(gradients.labels):
        members = (gradients.labels == label).nonzero().squeeze(1).numpy()
        count = int((gradients.labels[like] == label).sum())
        parts.append(torch.from_numpy(rng.permutation(members)[:count]))
    return torch.cat(parts)


def quick(data: ImageData, fraction: float = 0.1, repeats: int = 9) -> dict[str, Any]:
    """Return solve times and errors on the residuals of a network after one epoch."""
    gradients = trained_gradients(data)
    selection = select_coreset(gradients, fraction=fraction)  # compiles
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        select_coreset(gradients, fraction=fraction)
        seconds.append(time.perf_counter() - begin)
    certificate = selection.certificate
    assert certificate is not None
    hardest = MaxLossSelector("class").select(gradients, budget=len(selection), seed=0, epoch=0)
    at_random = [
        error_of(gradients, random_with_budgets(gradients, selection.indices, seed))
        for seed in range(10)
    ]
    max_loss = error_of(gradients, hardest.indices)
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "examples": len(gradients),
        "fraction": fraction,
        "selected": len(selection),
        "solve_seconds_median": statistics.median(seconds),
        "solve_seconds_iqr": quartiles[2] - quartiles[0],
        "repeats": repeats,
        "error_coreset": certificate.error,
        "error_random_mean": statistics.mean(at_random),
        "error_random_all": at_random,
        "error_max_loss": max_loss,
        "coreset_over_random": certificate.error / statistics.mean(at_random),
        "coreset_over_max_loss": certificate.error / max_loss,
        "gradient_error": certificate.gradient_error,
        "gradient_norm": certificate.gradient_norm,
        "effective_sample_size": certificate.effective_sample_size,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", required=True, help="the only form so far")
    parser.add_argument(
        "--data",
        default=os.environ.get("AUGSUBSET_CIFAR10"),
        help="CIFAR-10: a torchvision root or an .npz (default: $AUGSUBSET_CIFAR10)",
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if given.data is None:
        parser.error("--data is needed: a torchvision CIFAR-10 root or an .npz")
    data = load_cifar10(given.data).limited(10_000)
    result = quick(data)
    print(
        f"{result['selected']} of {result['examples']}: solved in "
        f"{result['solve_seconds_median']:.3f} s (median of {result['repeats']}, IQR "
        f"{result['solve_seconds_iqr']:.3f})\n"
        f"error: coreset {result['error_coreset']:.1f}, random "
        f"{result['error_random_mean']:.1f} (x{result['coreset_over_random']:.3f}), max-loss "
        f"{result['error_max_loss']:.1f} (x{result['coreset_over_max_loss']:.3f})\n"
        f"gradient error {result['gradient_error']:.2f} of norm {result['gradient_norm']:.2f}; "
        f"effective sample size {result['effective_sample_size']:.0f}"
    )
    if given.out is not None:
        record = {"environment": environment(data), "quick": result}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
