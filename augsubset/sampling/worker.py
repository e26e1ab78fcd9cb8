"""Everything that runs in a worker process: examples fetched by key, collated, checked, sent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from augsubset.sampling.keys import MAX_INDEX
from augsubset.sampling.resident import ResidentRows
from augsubset.utils.checks import check_int
from augsubset.utils.rng import MAX_SEED, forked_rng, mix_seed, seed_cpu
from augsubset.utils.torch_utils import map_leaves

__all__ = [
    "KeyedCollate",
    "SubsetAugmentDataset",
    "TensorBatches",
    "check_map_style",
    "is_plain_tensors",
]

# Tensors up to this size travel inside a worker's message. As shared memory of their own they
# would be opened anew for every batch, which takes longer than copying so few bytes.
_MAX_INLINE_BYTES = 1 << 19
_INLINE_DTYPES = {
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
    *(torch.float32, torch.float64),
}


def check_map_style(dataset: Any) -> int:
    """Return the length of a dataset that can be addressed by key; raise for any other.

    Raises:
        TypeError: If it is iterable-style, or lacks ``__getitem__`` or ``__len__``.
        ValueError: If it is empty, or a :class:`SubsetAugmentDataset` is nested inside it.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "dataset must be map-style, got an IterableDataset. A selection needs to address "
            "examples by index; wrap the data in a Dataset with __getitem__ and __len__."
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(f"dataset must have __getitem__ and __len__, got {type(dataset).__name__}.")
    for inner in _find_nested(dataset):
        if isinstance(inner, SubsetAugmentDataset):
            raise ValueError(
                f"dataset must not contain a SubsetAugmentDataset, got one inside a "
                f"{type(dataset).__name__}. Its keys are not indices: wrap the Subset in it, "
                "not the other way round."
            )
    n = len(dataset)
    if not 0 < n <= MAX_INDEX:
        raise ValueError(
            f"dataset must hold at least one example, got an empty dataset (length {n})."
            if n == 0
            else f"dataset must hold at most 2**36 - 1 examples, got {n}."
        )
    return n


def _find_nested(dataset: Any) -> list[Any]:
    """Return the datasets inside Subset, ConcatDataset and their like, each of them once."""
    found: dict[int, Any] = {}  # by id: one may hold itself, or another that holds it
    outer = [dataset]
    while outer:
        each = outer.pop()
        is_joined = isinstance(each, ConcatDataset)
        for inner in each.datasets if is_joined else [getattr(each, "dataset", None)]:
            if inner is not None and id(inner) not in found:
                found[id(inner)] = inner
                outer.append(inner)
    return list(found.values())


class SubsetAugmentDataset(Dataset[tuple[Any, int]]):
    """A map-style dataset addressed by keys: ``[key] -> (item, key)``.

    Holds no selection, so a worker's copy never goes stale. The items of a batch are fetched under
    one seed derived from (seed, first key), for torch, numpy and random alike: random transforms
    inside the user's dataset give the same results whenever the batch is fetched, in any worker.
    The caller's own generators are left as they were. Each distinct index is fetched once per
    batch. Further rows get copies of the tensors, arrays, PIL images and containers in its item, on
    which a collate function may work in place; objects of other types are shared.

    Args:
        dataset: Any map-style dataset; its own ``__getitems__`` is used if it has one. This
            wrapper must be the outermost one: a ``Subset`` goes inside.
        seed: Distinguishes runs.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If it is empty or already wrapped.

    Cost:
        Seeding takes about 80 microseconds per batch, 7 in a worker.
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
        """Return one ``(item, key)`` per key, in order.

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
        with _seed_batch(mix_seed(self.seed, int(keys[0]))), _raise_stop_iteration("dataset"):
            if getattr(self.dataset, "__getitems__", None) is not None:
                items = self.dataset.__getitems__(distinct)
            else:
                items = [self.dataset[index] for index in distinct]
        if len(items) != len(distinct):
            raise ValueError(
                f"dataset must return one item per index, got {len(items)} for {len(distinct)} "
                "from its __getitems__."
            )
        by_index = dict(zip(distinct, items, strict=True))
        rows, used = [], set()
        for index, key in zip(indices, keys, strict=True):
            item = by_index[index]
            rows.append((map_leaves(_copy_leaf, item) if index in used else item, int(key)))
            used.add(index)
        return rows


def _copy_leaf(leaf: Any) -> Any:
    """Return a copy of a tensor, or of what says how to copy it, as arrays and PIL images do.

    deepcopy would copy all that a tensor is a view of: of a row, the whole dataset.
    """
    if isinstance(leaf, Tensor):
        return leaf.clone()
    return copy.copy(leaf) if hasattr(leaf, "__copy__") else leaf


@contextmanager
def _raise_stop_iteration(where: str) -> Iterator[None]:
    """Raise RuntimeError for a StopIteration, which a DataLoader takes for the end of the epoch."""
    try:
        yield
    except StopIteration:
        # Not `from error`: contextlib takes that for its own StopIteration, and lets it pass.
        raise RuntimeError(f"{where} must not raise StopIteration while a batch is made.") from None


