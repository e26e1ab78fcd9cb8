"""Show what a policy does to the user's own images, as a page."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augsubset.augment import CropFlip, RandomOps, RowKeys
from augsubset.augment.kornia import as_policy
from augsubset.pipeline import check_policy
from augsubset.reporting.document import make_document
from augsubset.reporting.pictures import render_images

__all__ = ["PRESETS", "find_images", "preview"]

PRESETS: dict[str, Callable[[], Any]] = {
    "paper": RandomOps.paper,
    "wu2020": RandomOps.wu2020,
    "randaugment": RandomOps.randaugment,
    "trivial": RandomOps.trivial,
    "autoaugment-cifar10": partial(RandomOps.autoaugment, "cifar10"),
    "autoaugment-imagenet": partial(RandomOps.autoaugment, "imagenet"),
    "autoaugment-svhn": partial(RandomOps.autoaugment, "svhn"),
    "augmix": RandomOps.augmix,
    "cutout": RandomOps.cutout,
    "noise": RandomOps.noise,
    "crop-flip": CropFlip,
}

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def find_images(path: Path, count: int) -> list[Path]:
    """Return an image file, or evenly spaced ones of those anywhere below a folder.

    Raises:
        ValueError: If there is none.
    """
    found = [path] if path.is_file() else []
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"path must be an image or a folder with images, got {str(path)!r}.")
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[place] for place in places]


def preview(
    policy: Any, files: Sequence[Path], *, name: str, copies: int = 5, size: int = 224
) -> str:
    """Return a page of images, each with augmented copies.

    Args:
        policy: As for :class:`~augsubset.SubsetAugmentLoader`.
        files: Images.
        name: What to call the policy.
        copies: Number of copies of each image.
        size: Pixels of the longer side; larger images are shrunk before they are augmented.

    Raises:
        TypeError: If the policy is none.
        OSError: If a file is not an image.
        ImportError: If Pillow is not installed (``pip install "augsubset[report]"``).
    """
    policy = as_policy(policy)
    check_policy("policy", policy)
    figures = []
    for index, file in enumerate(files):
        image = _read_image(file, size)[None]
        rows = [RowKeys(0, 0, index, copy) for copy in range(1, copies + 1)]
        shown = [image, *(policy(image, row) for row in rows)]
        what = html.escape(file.name)
        images = render_images([each[0] for each in shown], file.name)
        figures.append(f"<figure>{images}<figcaption>{what}</figcaption></figure>")
    title = f"What {name} makes of {'these images' if len(files) > 1 else 'this image'}"
    return make_document(
        title,
        f"<h1>{html.escape(title)}</h1>\n<p>First the image itself, then {copies} augmented "
        "copies, which differ in their random numbers alone: would you still give each the same "
        f"label?</p>\n<div class='strip large'>{''.join(figures)}</div>\n"
        f"<p class='note'>The policy: {html.escape(repr(policy))}. Images are at most {size} "
        "pixels on their longer side; a policy looks different at another size if it counts in "
        "pixels.</p>\n",
    )


def _read_image(file: Path, size: int) -> Tensor:
    """Return an image file as uint8 ``(3, H, W)``, upright, shrunk to the size if it is larger."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            'a preview needs Pillow, which is not installed: pip install "augsubset[report]".'
        ) from error
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
