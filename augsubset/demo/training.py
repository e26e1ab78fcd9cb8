"""Six ways to train one network: they differ in what is augmented, and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset.augment import CropFlip, RandomOps, RowKeys
from augsubset.demo.data import Images
from augsubset.loader import SubsetAugmentLoader
from augsubset.selection import (
    CoresetSelector,
    MaxLossSelector,
    RandomSelector,
    Selection,
    select_coreset,
)
from augsubset.utils.rng import forked_rng

__all__ = ["ARMS", "Arm", "Run", "Setting", "build_network", "train_arm", "warm_up"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        label: What is augmented; ``{share}`` stands for the fraction.
        selector: Selector of the subset; ``None``: everything.
        augments: Whether anything is augmented.
        equal_steps: Whether to train for as many gradient steps as with everything augmented.
    """

    label: str
    selector: Callable[[], Any] | None = None
    augments: bool = True
    equal_steps: bool = False


ARMS = {
    "none": Arm("nothing", augments=False),
    # The control that tells the effect of augmentation from that of more training.
    "none-steps": Arm(
        "nothing, but as many gradient steps as for everything", augments=False, equal_steps=True
    ),
    "random": Arm("a random {share}", RandomSelector),
    "max-loss": Arm("the {share} with the highest loss", MaxLossSelector),
    "coreset": Arm("a coreset of {share}", CoresetSelector),
    "full": Arm("everything"),
}


@dataclass(frozen=True)
class Setting:
    """Everything that a run depends on but its data, arm and seed.

    Args:
        epochs: Passes over the training images.
        batch_size: Rows per batch.
        lr: Peak learning rate.
        fraction: Share of the images to augment.
        copies: Augmented copies of each of these.
        every: Epochs between selections.
        crop_flip: Whether all images are cropped and mirrored at random, in every arm.
        device: Where to train.
    """

    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.05
    fraction: float = 0.3
    copies: int = 4
    every: int = 4
    crop_flip: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Run:
    """What one training run gave.

    Args:
        steps: Gradient steps done at each evaluation.
        accuracies: On the test images, in [0, 1], each time it was evaluated.
        augmented: Augmented copies that were trained on.
        seconds: By part, and in total; evaluation is in none.
    """

    steps: list[int]
    accuracies: list[float]
    augmented: int
    seconds: dict[str, float]


def build_network(images: Images, seed: int) -> nn.Module:
    """Return a small convolutional network whose initial weights depend on the seed alone."""

    def convolve(inputs: int, outputs: int, stride: int) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    with forked_rng(seed):
        return nn.Sequential(
            convolve(images.x_train.shape[1], 16, 1),
            convolve(16, 32, 2),
            convolve(32, 64, 2),
            convolve(64, 64, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, images.num_classes),
        )


def leave_unchanged(x: Tensor, rows: RowKeys) -> Tensor:
    """Stand in for the strong policy where nothing is augmented."""
    return x


def train_arm(
    arm: Arm, images: Images, setting: Setting, seed: int
) -> tuple[Run, list[tuple[int, Selection]]]:
    """Train one arm from the seed's initial weights.

    Returns:
        The run, and its selections with the epochs from which they were active.
    """
    model = build_network(images, seed).to(setting.device)

    def make_loader(arm: Arm) -> SubsetAugmentLoader:
        data = TensorDataset(images.x_train, images.y_train)
        return SubsetAugmentLoader(
            DataLoader(data, setting.batch_size, shuffle=True),
            model,
            RandomOps.paper() if arm.augments else leave_unchanged,
            fraction=1.0 if arm.selector is None else setting.fraction,
            copies=setting.copies if arm.augments else 1,
            every=setting.every,
            selector=None if arm.selector is None else arm.selector(),
            originals="all" if arm.augments else "none",
            base=CropFlip(4) if setting.crop_flip else None,
            normalize=images.mean_std,
            seed=seed,
        )

    loader = make_loader(arm)
    per_epoch = len(make_loader(ARMS["full"])) if arm.equal_steps else len(loader)
    run, selections = _train(model, loader, images, setting, setting.epochs * per_epoch)
    return run if arm.augments else replace(run, augmented=0), selections


def _train(
    model: nn.Module, loader: SubsetAugmentLoader, images: Images, setting: Setting, steps: int
) -> tuple[Run, list[tuple[int, Selection]]]:
    """Train by SGD with momentum: a linear warm-up over a twelfth of the steps, then a cosine."""
    optimizer = torch.optim.SGD(model.parameters(), setting.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(12 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    done: list[int] = [0]
    accuracies = [_evaluate(model, images, setting.device)]
    selections: list[tuple[int, Selection]] = []
    step = 0
    while step < steps:
        model.train()
        epoch = loader.epoch
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
                break
        loader.close()
        if loader.selection is not None and epoch % setting.every == 0:
            selections.append((epoch, loader.selection))
        # As often in every arm: most epochs of more training without augmentation are short.
        if step == steps or step - done[-1] >= steps / setting.epochs:
            done.append(step)
            accuracies.append(_evaluate(model, images, setting.device))
    epochs = [entry for entry in loader.history if entry["event"] == "epoch"]
    seconds = {
        part: sum(entry[f"{part}_seconds"] for entry in epochs)
        for part in ("selection", "loading", "augmentation", "step", "total")
    }
    augmented = sum(entry["num_copies"] for entry in epochs)
    return Run(done, accuracies, augmented, seconds), selections


@torch.no_grad()
def _evaluate(model: nn.Module, images: Images, device: str) -> float:
    """Return the share of test images that are classified correctly."""
    model.eval()
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in images.mean_std)
    correct = 0
    for x, y in DataLoader(TensorDataset(images.x_test, images.y_test), 500):
        logits = model((x.to(device).float() / 255 - mean) / std)
        correct += int((logits.argmax(1).cpu() == y).sum())
    return correct / len(images.y_test)


def warm_up(images: Images, setting: Setting) -> None:
    """Compile and load everything once, so that no arm pays for being the first."""
    few = min(len(images.x_train), 10 * images.num_classes)
    small = Images("warm-up", *(part[:few] for part in images.parts))
    short = replace(setting, epochs=1)
    for arm in ARMS.values():
        train_arm(arm, small, short, 0)
    select_coreset(torch.rand(8, 2), budget=2)