@contextmanager
def _seed_batch(seed: int) -> Iterator[None]:
    """Seed all generators for a block, and restore them unless this is a worker of ours."""
    if get_worker_info() is None:
        with forked_rng(seed):
            yield
    else:
        seed_cpu(seed)
        yield


def is_plain_tensors(dataset: Any, collate: Any) -> bool:
    """Return whether a batch is nothing but rows of the dataset's tensors."""
    return type(dataset) is TensorDataset and collate is default_collate


class TensorBatches(Dataset[Any]):
    """A ``TensorDataset`` addressed by keys: ``__getitems__`` returns a whole batch.

    Equals collating its items with the default function, but several times faster: one gather per
    tensor. Nothing is random, so nothing is seeded.

    Args:
        dataset: The user's.
        resident: Keep the first tensor, uint8 images, on the device :meth:`to` moves it to. The
            others stay on the CPU, where they are read.

    Raises:
        TypeError: If images should be resident and are not uint8.
    """

    def __init__(self, dataset: TensorDataset, *, resident: bool) -> None:
        self.dataset = dataset
        self.resident = resident
        self._length = len(dataset)
        self._seen: Any = None
        self.refresh()

    def refresh(self) -> bool:
        """Adopt tensors that differ from those seen last; return whether there were any.

        They may have been assigned anew, or resident images changed in place, which the copy on
        the device does not show. Changes in place of the others need nothing.
        """
        tensors = self.dataset.tensors
        images, *others = tensors
        version = 0 if images.is_inference() or not self.resident else images._version
        if self._seen is not None and self._seen[0] is tensors and self._seen[1] == version:
            return False
        if self.resident and images.dtype != torch.uint8:
            raise TypeError(
                f"images must be uint8 to be resident, got {images.dtype}: the range of floats "
                "is checked on the CPU."
            )
        self._seen = (tensors, version)
        self._images, self._others = images, others
        return True

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._length

    def to(self, device: torch.device) -> None:
        """Move resident images, unless they are on that device already.

        Raises:
            ValueError: If they do not fit into the device's free memory.
        """
        if not self.resident or self._images.device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._images.numel() > free:
                raise ValueError(
                    f"images must fit on {device} to be resident, got {self._images.numel()} "
                    f"bytes for {free} bytes that are free. Leave resident=False."
                )
        self._images = self._images.to(device, memory_format=torch.contiguous_format)

    def __getitems__(self, keys: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Return ``([images, labels, ...], keys)``; an index outside the dataset raises."""
        rows = _make_tensor(np.array(keys, np.int64))  # a fifth of the time of torch.tensor
        indices = rows & MAX_INDEX
        others = [part.index_select(0, indices.to(part.device)) for part in self._others]
        is_on_cpu = self._images.device.type == "cpu"
        images = (
            self._images.index_select(0, indices)
            if is_on_cpu
            else ResidentRows(self._images, indices)
        )
        return [images, *others], rows


class KeyedCollate:
    """Collate ``[(item, key), ...]`` to ``(collate(items), keys)``, and check the result.

    Runs in the worker where there are workers, so that the training process does not wait for it:
    there, mapping and reading a batch of floats takes a few percent of its time.

    Args:
        collate: The user's own; ``None`` for :class:`TensorBatches`, whose batches arrive
            collated. Must be picklable if workers are spawned.
        check: Called with each batch, its keys, and its first item (``None`` if there are none);
            raises if the batch cannot be used.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any] | None,
        check: Callable[[Any, Tensor, Any], None] | None = None,
    ) -> None:
        self._collate, self._check = collate, check

    def __call__(self, rows: Any) -> tuple[Any, Tensor]:
        """Return the batch, and the int64 keys ``(B,)`` of its rows."""
        first = None
        if self._collate is None:
            batch, keys = rows
        else:
            items, numbers = zip(*rows, strict=True)
            first = items[0]
            with _raise_stop_iteration("collate_fn"):
                batch = self._collate(list(items))
            keys = _make_tensor(np.array(numbers, np.int64))
        if self._check is not None:
            self._check(batch, keys, first)
        if get_worker_info() is None:
            return batch, keys
        if type(batch) in (list, tuple):
            batch = type(batch)(_InlineTensor(p) if _is_small(p) else p for p in batch)
        return batch, _InlineTensor(keys)  # type: ignore[return-value]


class _InlineTensor:
    """A small tensor whose values travel in the message itself; it arrives as a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.numpy()

    def __reduce__(self) -> Any:
        return _make_tensor, (self._array,)


def _make_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array)


def _is_small(part: Any) -> bool:
    is_plain = type(part) is Tensor and part.layout == torch.strided and not part.requires_grad
    is_on_cpu = is_plain and part.device.type == "cpu" and part.dtype in _INLINE_DTYPES
    return is_on_cpu and part.nbytes <= _MAX_INLINE_BYTES
