"""The user's data behind the options of their own DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from augsubset.batch import map_tensors
from augsubset.sampling import (
    KeyedCollate,
    SubsetAugmentDataset,
    TensorBatches,
    as_fetched,
    is_tensors,
    loader_options,
)
from augsubset.utils.torch_utils import sent

__all__ = ["CheckedCollate", "Source", "opened", "started"]


# Bytes up to which a tensor goes in a worker's message. As shared memory of its own it would be
# opened anew for each batch, which takes longer than to copy so little.
_MOST_INLINE = 1 << 19
_DTYPES = {torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64}


class _Inline:
    """A small tensor in a worker's message."""

    __slots__ = ("array",)

    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.numpy()


def _is_small(part: Any) -> bool:
    is_plain = type(part) is Tensor and part.layout == torch.strided and not part.requires_grad
    on_host = is_plain and part.device.type == "cpu" and part.dtype in _DTYPES
    return on_host and part.nbytes <= _MOST_INLINE


class CheckedCollate:
    """Collate a batch with its keys, and check it: in a worker, where nobody waits for it.

    What it returns is for :func:`opened`.

    Args:
        collate: Returns ``(batch, keys)``.
        check: Refuses a batch, given it and its keys. Both must be picklable under spawn.
        pinned: Whether tensors will be pinned, which those in a message would not be.
    """

    def __init__(
        self, collate: Callable[[Any], Any], check: Callable[[Any, Tensor], None], pinned: bool
    ) -> None:
        self._collate, self._check, self._pinned = collate, check, pinned

    def __call__(self, rows: Any) -> tuple[Any, Any]:
        """Return the batch and its keys as they are sent."""
        batch, keys = self._collate(rows)
        self._check(batch, keys)
        if get_worker_info() is None:
            return batch, keys
        if type(batch) in (list, tuple) and not self._pinned:
            batch = type(batch)(_Inline(part) if _is_small(part) else part for part in batch)
        return batch, _Inline(keys)


def opened(fetched: Any) -> tuple[Any, Tensor]:
    """Return ``(batch, keys)`` of what a DataLoader yields."""
    batch, keys = fetched
    if type(batch) in (list, tuple):
        batch = type(batch)(_tensor_of(part) for part in batch)
    return batch, _tensor_of(keys)


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator over a DataLoader, by new workers where persistent ones died.

    The DataLoader itself would ask the dead in every later epoch, and raise.
    """
    workers = getattr(loader._iterator, "_workers", ())
    if not all(worker.is_alive() for worker in workers):
        loader._iterator = None
    return iter(loader)


def _tensor_of(part: Any) -> Any:
    return torch.from_numpy(part.array) if isinstance(part, _Inline) else part


class Source:
    """A dataset addressed by keys, and DataLoaders over it as the user's was configured.

    Args:
        loader: The user's.
        seed: Of what is drawn while a batch is fetched.
        resident: Whether its images are kept on the device.
        check: Refuses a batch, given it and its keys; called where batches are collated.

    Raises:
        TypeError: If the dataset is no uint8 ``TensorDataset`` and should be resident.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int,
        resident: bool,
        check: Callable[[Any, Tensor], None],
    ) -> None:
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
            collate: Callable[[Any], Any] = as_fetched
        elif resident:
            raise TypeError(
                "dataset must be a TensorDataset, with the default collate_fn, to be resident, got "
                f"{type(loader.dataset).__name__}. What its items go through would not run."
            )
        else:
            self._keyed = SubsetAugmentDataset(loader.dataset, seed=seed)
            collate = KeyedCollate(loader.collate_fn)
        if resident:
            self._options = {"batch_size": loader.batch_size}
        pinned = self._options.get("pin_memory", False)
        self._options["collate_fn"] = CheckedCollate(collate, check, pinned)

    def __len__(self) -> int:
        """Return the number of examples, as it was at construction."""
        return len(self._keyed)

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        number: int = self._options.get("num_workers", 0)
        return number

    @property
    def is_resident(self) -> bool:
        """Whether images are kept on the device."""
        return isinstance(self._keyed, TensorBatches) and self._keyed.resident

    def to(self, device: torch.device) -> None:
        """Move what is resident, if it is not there already."""
        if isinstance(self._keyed, TensorBatches):
            self._keyed.to(device)

    def moved(self, part: Any, device: torch.device) -> Any:
        """Return tensors of any nesting on the device, without waiting for it."""
        return map_tensors(lambda tensor: sent(tensor, device), part)

    def data_loader(
        self, sampler: Sampler[int] | None = None, *, drop_last: bool = False, **changes: Any
    ) -> DataLoader[Any]:
        """Return a DataLoader with the user's options: over everything in order, or a sampler's.

        What it yields is for :func:`opened`.

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

    def few(self, count: int) -> Iterator[Any]:
        """Yield the first two examples in a batch, then some from first to last, and those again.

        Fetched the way training will, in a worker where there are workers: a dataset that opens a
        file on first access must not do so here and then be forked. Each of the later ones fills a
        batch of two by itself, fetched once, so that neither its draws nor its padding depend on
        another. The same both times but for what a dataset draws from a generator of its own.

        Args:
            count: How many, or fewer where the dataset has no more.
        """
        n = len(self)
        size = min(2, n, self._options["batch_size"])
        count = min(count, n)
        spread = [at * (n - 1) // max(1, count - 1) for at in range(count)]
        twice: Any = [*range(size), *[index for index in spread * 2 for _ in range(size)]]
        loader = self.data_loader(
            twice,
            batch_size=size,
            num_workers=min(1, self.num_workers),
            persistent_workers=False,
        )
        for fetched in loader:
            yield opened(fetched)[0]
