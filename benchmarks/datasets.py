"""The data that experiments run on: in memory where it fits, folders of images where it does not.

Nothing is downloaded. Formats are read by torchvision's own loaders where it has one.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from augsubset.demo.data import load_digits
from augsubset.normalization import MeanStd
from augsubset.utils.checks import check_choice, check_int

__all__ = [
    "DATA",
    "FolderData",
    "ImageData",
    "load_caltech256",
    "load_cifar10",
    "load_data",
    "load_digits_images",
    "load_imagenet",
    "load_mnist",
    "load_svhn",
    "load_tinyimagenet",
    "stand_in",
    "tail_classes",
]

_IMAGENET: MeanStd = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A classification data set in memory.

    Args:
        name: What it is called.
        x_train: ``(n, C, H, W)`` uint8.
        y_train: ``(n,)`` int64.
        x_test: Likewise.
        y_test: Likewise.
        mean_std: Of the pixels in [0, 1], a channel.
        clean: Labels before noise was added to ``y_train``; ``None`` where there was none.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean_std: MeanStd
    clean: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return self.x_train.shape[1]

    @property
    def train_set(self) -> TensorDataset:
        """Return training examples as a data set."""
        return TensorDataset(self.x_train, self.y_train)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels and labels that a run used."""
        sha = hashlib.sha256()
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(part.numpy().tobytes())
        return sha.hexdigest()

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield test images and labels."""
        yield from zip(self.x_test.split(batch_size), self.y_test.split(batch_size), strict=True)

    def limited(self, limit: int | None, test_limit: int | None = None) -> ImageData:
        """Keep the first ``limit`` training and ``test_limit`` test images."""
        data = self
        if limit is not None:
            if not 0 < limit <= len(self.x_train):
                raise ValueError(f"limit must be in 1..{len(self.x_train)}, got limit={limit}.")
            data = data._trained_on(torch.arange(limit))
        if test_limit is not None:
            if not 0 < test_limit <= len(self.x_test):
                raise ValueError(
                    f"test_limit must be in 1..{len(self.x_test)}, got test_limit={test_limit}."
                )
            data = replace(data, x_test=self.x_test[:test_limit], y_test=self.y_test[:test_limit])
        return data

    def long_tailed(self, factor: float) -> ImageData:
        """Keep n * factor^(-c / (C - 1)) images of class c: the first is ``factor`` times the last.

        Reference:
            Cui, Jia, Lin, Song & Belongie, *Class-Balanced Loss*, 2019 (arXiv:1901.05555),
            section 4: exponential decay over the classes in order.
        """
        if not factor >= 1:
            raise ValueError(f"factor must be at least 1, got factor={factor}.")
        last = max(self.num_classes - 1, 1)
        kept = []
        for c in range(self.num_classes):
            (members,) = torch.nonzero(self.y_train == c, as_tuple=True)
            kept.append(members[: max(1, int(len(members) * factor ** (-c / last)))])
        data = self._trained_on(torch.cat(kept).sort().values)
        return replace(data, name=f"{self.name}-lt{factor:g}")

    def with_noise(self, rate: float, kind: Literal["any", "other"], seed: int = 0) -> ImageData:
        """Give a share of the training images, drawn once, a uniformly random label.

        Args:
            rate: Share of the images.
            kind: ``"any"`` class, the true one among them; or always an ``"other"`` one. Papers
                mean either by symmetric noise.
            seed: Of the draw.
        """
        check_choice("kind", kind, ("any", "other"))
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got rate={rate}.")
        rng, n, count = np.random.default_rng(seed), len(self.y_train), self.num_classes
        drawn = torch.from_numpy(rng.permutation(n)[: round(rate * n)])
        y = self.y_train.clone()
        if kind == "any":
            y[drawn] = torch.from_numpy(rng.integers(0, count, len(drawn)))
        else:
            shift = torch.from_numpy(rng.integers(1, count, len(drawn)))
            y[drawn] = (y[drawn] + shift) % count
        return replace(
            self, name=f"{self.name}-noise{rate:g}-{kind}", y_train=y, clean=self.y_train
        )

    def _trained_on(self, rows: Tensor) -> ImageData:
        clean = None if self.clean is None else self.clean[rows]
        return replace(self, x_train=self.x_train[rows], y_train=self.y_train[rows], clean=clean)


@dataclass(frozen=True, eq=False)
class FolderData:
    """A data set of image files, decoded when they are asked for.

    Args:
        name: What it is called.
        train_set: Yields (uint8 image of one size, class); ``targets`` lists the classes.
        test_set: Likewise.
        num_classes: Classes.
        mean_std: Of the pixels in [0, 1], a channel.
        num_workers: Processes that decode.
    """

    name: str
    train_set: Dataset[Any]
    test_set: Dataset[Any]
    num_classes: int
    mean_std: MeanStd = field(default=_IMAGENET)
    num_workers: int = 0
    channels: int = 3
    clean: None = None

    @property
    def y_train(self) -> Tensor:
        """Return the training labels."""
        return torch.as_tensor(_targets(self.train_set))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files' names, sizes and classes, in order: not of their bytes."""
        files = [_files(self.train_set), _files(self.test_set)]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield test images and labels."""
        yield from DataLoader(self.test_set, batch_size, num_workers=self.num_workers)


def _files(dataset: Any) -> list[tuple[str, int, int]]:
    """Return (name below its class, size, class) of each file."""
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return [files[i] for i in dataset.indices]
    return [(path.name, path.stat().st_size, target) for path, target in dataset.files]


def _targets(dataset: Any) -> list[int]:
    if isinstance(dataset, Subset):
        targets = _targets(dataset.dataset)
        return [targets[i] for i in dataset.indices]
    return [int(target) for target in dataset.targets]


# ------------------------------------------------------------------------------------ in memory


def load_digits_images(num_train: int = 300) -> ImageData:
    """Return scikit-learn's 1,797 handwritten digits (UCI), 8 x 8 gray doubled to 16 x 16.

    The split is a fixed permutation: ``num_train`` to train on, all others to test on.
    """
    digits = load_digits(num_train)
    parts = (digits.x_train, digits.y_train, digits.x_test, digits.y_test)
    return ImageData("digits", *parts, ([0.305], [0.32]))


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


def load_svhn(root: str | Path) -> ImageData:
    """Return SVHN's 73,257 and 26,032 cropped digits, from a torchvision root of ``.mat`` files."""
    from torchvision.datasets import SVHN

    parts = [SVHN(str(root), split=split, download=False) for split in ("train", "test")]
    arrays = [torch.from_numpy(a) for part in parts for a in (part.data, part.labels)]
    x_train, y_train, x_test, y_test = (array.contiguous() for array in arrays)
    mean_std = ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970])
    return ImageData("svhn", x_train, y_train, x_test, y_test, mean_std)


