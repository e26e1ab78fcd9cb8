"""Residuals to select from: a real network's, and synthetic ones of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import CropFlip, GradientProbe, LastLayerGradients, SubsetAugmentLoader
from augsubset.normalization import Normalization
from benchmarks.datasets import ImageData
from benchmarks.harness import TrainingPlan, train, unchanged
from benchmarks.models import build_model

__all__ = [
    "load",
    "probed",
    "save",
    "softmax_residuals",
    "trained_gradients",
    "trained_network",
]


def trained_network(data: ImageData, epochs: int = 1, seed: int = 0) -> nn.Module:
    """Return a ResNet20 after training on the data with crop and flip."""
    model = build_model("resnet20", data, seed)
    loader = SubsetAugmentLoader(
        DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=128, shuffle=True),
        model,
        unchanged,
        fraction=1.0,
        copies=1,
        originals="none",
        base=CropFlip(4),
        normalize=data.mean_std,
        seed=seed,
    )
    train(model, loader, data, TrainingPlan(epochs, 0.1, warmup=0.25))
    return model


def probed(model: nn.Module, data: ImageData) -> LastLayerGradients:
    """Return the network's residuals and its last layer's inputs, on all training images."""
    normalization = Normalization(data.mean_std, None)
    inputs: list[Tensor] = []
    head = model.get_submodule("head")
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().cpu()))
    with hook:
        gradients = GradientProbe(model).scan(
            TensorDataset(data.x_train, data.y_train),
            prepare=lambda batch: (normalization.to_model(batch[0]), batch[1]),
        )
    return replace(gradients, inputs=torch.cat(inputs))


def trained_gradients(data: ImageData, epochs: int = 1, seed: int = 0) -> LastLayerGradients:
    """Train on the data, and return the residuals of the same data."""
    return replace(probed(trained_network(data, epochs, seed), data), inputs=None)


def save(gradients: LastLayerGradients, path: Path) -> None:
    """Write what another process reads by :func:`load`."""
    assert gradients.inputs is not None
    np.savez(
        path,
        residual=gradients.residual.numpy(),
        inputs=gradients.inputs.numpy(),
        labels=gradients.labels.numpy(),
        losses=gradients.losses.numpy(),
    )


def load(path: Path) -> LastLayerGradients:
    """Read what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        fields = {name: torch.from_numpy(archive[name]) for name in archive.files}
    return LastLayerGradients(**fields, indices=torch.arange(len(fields["labels"])))


def softmax_residuals(n: int, d: int, seed: int = 0, label: int = 0) -> Tensor:
    """Return softmax(z) - onehot(label) of normal logits that lean to the label."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, d, generator=generator)
    logits[:, label] += 2
    residual = logits.softmax(1)
    residual[:, label] -= 1
    return residual
