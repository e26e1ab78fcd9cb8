"""The images of a report: examples as the policy sees them, each with augmented copies."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from augsubset.augment import RowKeys
from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import pack

__all__ = ["Picture", "encode_png", "make_pictures", "measure_spectrum"]

_MAX_SIDE = 64  # pixels


@dataclass(frozen=True)
class Picture:
    """An example and its augmented copies.

    Args:
        index: Its index in the dataset.
        label: Its class, if there are classes.
        images: The original, then the copies: ``(C, H, W)`` uint8 each.
    """

    index: int
    label: int | None
    images: list[Tensor]


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
    classes = loader.info.classes
    return [
        Picture(
            index, None if classes is None else int(classes[index]), [each[i] for each in shown]
        )
        for i, index in enumerate(indices)
    ]


def measure_spectrum(loader: SubsetAugmentLoader, indices: list[int]) -> dict[str, Any]:
    """Return the singular values of the Jacobian over some examples, original and augmented."""
    from augsubset.diagnostics import spectrum_change

    x, others = _fetch(loader, indices)
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs must be one tensor for a spectrum, got {type(x).__name__}.")
    rows = RowKeys(loader.seed, 0, torch.tensor(indices), 1)
    augmented, _ = loader.pipeline.augment_copies(x, others, rows)
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


def encode_png(image: Tensor) -> str:
    """Return an image as a data URI.

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
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, "PNG", optimize=True
    )
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
