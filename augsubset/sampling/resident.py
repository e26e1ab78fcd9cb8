"""A dataset of bytes that lives on the device: batches are gathered there, not collated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from augsubset.sampling.keys import unpack
from augsubset.transfer import sent

__all__ = ["ResidentDataset", "as_fetched"]


class ResidentDataset(Dataset[Any]):
    """Images in the device's memory, addressed by keys: ``__getitems__`` returns a whole batch.

    Labels stay on the host, where they are read. A DataLoader over it takes no workers, pins
    nothing and collates with :func:`as_fetched`.

    Args:
        dataset: A ``TensorDataset`` of (images uint8, labels).
        collate: The user's collate function, which must be the default one.

    Raises:
        TypeError: If it is another kind of dataset, or images are no uint8.
        ValueError: If there is a collate function that would not run.
    """

    def __init__(self, dataset: Any, collate: Any) -> None:
        if type(dataset) is not TensorDataset or len(dataset.tensors) != 2:
            raise TypeError(
                "dataset must be a TensorDataset of (images, labels) to be resident, got "
                f"{type(dataset).__name__}. What items go through in __getitem__ would not run."
            )
        images, labels = dataset.tensors
        if images.dtype != torch.uint8:
            raise TypeError(
                f"images must be uint8 to be resident, got {images.dtype}: floats are checked on "
                "the host."
            )
        if collate is not default_collate:
            raise ValueError("collate_fn must be the default to be resident: it would not run.")
        self.dataset = dataset
        self._images, self._labels = images, labels.cpu()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._labels)

    def to(self, device: torch.device) -> None:
        """Move the images, if they are not there already.

        Raises:
            ValueError: If they do not fit in what is free on the device.
        """
        if self._images.device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._images.numel() > free:
                raise ValueError(
                    f"images must fit on {device} to be resident, got {self._images.numel()} "
                    f"bytes for {free} that are free. Leave resident=False."
                )
        self._images = self._images.to(device)

    def __getitems__(self, keys: Sequence[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return ``((images, labels), keys)`` of a batch."""
        rows = torch.tensor(keys, dtype=torch.int64)
        indices = unpack(rows)[2]
        at = sent(indices, self._images.device)
        return (self._images.index_select(0, at), self._labels[indices]), rows


def as_fetched(batch: Any) -> Any:
    """Return the batch: it is one already."""
    return batch
