"""Images of a report: examples as the policy sees them, each with some augmented copies."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from augsubset.augment import RowKeys
from augsubset.pipeline import Delivery
from augsubset.sampling import pack
from augsubset.sampling.source import Source, opened

__all__ = ["Picture", "as_png", "pictures_of", "spectrum_of"]

_LARGEST = 64  # pixels a side on the page


@dataclass(frozen=True)
class Picture:
    """One example.

    Args:
        index: In the dataset.
        label: Its class, where it has one.
        images: The original, then copies: ``(C, H, W)`` uint8 each.
    """

    index: int
    label: int | None
    images: list[Tensor]


def pictures_of(
    source: Source,
    delivery: Delivery,
    indices: list[int],
    labels: Tensor | None,
    *,
    seed: int,
    num_copies: int = 2,
) -> list[Picture]:
    """Return examples of a dataset with copies by the strong policy; none if they are no images.

    Args:
        source: The dataset.
        delivery: Its policies.
        indices: Dataset indices.
        labels: Class of each example of the dataset, where there are classes.
        seed: Of the copies.
        num_copies: An example.

    Cost:
        A fetch an example.
    """
    if not indices:
        return []
    x, others = _fetched(source, delivery, indices)
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3):
        return []
    shown = [_as_bytes(x)]
    for copy in range(1, num_copies + 1):
        augmented, _ = delivery.strongly_augmented(
            x, others, RowKeys(seed, 0, torch.tensor(indices), copy)
        )
        shown.append(_as_bytes(augmented))
    return [
        Picture(index, None if labels is None else int(labels[index]), [each[i] for each in shown])
        for i, index in enumerate(indices)
    ]


def spectrum_of(
    model: nn.Module,
    source: Source,
    delivery: Delivery,
    indices: list[int],
    device: torch.device,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the Jacobian's singular values for some examples, original and augmented."""
    from augsubset.diagnostics import spectrum_change

    x, others = _fetched(source, delivery, indices)
    if not isinstance(x, Tensor):
        raise TypeError(f"a spectrum needs inputs that are one tensor, got {type(x).__name__}.")
    augmented, _ = delivery.strongly_augmented(
        x, others, RowKeys(seed, 0, torch.tensor(indices), 1)
    )
    change = spectrum_change(
        model, delivery.to_model(x).to(device), delivery.to_model(augmented).to(device)
    )
    return {
        "num_examples": len(indices),
        "original": change.original.singular_values.tolist(),
        "augmented": change.augmented.singular_values.tolist(),
        "perturbation_norm": change.perturbation_norm,
        "perturbation_frobenius": change.perturbation_frobenius,
    }


def _fetched(source: Source, delivery: Delivery, indices: list[int]) -> tuple[Any, tuple[Any, ...]]:
    """Return examples as policies see them, with what goes along."""
    keys: Any = [int(pack(0, 0, index)) for index in indices]
    loader = source.data_loader(
        keys,
        batch_size=len(keys),
        num_workers=min(1, source.num_workers),
        persistent_workers=False,
    )
    batch, _ = opened(next(iter(loader)))
    return delivery.unaugmented(batch)


def _as_bytes(x: Tensor) -> Tensor:
    """Return images as bytes, no larger than a page shows them."""
    x = x.detach().cpu()
    values = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if max(x.shape[-2:]) > _LARGEST:
        values = interpolate(values, scale_factor=_LARGEST / max(x.shape[-2:]), mode="area")
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def as_png(image: Tensor) -> str:
    """Return an image as a data URI.

    Raises:
        ImportError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'pictures in a report need Pillow: pip install "augsubset[report]".'
        ) from error
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, "PNG", optimize=True
    )
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
