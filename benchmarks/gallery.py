"""A picture of every operation at three strengths and of every policy, on real images.

``python -m benchmarks.gallery --data CIFAR10`` draws ``docs/augmentations.png``; with ``--out`` and
without CIFAR-10 the images are scikit-learn's handwritten digits.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor

from augsubset import CropFlip, KorniaModule, RandomOps, RowKeys
from augsubset.augment import OPS, Op
from benchmarks.datasets import load_cifar10, load_digits_images

PICTURE = Path(__file__).parents[1] / "docs" / "augmentations.png"
LEVELS = (1 / 3, 2 / 3, 1.0)
NUM_COPIES = 10
POLICIES: Mapping[str, Callable[[Tensor, RowKeys], Tensor]] = {
    "RandomOps.paper()": RandomOps.paper(),
    "RandomOps.wu2020()": RandomOps.wu2020(),
    "RandomOps.randaugment(9)": RandomOps.randaugment(9),
    "RandomOps.trivial()": RandomOps.trivial(),
    'RandomOps.autoaugment("cifar10")': RandomOps.autoaugment("cifar10"),
    'RandomOps.autoaugment("imagenet")': RandomOps.autoaugment("imagenet"),
    'RandomOps.autoaugment("svhn")': RandomOps.autoaugment("svhn"),
    "RandomOps.augmix()": RandomOps.augmix(),
    "RandomOps.cutout()": RandomOps.cutout(),
    "RandomOps.noise()": RandomOps.noise(),
    "K.RandomAffine, K.ColorJiggle": KorniaModule(
        K.AugmentationSequential(
            K.RandomAffine(20.0, scale=(0.8, 1.2)), K.ColorJiggle(0.3, 0.3, 0.3, 0.1)
        )
    ),
    "CropFlip(4)": CropFlip(4),
    'CropFlip(4, padding_mode="reflect")': CropFlip(4, padding_mode="reflect"),
}


def at_levels(op: Op, image: Tensor) -> Tensor:
    """Return one image at three strengths; what is mirrored about its weakest, on both sides."""
    rows = []
    for level in LEVELS:
        change = level * (op.high - op.low)
        for sign in (-1, 1) if op.signed else (1,):
            magnitude = op.low + sign * change
            magnitude = float(round(magnitude)) if op.integral else magnitude
            rows.append((magnitude, op(image[None], magnitude, (0.3, 0.6))))
    return torch.cat([x for _, x in sorted(rows, key=lambda row: row[0])])


def draw(images: Tensor, path: Path) -> None:
    """Draw the gallery.

    Args:
        images: At least twelve, ``(n, C, H, W)`` uint8.
        path: Of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images = images.expand(-1, 3, -1, -1)  # where they are gray, as colours
    one = images[7]  # CIFAR-10's first horse: it has colours
    strips = [(name, torch.cat([one[None], at_levels(op, one)])) for name, op in OPS.items()]
    of_policies = []
    for number, (name, policy) in enumerate(POLICIES.items(), start=1):
        image = images[number % len(images)]
        rows = RowKeys(0, 0, number, torch.arange(1, NUM_COPIES + 1))
        copies = policy(image.expand(NUM_COPIES, -1, -1, -1), rows)
        of_policies.append((name, torch.cat([image[None], copies])))

    figure = pyplot.figure(figsize=(11, 12), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[len(strips) // 2, len(of_policies)])
    _draw_strips(top, strips, 2, "original, then from the lowest magnitude to the highest")
    _draw_strips(bottom, of_policies, 1, "original, then ten augmented copies of it")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _draw_strips(figure: Any, strips: list[tuple[str, Tensor]], columns: int, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(-(-len(strips) // columns), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    widest = max(len(images) for _, images in strips)
    for axis, (name, images) in zip(axes.T.flat, strips, strict=False):
        blank = torch.full((widest - len(images), *images.shape[1:]), 255, dtype=torch.uint8)
        row = torch.nn.functional.pad(torch.cat([images, blank]), (1, 1, 1, 1), value=255)
        pixels = torch.cat(list(row), 2).permute(1, 2, 0)
        axis.imshow(pixels.expand(-1, -1, 3).numpy(), interpolation="nearest")
        axis.text(-4, row.shape[2] / 2, name, ha="right", va="center", family="monospace", size=8)


def main(arguments: list[str] | None = None) -> None:
    """Draw the gallery from CIFAR-10 or digits."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--out", type=Path, help="a picture to write, by default that of the docs")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if given.data is None and given.out is None:
        print(f"Without CIFAR-10 (--data) {PICTURE.name} in docs is left as it is.")
        return
    data = load_digits_images(64) if given.data is None else load_cifar10(given.data)
    # One of each class first, so that neighbours differ.
    first = [int((data.y_train == label).nonzero()[0]) for label in range(data.num_classes)]
    draw(data.x_train[first * 2], given.out or PICTURE)


if __name__ == "__main__":
    main()
