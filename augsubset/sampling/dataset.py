"""The user's dataset, addressed by keys; and the collate function that carries the keys along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, get_worker_info

from augsubset.sampling.keys import MAX_INDEX
from augsubset.utils.checks import check_int
from augsubset.utils.rng import MAX_SEED, forked_rng, mix_seed, seed_host

__all__ = ["KeyedCollate", "SubsetAugmentDataset", "check_map_style"]


def check_map_style(dataset: Any) -> int:
    """Return the length of a dataset that we can wrap; refuse any other with the reason.

    Raises:
        TypeError: If it is iterable-style, or lacks ``__getitem__`` or ``__len__``.
        ValueError: If it is empty, or holds one of our wrapped datasets inside.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "dataset must be map-style, got an IterableDataset. A selection needs to address "
            "examples by index; wrap the data in a Dataset with __getitem__ and __len__."
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(f"dataset must have __getitem__ and __len__, got {type(dataset).__name__}.")
    for inner in _wrapped_by(dataset):
        if isinstance(inner, SubsetAugmentDataset):
            raise ValueError(
                f"dataset must not hold a SubsetAugmentDataset inside, got one in a "
                f"{type(dataset).__name__}. Its keys are not indices: wrap the Subset in it, "
                "not it in the Subset."
            )
    n = len(dataset)
    if not 0 < n <= MAX_INDEX:
        raise ValueError(
            f"dataset must hold at least one example, got an empty dataset (length {n})."
            if n == 0
            else f"dataset must hold at most 2**36 - 1 examples, got {n}."
        )
    return n


def _wrapped_by(dataset: Any) -> Iterator[Any]:
    """Yield what Subset, ConcatDataset and their like hold, all the way down."""
    inner = [getattr(dataset, "dataset", None)]
    if isinstance(dataset, ConcatDataset):
        inner = list(dataset.datasets)
    for held in inner:
        if held is not None:
            yield held
            yield from _wrapped_by(held)


class SubsetAugmentDataset(Dataset[tuple[Any, int]]):
    """A map-style dataset addressed by keys: ``[key] -> (item, key)``.

    Holds no selection: a worker's copy never goes stale. A batch's items are fetched under one
    seed derived from (seed, its first key), for torch, numpy and random alike, so that random
    transforms inside the user's dataset repeat with the batch and are the same in any worker; the
    caller's own generators are left as they were. Each distinct index is fetched once a batch and
    the item shared among its rows: a collate function must not modify items in place.

    Args:
        dataset: Any map-style dataset; its own ``__getitems__`` is used where it has one. It must
            be wrapped as the outermost: a ``Subset`` goes inside.
        seed: Distinguishes runs.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If it is empty or wrapped already.

    Cost:
        About 80 microseconds a batch for the seeding, 7 in a worker.
    """

    def __init__(self, dataset: Any, *, seed: int = 0) -> None:
        if isinstance(dataset, SubsetAugmentDataset):
            raise ValueError(
                "dataset must not be wrapped already, got a SubsetAugmentDataset. Use it as is."
            )
        self._length = check_map_style(dataset)
        self.dataset = dataset
        self.seed = check_int("seed", seed, 0, MAX_SEED)

    def __len__(self) -> int:
        """Return the number of examples in the user's dataset, whatever is selected."""
        return self._length

    def __getitem__(self, key: int) -> tuple[Any, int]:
        """Return ``(item, key)``; a batch of one."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[tuple[Any, int]]:
        """Return one ``(item, key)`` a key, in order.

        Raises:
            IndexError: If a key's index is outside the dataset.
        """
        if not keys:
            return []
        indices = [int(key) & MAX_INDEX for key in keys]
        if max(indices) >= self._length or min(keys) < 0:
            raise IndexError(
                f"keys must address examples 0..{self._length - 1}, got indices up to "
                f"{max(indices)} and keys from {min(keys)}."
            )
        distinct = list(dict.fromkeys(indices))
        with _seeded(mix_seed(self.seed, int(keys[0]))):
            if getattr(self.dataset, "__getitems__", None) is not None:
                items = self.dataset.__getitems__(distinct)
            else:
                items = [self.dataset[index] for index in distinct]
        if len(items) != len(distinct):
            raise ValueError(
                f"dataset must return one item an index, got {len(items)} for {len(distinct)} "
                "from its __getitems__."
            )
        by_index = dict(zip(distinct, items, strict=True))
        return [(by_index[index], int(key)) for index, key in zip(indices, keys, strict=True)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed for a block; afterwards all is as before, but in a worker, where nobody else draws."""
    if get_worker_info() is None:
        with forked_rng(seed):
            yield
    else:
        seed_host(seed)
        yield


class KeyedCollate:
    """Collate in the worker: ``[(item, key), ...] -> (user_collate(items), keys (B,) int64)``.

    Args:
        collate: The user's own; picklable under spawn, as ever.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
        """Return the collated items and the keys of the rows that went in."""
        items, keys = zip(*rows, strict=True)
        return self.collate(list(items)), torch.tensor(keys, dtype=torch.int64)
