"""The networks that experiments train, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from augsubset.utils.checks import check_choice
from augsubset.utils.rng import forked_rng

__all__ = ["MODELS", "ConvNet", "ResNet", "ResNet9", "WideResNet", "build_model", "mlp"]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def mlp(channels: int, num_classes: int, size: int = 28, hidden: int = 100) -> nn.Module:
    """Return one hidden layer of sigmoids: the paper's network for MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, hidden),
        nn.Sigmoid(),
        nn.Linear(hidden, num_classes),
    )


class ConvNet(nn.Module):
    """Four convolutions and a linear layer: for small images on a CPU."""

    def __init__(
        self, channels: int, num_classes: int, widths: Sequence[int] = (16, 32, 64, 64)
    ) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.features = nn.Sequential(
            _convolution(channels, first),
            _convolution(first, second, 2),
            _convolution(second, third, 2),
            _convolution(third, fourth),
        )
        self.head = nn.Linear(fourth, num_classes)

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


class ResNet(nn.Module):
    """The CIFAR ResNet of 6 b + 2 layers (He et al., 2016, section 4.2): 20 have 0.27 M weights."""

    def __init__(self, channels: int, num_classes: int, blocks: int = 3) -> None:
        super().__init__()
        widths = [width for width in (16, 32, 64) for _ in range(blocks)]
        layers = [
            _BasicBlock(before, width, stride=1 if before == width else 2)
            for before, width in zip([16, *widths], widths, strict=False)
        ]
        self.stem = _convolution(channels, 16)
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _WideBlock(nn.Module):
    """Normalise, rectify, convolve, twice; the shortcut is convolved where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if (inputs, stride) != (outputs, 1)
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.before(x)
        return self.body(active) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A residual network of few, wide layers: WRN-28-10 (Zagoruyko & Komodakis, 2016)."""

    def __init__(
        self, channels: int, num_classes: int, depth: int = 28, widening: int = 10
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest:
            raise ValueError(f"depth must be 6 b + 4, got depth={depth}.")
        widths = [16, *(base * widening for base in (16, 32, 64))]
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        layers = [
            _WideBlock(before if block == 0 else width, width, 2 if block == 0 and group else 1)
            for group, (before, width) in enumerate(itertools.pairwise(widths))
            for block in range(blocks)
        ]
        self.blocks = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """Eight convolutions and a linear layer, made to train fast (Page, 2018: DAWNBench's winner).

    Args:
        channels: Of the images.
        num_classes: Outputs.
        width: Of the first layer; the last has eight times as many.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(channels, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            _Residual(8 * width),
        )
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return 0.125 * self.head(self.features(x).amax((2, 3)))


def _torchvision(name: str, channels: int, num_classes: int) -> nn.Module:
    """Return torchvision's network, untrained."""
    from torchvision import models

    if channels != 3:
        raise ValueError(f"images must have 3 channels for {name}, got {channels}.")
    model: nn.Module = getattr(models, name)(num_classes=num_classes)
    return model


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": mlp,
    "convnet": ConvNet,
    "convnet-wide": partial(ConvNet, widths=(32, 64, 128, 128)),
    "resnet20": partial(ResNet, blocks=3),
    "resnet32": partial(ResNet, blocks=5),
    "resnet9": ResNet9,
    "wrn-28-10": WideResNet,
    "resnet18": partial(_torchvision, "resnet18"),
    "resnet50": partial(_torchvision, "resnet50"),
}


def build_model(name: str, data: Any, seed: int) -> nn.Module:
    """Return a model whose initial weights depend on the seed alone.

    Args:
        name: One of :data:`MODELS`.
        data: What it is for: its channels, classes and, for the MLP, size.
        seed: Of the weights.
    """
    check_choice("model", name, tuple(MODELS))
    make: Callable[..., nn.Module] = MODELS[name]
    if name == "mlp":
        make = partial(mlp, size=data.train_set[0][0].shape[-1])
    with forked_rng(seed):
        return make(data.channels, data.num_classes)
