"""The demo's data: scikit-learn's handwritten digits, or the user's own arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augsubset.normalization import MeanStd

__all__ = ["Images", "load_arrays", "load_digits"]

_NAMES = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class Images:
    """Images to train and to test on.

    Args:
        name: What they are called.
        x_train: Training images.
        y_train: Their classes, from 0.
        x_test: Test images.
        y_test: Their classes.

    Shape:
        x ``(n, C, H, W)`` uint8; y ``(n,)`` int64.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The four tensors."""
        return self.x_train, self.y_train, self.x_test, self.y_test

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return 1 + int(max(self.y_train.max(), self.y_test.max()))

    @property
    def mean_std(self) -> MeanStd:
        """Mean and standard deviation of the training pixels in [0, 1], per channel."""
        pixels = self.x_train.double() / 255
        return pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).clamp(min=1e-3).tolist()

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and labels."""
        sha = hashlib.sha256()
        for part in self.parts:
            sha.update(part.numpy().tobytes())
        return sha.hexdigest()


def load_digits(num_train: int = 300) -> Images:
    """Return scikit-learn's 1,797 handwritten digits (UCI), 8 x 8 gray enlarged to 16 x 16.

    The split is a fixed permutation: ``num_train`` to train on, all others to test on.

    Raises:
        ImportError: If scikit-learn is not installed (``pip install "augsubset[demo]"``).
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the demo's digits come with scikit-learn, which is not installed: "
            'pip install "augsubset[demo]".'
        ) from error
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = torch.from_numpy(digits.images[order]).float()[:, None] / 16
    large = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    pixels = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target[order]).long()
    return Images(
        "handwritten digits",
        pixels[:num_train],
        labels[:num_train],
        pixels[num_train:],
        labels[num_train:],
    )


def load_arrays(path: Path, num_train: int | None = None) -> Images:
    """Return images from an ``.npz`` of x_train, y_train, x_test and y_test.

    Args:
        path: The archive; x are uint8 ``(n, H, W, C)``, or ``(n, H, W)`` for gray images, y
            classes from 0.
        num_train: Number of training images to keep, the first; ``None``: all.

    Raises:
        ValueError: If an array is missing or of another kind.
    """
    with np.load(path, allow_pickle=False) as archive:
        if missing := set(_NAMES) - set(archive):
            raise ValueError(f"{path} must hold {', '.join(_NAMES)}, got no {sorted(missing)}.")
        parts = {name: archive[name] for name in _NAMES}
    for part in ("train", "test"):
        x, y = parts[f"x_{part}"], parts[f"y_{part}"].reshape(-1)
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or not 0 < len(x) == len(y):
            raise ValueError(
                f"x_{part} must be uint8 images (n, H, W) or (n, H, W, C) with n labels, got "
                f"(shape {x.shape}, dtype {x.dtype}) and {len(y)} labels."
            )
        x = x[..., None] if x.ndim == 3 else x
        parts[f"x_{part}"] = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        parts[f"y_{part}"] = y.astype(np.int64)
    tensors = {name: torch.from_numpy(array) for name, array in parts.items()}
    return Images(
        Path(path).stem,
        tensors["x_train"][:num_train],
        tensors["y_train"][:num_train],
        tensors["x_test"],
        tensors["y_test"],
    )
