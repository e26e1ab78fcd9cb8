"""Find the inputs and the labels in whatever a collate function returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["known_labels", "split_batch"]

_INPUT_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
_LABEL_NAMES = ("label", "labels", "target", "targets", "y")


def split_batch(
    batch: Any, inputs: str | None = None, labels: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return (inputs, labels) of a collated batch.

    Args:
        batch: A pair, or a mapping.
        inputs: A mapping's key of the inputs; ``None`` looks for a usual name.
        labels: A mapping's key of the labels; likewise.

    Raises:
        TypeError: If the batch is of another kind, or a part is no tensor.
        ValueError: If a mapping's keys do not say which part is which, or the labels are not one
            class index an example.

    Example:
        >>> split_batch({"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, Mapping):
        x = batch[_named(batch, "inputs", inputs, _INPUT_NAMES)]
        y = batch[_named(batch, "labels", labels, _LABEL_NAMES)]
    elif isinstance(batch, Sequence) and len(batch) == 2:
        x, y = batch
    else:
        parts = f" of {len(batch)} parts" if isinstance(batch, Sequence) else ""
        raise TypeError(
            "batches must be (inputs, labels) pairs or mappings, got "
            f"{type(batch).__name__}{parts}. If labels are missing, return them from the "
            "dataset; if there are more parts, return a dict that names them."
        )
    for name, part in (("inputs", x), ("labels", y)):
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} of a batch must be a tensor, got {type(part).__name__}.")
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            "labels must be one class index an example, got labels of "
            f"(shape {tuple(y.shape)}, dtype {y.dtype})."
        )
    if len(x) != len(y):
        raise ValueError(f"labels must be as many as the inputs {len(x)}, got {len(y)}.")
    return x, y.long()


def _named(batch: Mapping[Any, Any], role: str, name: str | None, usual: tuple[str, ...]) -> Any:
    if name is not None:
        if name not in batch:
            raise ValueError(
                f"{role} must name a key of the batch {list(batch)}, got {role}={name!r}."
            )
        return name
    found = [key for key in usual if key in batch]
    if len(found) != 1:
        raise ValueError(
            f"{role} must be found among the batch's keys {list(batch)} by one of the names "
            f"{usual}, got {found}. Pass {role}= to name the key."
        )
    return found[0]


def known_labels(dataset: Any) -> Tensor | None:
    """Return a dataset's labels without fetching an item, where it offers them.

    Understands ``targets`` and ``labels`` (torchvision), ``TensorDataset`` (its last tensor),
    ``Subset`` of any of these and ``ConcatDataset`` of only these. ``None`` for others, and where
    such an attribute holds anything but one whole number an example: class names, boxes.
    """
    if isinstance(dataset, torch.utils.data.Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [known_labels(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(dataset, torch.utils.data.TensorDataset):
        values: Any = dataset.tensors[-1] if len(dataset.tensors) > 1 else None
    else:
        values = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.shape != (len(dataset),) or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    return labels.long()
