"""The images of a report: examples as the policy sees them, each with augmented copies."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Subset

from augsubset.augment import RowKeys
from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import pack

__all__ = [
    "Picture",
    "encode_image",
    "find_class_names",
    "make_pictures",
    "measure_spectrum",
    "render_images",
]

_MAX_SIDE = 64  # pixels
_QUALITIES = (70, 50, 35, 20)
_PIXELATED = 32  # up to this side, images are lossless and enlarged without smoothing


@dataclass(frozen=True)
class Picture:
    """An example and its augmented copies.

    Args:
        index: Its index in the dataset.
        label: Its class, if there are classes.
        images: The original, then the copies: ``(C, H, W)`` uint8 each.
        name: Name of the class, where the dataset has names.
    """

    index: int
    label: int | None
    images: list[Tensor]
    name: str | None = None


def make_pictures(
    loader: SubsetAugmentLoader, indices: list[int], num_copies: int = 2
) -> list[Picture]:
    """Return examples with copies by the strong policy; an empty list if they are not images.

    Args:
        loader: A loader between two epochs.
        indices: Dataset indices.
        num_copies: Number of copies per example.

    Cost:
        Fetches each example once.
    """
    if not indices:
        return []
    x, others = _fetch(loader, indices)
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3):
        return []
    shown = [_to_bytes(x)]
    for copy in range(1, num_copies + 1):
        rows = RowKeys(loader.seed, 0, torch.tensor(indices), copy)
        shown.append(_to_bytes(loader.pipeline.augment_copies(x, others, rows)[0]))
    classes, names = loader.info.classes, find_class_names(loader.dataset)
    labels = [None if classes is None else int(classes[index]) for index in indices]
    return [
        Picture(
            index, label, [each[i] for each in shown], None if label is None else names.get(label)
        )
        for i, (index, label) in enumerate(zip(indices, labels, strict=True))
    ]


def find_class_names(dataset: Any) -> dict[int, str]:
    """Return the names of classes from ``dataset.classes``, a list as in torchvision, if there.

    Looks inside ``Subset``.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        return {}
    return dict(enumerate(classes))


def render_images(images: Sequence[Tensor], what: str) -> str:
    """Return an original and its copies side by side, as HTML.

    Args:
        images: ``(C, H, W)`` uint8 each.
        what: What they show, for readers who do not see them.
    """
    tags = []
    for copy, image in enumerate(images):
        small = ' class="small"' if max(image.shape) <= _PIXELATED else ""
        part = "original" if copy == 0 else f"augmented copy {copy}"
        alt = html.escape(f"{what}, {part}")
        tags.append(f'<img src="{encode_image(image)}" alt="{alt}"{small}>')
    return f'<div class="shown">{"".join(tags)}</div>'


def measure_spectrum(loader: SubsetAugmentLoader, indices: list[int]) -> dict[str, Any]:
    """Return the singular values of the Jacobian over some examples, original and augmented."""
    from augsubset.diagnostics import spectrum_change

    x, others = _fetch(loader, indices)
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs must be one tensor for a spectrum, got {type(x).__name__}.")
    rows = RowKeys(loader.seed, 0, torch.tensor(indices), 1)
    augmented, *_ = loader.pipeline.augment_copies(x, others, rows)
    normalization, device = loader.pipeline.normalization, loader.prober.device
    change = spectrum_change(
        loader.model,
        normalization.to_model(x).to(device),
        normalization.to_model(augmented).to(device),
    )
    return {
        "num_examples": len(indices),
        "original": change.original.singular_values.tolist(),
        "augmented": change.augmented.singular_values.tolist(),
        "perturbation_norm": change.perturbation_norm,
        "perturbation_frobenius": change.perturbation_frobenius,
    }


def _fetch(loader: SubsetAugmentLoader, indices: list[int]) -> tuple[Any, tuple[Any, ...]]:
    """Return examples as policies see them, and the other parts of their batch."""
    source, pipeline = loader.source, loader.pipeline
    keys: Any = [int(pack(0, 0, index)) for index in indices]
    batches = source.make_loader(
        keys,
        batch_size=len(keys),
        num_workers=min(1, source.num_workers),
        persistent_workers=False,
    )
    batch, _ = next(iter(batches))
    parts = pipeline.spec.split(batch)
    return pipeline.normalization.to_unit(parts.inputs), parts.others


def _to_bytes(x: Tensor) -> Tensor:
    """Return images as uint8, shrunk to the size at which the page shows them."""
    x = x.detach().cpu()
    values = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if max(x.shape[-2:]) > _MAX_SIDE:
        values = interpolate(values, scale_factor=_MAX_SIDE / max(x.shape[-2:]), mode="area")
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def encode_image(image: Tensor) -> str:
    """Return an image as a data URI: WebP, lossless up to 32 pixels.

    A page of hundreds of thumbnails would be megabytes of PNG, so a larger image gets 0.17 bytes
    per pixel, or 600 bytes if that is more, and loses as much quality as it takes.

    Raises:
        ImportError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'images in a report need Pillow: pip install "augsubset[report]".'
        ) from error
    pixels = image.permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    if max(drawn.size) <= _PIXELATED:
        return _encode(drawn, lossless=True)
    most = max(600, round(0.17 * drawn.width * drawn.height))
    for quality in _QUALITIES:
        encoded = _encode(drawn, quality=quality)
        if len(encoded) * 3 / 4 <= most:
            break
    return encoded


def _encode(drawn: Any, **options: Any) -> str:
    file = io.BytesIO()
    drawn.save(file, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
