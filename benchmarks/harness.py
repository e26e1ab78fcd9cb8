"""Data, models and the one training loop that the demo and every benchmark share."""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import augsubset
from augsubset import RowKeys, SubsetAugmentLoader, weighted_loss
from augsubset.pixels import MeanStd, PixelRange
from augsubset.rng import forked_rng

# ----------------------------------------------------------------------------------------- data


@dataclass(frozen=True, eq=False)
class ImageData:
    """A classification data set in memory: images ``(n, C, H, W)`` uint8, labels ``(n,)`` int64."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean_std: MeanStd

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(self.y_train.max()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels and labels that a run used."""
        sha = hashlib.sha256()
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(part.numpy().tobytes())
        return sha.hexdigest()

    def limited(self, limit: int | None) -> ImageData:
        """Keep the first ``limit`` training images."""
        if limit is None:
            return self
        if not 0 < limit <= len(self.x_train):
            raise ValueError(f"limit must be in 1..{len(self.x_train)}, got limit={limit}.")
        return replace(self, x_train=self.x_train[:limit], y_train=self.y_train[:limit])


def load_digits_images(num_train: int = 300) -> ImageData:
    """Return scikit-learn's 1,797 handwritten digits (UCI), 8 x 8 gray doubled to 16 x 16.

    The split is a fixed permutation: ``num_train`` to train on, all others to test on.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = torch.from_numpy(digits.images[order]).float()[:, None] / 16
    large = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    pixels = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target[order]).long()
    return ImageData(
        "digits",
        pixels[:num_train],
        labels[:num_train],
        pixels[num_train:],
        labels[num_train:],
        ([0.305], [0.32]),
    )


def load_cifar10(path: str | Path) -> ImageData:
    """Return CIFAR-10 from a torchvision root or an ``.npz``.

    Args:
        path: A folder that ``torchvision.datasets.CIFAR10`` reads, or an archive with x_train
            ``(n, 32, 32, 3)`` uint8, y_train ``(n,)``, x_test and y_test.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If the archive's arrays are of another kind.
    """
    path = Path(path)
    if path.is_dir():
        from torchvision.datasets import CIFAR10

        parts = [CIFAR10(str(path), train=train, download=False) for train in (True, False)]
        arrays = [array for part in parts for array in (part.data, np.asarray(part.targets))]
    elif path.is_file():
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    else:
        raise FileNotFoundError(f"no CIFAR-10 at {path}: neither a folder nor an .npz archive.")
    for pixels, labels in zip(arrays[::2], arrays[1::2], strict=True):
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 32, 32, 3):
            raise ValueError(
                f"images must be (n, 32, 32, 3) uint8 with n labels, got (shape {pixels.shape}, "
                f"dtype {pixels.dtype}) and {len(labels)} labels."
            )
    x_train, y_train, x_test, y_test = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    return ImageData(
        "cifar10",
        x_train.permute(0, 3, 1, 2).contiguous(),
        y_train.long(),
        x_test.permute(0, 3, 1, 2).contiguous(),
        y_test.long(),
        ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    )


# --------------------------------------------------------------------------------------- models


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ConvNet(nn.Module):
    """Four convolutions of 16 to 64 channels and a linear layer: for small images on a CPU."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(channels, 16),
            _convolution(16, 32, 2),
            _convolution(32, 64, 2),
            _convolution(64, 64),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.head(self.features(x).mean((2, 3)))


class _BasicBlock(nn.Module):
    """Two convolutions around a parameter-free shortcut (He et al., 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            before = self.extra // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.extra - before))
        return F.relu(self.second(self.first(x)) + shortcut)


class ResNet20(nn.Module):
    """The CIFAR ResNet of 20 layers, 0.27 million parameters (He et al., 2016, section 4.2)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [16] * 3 + [32] * 3 + [64] * 3
        blocks = [
            _BasicBlock(before, width, stride=1 if before == width else 2)
            for before, width in zip([16, *widths], widths, strict=False)
        ]
        self.stem = _convolution(channels, 16)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


MODELS: dict[str, Callable[[int, int], nn.Module]] = {"convnet": ConvNet, "resnet20": ResNet20}


def unchanged(x: Tensor, rows: RowKeys) -> Tensor:
    """Stand in for strong augmentation in the arms that have none."""
    return x


def build_model(name: str, data: ImageData, seed: int) -> nn.Module:
    """Return a model whose initial weights depend on the seed alone."""
    with forked_rng(seed):
        return MODELS[name](data.x_train.shape[1], data.num_classes)


# ------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainingPlan:
    """SGD with momentum, linear warm-up, then cosine to zero or a tenth at each milestone.

    Args:
        epochs: Passes of the loader.
        lr: Peak learning rate.
        momentum: Of SGD.
        weight_decay: On all parameters.
        warmup: Epochs of linear warm-up.
        milestones: Epochs at which the rate falls to a tenth; empty for cosine.
    """

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 1.0
    milestones: tuple[int, ...] = ()

    def lr_at(self, epoch: float) -> float:
        """Return the learning rate at a point in time, in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.milestones:
            return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        progress = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class RunResult:
    """What one training run gave: accuracy after each epoch, steps, and where the time went."""

    accuracies: list[float]
    steps: int
    rows: int
    augmented: int
    seconds: dict[str, float]


def train(
    model: nn.Module,
    loader: SubsetAugmentLoader,
    data: ImageData,
    plan: TrainingPlan,
    *,
    after_epoch: Callable[[int, float], None] | None = None,
) -> RunResult:
    """Train and return the record: the one loop that all arms of all benchmarks go through.

    Evaluation happens between epochs and is in no time bucket.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    accuracies = []
    step = 0
    for epoch in range(plan.epochs):
        model.train()
        for x, y, w in loader:
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at((step + 1) / len(loader))
            loss = weighted_loss(F.cross_entropy(model(x), y, reduction="none"), w)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        accuracies.append(evaluate(model, data))
        if after_epoch is not None:
            after_epoch(epoch, accuracies[-1])
    epochs = [entry for entry in loader.history if entry["event"] == "epoch"]
    buckets = ("selection", "loading", "augmentation", "step", "total")
    return RunResult(
        accuracies=accuracies,
        steps=step,
        rows=sum(entry["num_rows"] for entry in epochs),
        augmented=sum(entry["num_copies"] for entry in epochs),
        seconds={name: sum(entry[f"{name}_seconds"] for entry in epochs) for name in buckets},
    )


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageData, batch_size: int = 500) -> float:
    """Return the share of test images classified correctly, in [0, 1]."""
    pixels = PixelRange(data.mean_std, None)
    device = next(model.parameters()).device
    model.eval()
    correct = 0
    for x, y in zip(data.x_test.split(batch_size), data.y_test.split(batch_size), strict=True):
        predicted = model(pixels.to_model(x.to(device))).argmax(1).cpu()
        correct += int((predicted == y).sum())
    return correct / len(data.y_test)


# --------------------------------------------------------------------------------------- record


def environment(data: ImageData | None = None) -> dict[str, Any]:
    """Return what a result depends on beside the code's arguments."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cuda = torch.cuda.is_available()
    return {
        "augsubset": augsubset.__version__,
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "data": None if data is None else {"name": data.name, "sha256": data.digest},
    }


def _processor() -> str:
    """Return the processor's own name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
