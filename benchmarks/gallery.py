"""Pictures of every policy, and of every operation at three strengths, on real images.

``python -m benchmarks.gallery --data CIFAR10`` draws ``augmentations.png``, the first policies,
``policies.png`` and ``operations.png`` in the docs; with ``--out FOLDER`` and without CIFAR-10 the
images are scikit-learn's handwritten digits.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import kornia.augmentation as K
import torch
from torch import Tensor

from augsubset import CropFlip, KorniaModule, RandomOps, RowKeys
from augsubset.augment import OPS, Op
from benchmarks.datasets import load_cifar10, load_digits_images
from benchmarks.pictures import new_figure, save_figure

DOCS = Path(__file__).parents[1] / "docs"
LEVELS = (1 / 3, 2 / 3, 1.0)
NUM_COPIES = 7
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

# The picture in the README.
FIRST = (
    "RandomOps.randaugment(9)",
    "RandomOps.trivial()",
    'RandomOps.autoaugment("cifar10")',
    "K.RandomAffine, K.ColorJiggle",
)


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


def draw(images: Tensor, folder: Path) -> None:
    """Draw the pictures.

    Args:
        images: At least twelve, ``(n, C, H, W)`` uint8.
        folder: Of the pictures.
    """
    images = images.expand(-1, 3, -1, -1)  # where they are gray, as colours
    one = images[7]  # CIFAR-10's first horse: it has colours
    operations = [(name, torch.cat([one[None], at_levels(op, one)])) for name, op in OPS.items()]
    policies = []
    for number, (name, policy) in enumerate(POLICIES.items(), start=1):
        image = images[number % len(images)]
        rows = RowKeys(0, 0, number, torch.arange(1, NUM_COPIES + 1))
        copies = policy(image.expand(NUM_COPIES, -1, -1, -1), rows)
        policies.append((name, torch.cat([image[None], copies])))
    shown = [next(strip for strip in policies if strip[0] == name) for name in FIRST]
    title = "original, then seven augmented copies"
    for name, strips, words in (
        ("augmentations", shown, title),
        ("policies", policies, title),
        ("operations", operations, "original, then from the lowest magnitude to the highest"),
    ):
        _draw_strips(strips, words, folder / f"{name}.png")


def _draw_strips(strips: list[tuple[str, Tensor]], title: str, path: Path) -> None:
    """Draw a line of images a strip, with its name above: as large as a phone's width allows."""
    figure = new_figure(0.95 * len(strips) + 0.3)
    figure.suptitle(title, fontsize=10)
    for axis, (name, images) in zip(figure.subplots(len(strips)), strips, strict=True):
        blank = torch.full((NUM_COPIES + 1 - len(images), *images.shape[1:]), 255)
        row = torch.cat([images, blank.to(images)])
        row = torch.nn.functional.pad(row, (1, 1, 1, 1), value=255)
        axis.imshow(torch.cat(list(row), 2).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(name, loc="left", family="monospace", size=9, pad=2)
        axis.axis("off")
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures from CIFAR-10 or digits."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--out", type=Path, help="a folder, by default that of the docs")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if given.data is None and given.out is None:
        print("Without CIFAR-10 (--data) the pictures in docs are left as they are.")
        return
    data = load_digits_images(64) if given.data is None else load_cifar10(given.data)
    # One of each class first, so that neighbours differ.
    first = [int((data.y_train == label).nonzero()[0]) for label in range(data.num_classes)]
    draw(data.x_train[first * 2], given.out or DOCS)


if __name__ == "__main__":
    main()
