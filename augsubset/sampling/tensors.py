"""Tensors need no items: a batch of them is gathered at once, on the host or on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from augsubset.sampling.keys import unpack
from augsubset.utils.torch_utils import sent

__all__ = ["TensorBatches", "as_fetched", "is_tensors"]


def is_tensors(dataset: Any, collate: Any) -> bool:
    """Return whether a dataset's batches are its tensors' rows: no item is ever needed."""
    return type(dataset) is TensorDataset and collate is default_collate


class TensorBatches(Dataset[Any]):
    """A ``TensorDataset`` addressed by keys: ``__getitems__`` returns a whole batch.

    The same batches as its items collated by the default function, several times faster, and
    without seeding: nothing is drawn. A DataLoader over it collates with :func:`as_fetched`.

    Args:
        dataset: The user's.
        resident: Whether the first tensor, uint8 images, moves to the device with :meth:`to`; the
            others stay on the host, where they are read.

    Raises:
        TypeError: If images are no uint8 and should be resident.
    """

    def __init__(self, dataset: TensorDataset, *, resident: bool) -> None:
        self.dataset = dataset
        self.resident = resident
        images, *others = dataset.tensors
        if resident and images.dtype != torch.uint8:
            raise TypeError(
                f"images must be uint8 to be resident, got {images.dtype}: floats are checked on "
                "the host."
            )
        self._length = len(dataset)
        self._images, self._others = images, others

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._length

    def to(self, device: torch.device) -> None:
        """Move resident images, if they are not there already.

        Raises:
            ValueError: If they do not fit in what is free on the device.
        """
        if not self.resident or self._images.device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._images.numel() > free:
                raise ValueError(
                    f"images must fit on {device} to be resident, got {self._images.numel()} "
                    f"bytes for {free} that are free. Leave resident=False."
                )
        self._images = self._images.to(device)

    def __getitems__(self, keys: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Return ``([images, labels, ...], keys)`` of a batch; an index outside raises."""
        rows = torch.tensor(keys, dtype=torch.int64)
        indices = unpack(rows)[2]
        at = sent(indices, self._images.device)
        others = [part.index_select(0, indices.to(part.device)) for part in self._others]
        return [self._images.index_select(0, at), *others], rows


def as_fetched(batch: Any) -> Any:
    """Return the batch: it is one already."""
    return batch
