"""DataLoaders that visit examples in dataset order, all of them or a given subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset

from augsubset.utils.torch_utils import rebuild_loader

__all__ = ["check_indices", "make_ordered_loader", "restrict_loader"]


def make_ordered_loader(data: Any, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a DataLoader over a whole dataset in order; one that is given is checked.

    Raises:
        ValueError: If a given DataLoader shuffles, drops or batches in its own way.
    """
    if not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    # With a custom batch_sampler, sampler is a SequentialSampler all the same.
    is_ordered = isinstance(data.sampler, SequentialSampler) and data.batch_size is not None
    if not is_ordered or data.drop_last or len(data.sampler) != len(data.dataset):  # type: ignore[arg-type]
        raise ValueError(
            "data must be complete and in dataset order, got a DataLoader that shuffles, drops "
            "examples or has its own batch sampler. Pass the dataset, or a DataLoader with "
            "shuffle=False, drop_last=False."
        )
    return data


def restrict_loader(loader: DataLoader[Any], indices: Tensor) -> DataLoader[Any]:
    """Return a DataLoader with the same settings over some of the examples."""
    subset = Subset(loader.dataset, indices.tolist())
    return rebuild_loader(loader, dataset=subset, persistent_workers=False)


def check_indices(indices: Sequence[int] | Tensor, n: int) -> Tensor:
    """Return dataset indices as int64 on the CPU.

    Raises:
        TypeError: If they are not a list of ints.
        ValueError: If there are none, one is out of range or one is repeated.
    """
    checked = indices.cpu() if isinstance(indices, Tensor) else torch.as_tensor(np.asarray(indices))
    if not checked.numel():
        raise ValueError("indices must name at least one example, got none.")
    if checked.ndim != 1 or checked.is_floating_point() or checked.dtype == torch.bool:
        raise TypeError(
            f"indices must be a list of ints, got shape {tuple(checked.shape)}, {checked.dtype}."
        )
    checked = checked.long()
    if not 0 <= int(checked.min()) <= int(checked.max()) < n:
        raise ValueError(
            f"indices must be in 0..{n - 1}, got {int(checked.min())} to {int(checked.max())}."
        )
    if len(torch.unique(checked)) != len(checked):
        raise ValueError("indices must be distinct, got repeats.")
    return checked
