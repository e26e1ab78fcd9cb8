"""The user's data behind the options of their own DataLoader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from augsubset.batches import map_tensors
from augsubset.sampling import (
    SubsetAugmentDataset,
    TensorBatches,
    as_fetched,
    is_tensors,
    loader_options,
)

__all__ = ["Source"]


class Source:
    """A dataset addressed by keys, and DataLoaders over it as the user's was configured.

    Args:
        loader: The user's.
        seed: Of what is drawn while a batch is fetched.
        resident: Whether its images are kept on the device.

    Raises:
        TypeError: If the dataset is no uint8 ``TensorDataset`` and should be resident.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int, resident: bool) -> None:
        self.dataset: Any = loader.dataset
        """The user's."""
        self._seed = seed
        self._options = loader_options(loader)
        self.owns_batches = loader.collate_fn is default_collate
        """Whether a fetched batch is memory of its own, as the default function's is."""
        self._keyed: SubsetAugmentDataset | TensorBatches
        if is_tensors(loader.dataset, loader.collate_fn):
            tensors: Any = loader.dataset
            self._keyed = TensorBatches(tensors, resident=resident)
            self._options["collate_fn"] = as_fetched
        elif resident:
            raise TypeError(
                "dataset must be a TensorDataset, with the default collate_fn, to be resident, got "
                f"{type(loader.dataset).__name__}. What its items go through would not run."
            )
        else:
            self._keyed = SubsetAugmentDataset(loader.dataset, seed=seed)
        if resident:
            self._options = {"batch_size": loader.batch_size, "collate_fn": as_fetched}

    def __len__(self) -> int:
        """Return the number of examples, as it was at construction."""
        return len(self._keyed)

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        number: int = self._options.get("num_workers", 0)
        return number

    def to(self, device: torch.device) -> None:
        """Move what is resident, if it is not there already."""
        if isinstance(self._keyed, TensorBatches):
            self._keyed.to(device)

    def moved(self, part: Any, device: torch.device) -> Any:
        """Return tensors of any nesting on the device; pinned ones without waiting for it."""
        pinned = self._options.get("pin_memory", False)
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=pinned), part)

    def data_loader(
        self, sampler: Sampler[int] | None = None, *, drop_last: bool = False, **changes: Any
    ) -> DataLoader[Any]:
        """Return a DataLoader with the user's options: over everything in order, or a sampler's.

        Its generator is ours, so that starting an epoch does not advance the caller's.
        """
        options = {**self._options, **changes}
        if sampler is None:
            # A pass over everything now and then: its workers must not linger in between.
            options["persistent_workers"] = False
        return DataLoader(
            self._keyed,
            sampler=sampler,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(self._seed),
            **options,
        )

    def few(self, count: int) -> tuple[Any, Tensor]:
        """Return the first examples ``(batch, keys)``, fetched the way training will.

        In a worker where there are workers: a dataset that opens a file on first access must not
        do so here and then be forked.
        """
        first: Any = range(min(count, len(self)))
        loader = self.data_loader(
            first, num_workers=min(1, self.num_workers), persistent_workers=False
        )
        batch, keys = next(iter(loader))
        return batch, keys