def load_mnist(root: str | Path) -> ImageData:
    """Return MNIST's 60,000 and 10,000 digits of 28 x 28, from a torchvision root."""
    from torchvision.datasets import MNIST

    train, test = (MNIST(str(root), train=train, download=False) for train in (True, False))
    return ImageData(
        "mnist",
        train.data[:, None],
        train.targets.long(),
        test.data[:, None],
        test.targets.long(),
        ([0.1307], [0.3081]),
    )


# ------------------------------------------------------------------------------------ in folders


class _Files(Dataset[Any]):
    """Image files and their classes."""

    def __init__(self, files: list[tuple[Path, int]], transform: Callable[[Any], Tensor]) -> None:
        self.files = files
        self.targets = [target for _, target in files]
        self._transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, target = self.files[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), target


def _to_size(size: int, resized: int | None = None) -> Callable[[Any], Tensor]:
    """Return what makes uint8 images of one size, centred; what is random is the policies'."""
    from torchvision.transforms import v2

    steps = [v2.Resize(resized or size), v2.CenterCrop(size), v2.PILToTensor()]
    return v2.Compose(steps)


def _class_folders(root: Path, pattern: str) -> list[tuple[Path, int]]:
    """List image files below one folder a class, classes in the order of their names."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}.")
    classes = sorted(folder for folder in root.iterdir() if folder.is_dir())
    files = [(path, c) for c, each in enumerate(classes) for path in sorted(each.glob(pattern))]
    if not files:
        raise FileNotFoundError(f"no images {pattern} below the folders of {root}.")
    return files


def load_caltech256(
    root: str | Path, *, size: int = 224, per_class: int = 60, num_workers: int = 0
) -> FolderData:
    """Return Caltech-256: the first 60 files of each of the 257 classes to train on, as is usual.

    Args:
        root: A torchvision root: ``caltech256/256_ObjectCategories/<class>/*.jpg``.
        size: Of the images.
        per_class: Training images a class; the others are for testing.
        num_workers: Processes that decode test images.

    Raises:
        FileNotFoundError: If there are no such folders.
        ValueError: If no image is left to test on.
    """
    check_int("per_class", per_class, 1)
    files = _class_folders(Path(root) / "caltech256" / "256_ObjectCategories", "*.jpg")
    seen: dict[int, int] = {}
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for path, target in files:
        seen[target] = seen.get(target, 0) + 1
        (train if seen[target] <= per_class else test).append((path, target))
    if not test:
        raise ValueError(
            f"per_class must leave images to test on, got per_class={per_class} for at most "
            f"{max(seen.values())} a class."
        )
    shape = _to_size(size, round(size * 8 / 7))
    return FolderData(
        "caltech256",
        _Files(train, shape),
        _Files(test, shape),
        len(seen),
        num_workers=num_workers,
    )


def load_tinyimagenet(root: str | Path, *, num_workers: int = 0) -> ImageData | FolderData:
    """Return TinyImageNet's 200 classes of 64 x 64, from its own folders and annotations.

    Args:
        root: ``tiny-imagenet-200``, with ``train/<class>/images`` and ``val/val_annotations.txt``.
        num_workers: Processes that decode test images.
    """
    root = Path(root)
    train = _class_folders(root / "train", "images/*.JPEG")
    names = sorted({path.parts[-3] for path, _ in train})
    with (root / "val" / "val_annotations.txt").open(newline="") as file:
        rows = [row[:2] for row in csv.reader(file, delimiter="\t")]
    test = [(root / "val" / "images" / name, names.index(wnid)) for name, wnid in rows]
    shape = _to_size(64)
    return FolderData(
        "tinyimagenet",
        _Files(train, shape),
        _Files(test, shape),
        len(names),
        ([0.4802, 0.4481, 0.3975], [0.2770, 0.2691, 0.2821]),
        num_workers,
    )


def load_imagenet(root: str | Path, *, size: int = 224, num_workers: int = 0) -> FolderData:
    """Return ImageNet, or anything laid out like it, from ``train/<class>`` and ``val/<class>``."""
    train, test = (_class_folders(Path(root) / part, "*.JPEG") for part in ("train", "val"))
    names = [sorted({path.parent.name for path, _ in part}) for part in (train, test)]
    if names[0] != names[1]:
        raise ValueError(
            f"train and val must hold the same classes, got {len(names[0])} and {len(names[1])}."
        )
    shape = _to_size(size, round(size * 8 / 7))
    return FolderData(
        "imagenet",
        _Files(train, shape),
        _Files(test, shape),
        len(names[0]),
        num_workers=num_workers,
    )


DATA: dict[str, Callable[..., Any]] = {
    "digits": lambda root=None: load_digits_images(),
    "cifar10": load_cifar10,
    "svhn": load_svhn,
    "mnist": load_mnist,
    "caltech256": load_caltech256,
    "tinyimagenet": load_tinyimagenet,
    "imagenet": load_imagenet,
}


def load_data(name: str, root: str | Path | None = None) -> Any:
    """Return a data set by name.

    Raises:
        ValueError: If the name is unknown, or a root is missing.
    """
    check_choice("data", name, tuple(DATA))
    if name == "digits":
        return load_digits_images()
    if root is None:
        raise ValueError(f"data must say where {name} is, got no path. Pass --data PATH.")
    return DATA[name](root)


# Examples, classes, channels and pixels a side of each, as published.
_SHAPES = {
    "digits": (300, 10, 1, 16),
    "cifar10": (50_000, 10, 3, 32),
    "svhn": (73_257, 10, 3, 32),
    "mnist": (60_000, 10, 1, 28),
    "caltech256": (15_420, 257, 3, 224),
    "tinyimagenet": (100_000, 200, 3, 64),
    "imagenet": (1_281_167, 1000, 3, 224),
}


@lru_cache(maxsize=1)
def stand_in(name: str) -> tuple[int, ImageData]:
    """Return how many training images a data set has, and some random ones of their shape."""
    check_choice("data", name, tuple(_SHAPES))
    n, classes, channels, size = _SHAPES[name]
    count = min(n, max(2000, 10 * classes))
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    y = torch.arange(count) % classes
    mean_std = ([0.5] * channels, [0.25] * channels)
    return n, ImageData(f"random {name}", x, y, x[:classes], y[:classes], mean_std)


def tail_classes(labels: Tensor, num_classes: int) -> Tensor | None:
    """Return the smallest third of the classes, or ``None`` where none is twice another's size."""
    sizes = torch.bincount(labels, minlength=num_classes)
    if int(sizes.min()) * 2 > int(sizes.max()):
        return None
    third = sizes.sort().values[max(0, len(sizes) // 3 - 1)]
    return torch.nonzero(sizes <= third)[:, 0]
