"""The user's DataLoader: read, and rebuilt around a dataset that is addressed by keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)

from augsubset.sampling.drawn import DrawnOrder, ShardedSampler
from augsubset.sampling.worker import (
    KeyedCollate,
    SubsetAugmentDataset,
    TensorBatches,
    check_map_style,
    is_plain_tensors,
)
from augsubset.utils.checks import AugsubsetError
from augsubset.utils.rng import MAX_SEED
from augsubset.utils.torch_utils import map_tensors, read_options, rebuild_loader

# What a subclass of DataLoader may define without changing what it yields.
_HARMLESS = {
    *("__annotations__", "__doc__", "__firstlineno__", "__init__", "__module__", "__orig_bases__"),
    *("__parameters__", "__qualname__", "__static_attributes__", "__repr__"),
}

__all__ = ["LoaderOrder", "Source", "fresh_iterator", "read_order", "shard_loader"]
__all__ += ["unpack_batch_sampler"]


class LoaderOrder(NamedTuple):
    """In what order, and in how many shares, a DataLoader visits its dataset.

    Args:
        shuffle: Whether it shuffles.
        num_replicas: Ranks that share the order; ``None`` if the loader is not sharded.
        rank: This one; ``None`` likewise.
        drop_last: Whether sharding drops an uneven tail.
        seed: Of its generator or DistributedSampler; ``None`` if it was given neither.
    """

    shuffle: bool
    num_replicas: int | None = None
    rank: int | None = None
    drop_last: bool = False
    seed: int | None = None

    def share_among(self, world_size: int, rank: int, num_examples: int) -> LoaderOrder:
        """Return the order as several ranks share it: as it says, otherwise evenly.

        Raises:
            ValueError: If there are fewer examples than ranks, or the DistributedSampler says that
                there is one share only.
        """
        if num_examples < world_size:
            raise ValueError(
                f"dataset must hold at least one example per rank, got {num_examples} for "
                f"{world_size} ranks."
            )
        if self.num_replicas is None:
            return self._replace(num_replicas=world_size, rank=rank)
        if self.num_replicas == 1:
            raise ValueError(
                f"loader must be sharded among the {world_size} ranks, got a DistributedSampler "
                "with num_replicas=1: each rank would train on everything."
            )
        return self


def unpack_batch_sampler(loader: Any) -> Any:
    """Return a DataLoader whose plain BatchSampler was given as the arguments that would make it.

    Anything else is returned as it is.
    """
    if type(loader) is not DataLoader or loader.batch_size is not None:
        return loader
    given: Any = loader.batch_sampler
    if type(given) is not BatchSampler:
        return loader
    same = {name: getattr(given, name) for name in ("sampler", "batch_size", "drop_last")}
    return rebuild_loader(loader, **same)


def read_order(loader: Any) -> LoaderOrder:
    """Return a DataLoader's order; raise if the loader cannot be rebuilt.

    Raises:
        TypeError: If it is not a plain DataLoader over a map-style dataset. A subclass may do
            anything in its ``__iter__``, which rebuilding would silently lose.
        ValueError: If it has a batch sampler of its own, or does not batch.
    """
    if not isinstance(loader, DataLoader):
        kind = type(loader)
        hint = ""
        if kind.__module__.startswith("lightning"):
            hint = " Wrap the DataLoader before fabric.setup_dataloaders()."
        elif isinstance(getattr(loader, "loader", None), DataLoader):
            hint = " Pass its inner DataLoader, .loader."
        raise TypeError(f"loader must be a torch DataLoader, got {kind.__name__}.{hint}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "loader must be over a map-style dataset, got an IterableDataset. A selection needs "
            "to address examples by index."
        )
    kind = type(loader)
    added = takewhile(lambda each: each is not DataLoader, kind.__mro__)
    if any(vars(each).keys() - _HARMLESS for each in added):
        raise TypeError(
            "loader must be a plain torch DataLoader, got the subclass "
            f"{kind.__module__}.{kind.__name__}. It is rebuilt around our sampler, which would "
            "lose what the subclass adds. If accelerate prepared it, use "
            "augsubset.integrations.accelerate.prepare."
        )
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(
            "loader must not have a batch_sampler of its own or batch_size=None, got "
            f"batch_sampler={type(loader.batch_sampler).__name__}. Pass batch_size instead: which "
            "rows an epoch has depends on the selection. LoaderOptions(layout='grouped') puts an "
            "example's copies into one batch."
        )
    if not getattr(loader, "in_order", True):
        raise ValueError(
            "loader must yield batches in order, got in_order=False: a checkpoint could not say "
            "which batches were consumed."
        )
    sampler: Any = loader.sampler
    n = check_map_style(loader.dataset)
    if type(sampler) is DistributedSampler:
        sharded = len(sampler.dataset)  # type: ignore[arg-type]
        if sharded != n:
            raise ValueError(
                "the DistributedSampler must be over the loader's own dataset, got one of "
                f"{sharded} examples for {n}."
            )
        seed = _find_seed(loader, sampler.seed)
        shard = (sampler.num_replicas, sampler.rank, sampler.drop_last)
        return LoaderOrder(sampler.shuffle, *shard, seed)
    if isinstance(sampler, ShardedSampler):
        return LoaderOrder(False, *sampler.shard, sampler.seed)
    return LoaderOrder(type(sampler) is RandomSampler, seed=_find_seed(loader))


def _find_own_sampler(loader: DataLoader[Any]) -> Sampler[int] | None:
    """Return the sampler that has to draw the order, ``None`` if every example is visited once."""
    sampler: Any = loader.sampler
    if isinstance(sampler, ShardedSampler):
        return sampler.sampler
    is_plain = type(sampler) in (SequentialSampler, RandomSampler)
    visits_each_once = (
        is_plain
        and not getattr(sampler, "replacement", False)
        and len(sampler) == check_map_style(loader.dataset)
    )
    return None if visits_each_once or type(sampler) is DistributedSampler else sampler


def _find_seed(loader: DataLoader[Any], seed: int | None = None) -> int | None:
    """Return the seed of a generator that the loader or its sampler was given, else another.

    A generator tells what it was seeded with; nothing is drawn from it.
    """
    for generator in (loader.generator, getattr(loader.sampler, "generator", None)):
        if isinstance(generator, torch.Generator):  # a sampler may hold one of numpy's
            seed = generator.initial_seed()
            break
    return None if seed is None else seed & MAX_SEED


def shard_loader(loader: DataLoader[Any], num_replicas: int, rank: int) -> DataLoader[Any]:
    """Return a DataLoader with the same data, options and seed for one share of the order.

    Raises:
        TypeError: As :func:`read_order`.
        ValueError: As :func:`read_order`, or if the loader is sharded already.
    """
    order = read_order(loader)
    if order.num_replicas is not None:
        raise ValueError(
            f"loader must not be sharded already, got a DistributedSampler with "
            f"num_replicas={order.num_replicas}: each share would be sharded again."
        )
    seed = torch.initial_seed() & MAX_SEED if order.seed is None else order.seed
    own = _find_own_sampler(loader)
    sampler: Any = (
        DistributedSampler(
            loader.dataset, num_replicas, rank, order.shuffle, seed, drop_last=loader.drop_last
        )
        if own is None
        else ShardedSampler(own, num_replicas, rank, loader.drop_last, seed)
    )
    return rebuild_loader(loader, sampler=sampler)


class Source:
    """A dataset addressed by keys, and DataLoaders over it with the user's own options.

    Every loader made here yields ``(batch, keys)``.

    Args:
        loader: The user's.
        seed: Seeds random transforms inside the dataset.
        resident: Whether the images stay on the device.
        check: Called with each batch, its keys and its first item, where batches are collated.

    Attributes:
        dataset: The user's.
        order: Draws the originals of an epoch, if the user's DataLoader has a sampler of its own.
        owns_batches: Whether a fetched batch shares no memory with the dataset, so that rows may
            be replaced in place.

    Raises:
        TypeError: If ``resident`` and the dataset is not a uint8 ``TensorDataset``; as
            :class:`DrawnOrder`.
        ValueError: As :class:`DrawnOrder`.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int,
        resident: bool,
        check: Callable[[Any, Tensor, Any], None],
    ) -> None:
        self.dataset: Any = loader.dataset
        own = _find_own_sampler(loader)
        self.order = None if own is None else DrawnOrder(own, check_map_style(self.dataset))
        self.owns_batches = loader.collate_fn is default_collate
        self._seed = seed
        self._sampler, self._epoch_read = own or loader.sampler, 0
        self._options = read_options(loader)
        self._keyed: SubsetAugmentDataset | TensorBatches
        if is_plain_tensors(loader.dataset, loader.collate_fn):
            tensors: Any = loader.dataset
            self._keyed = TensorBatches(tensors, resident=resident)
            collate = KeyedCollate(None, check)
        elif resident:
            raise TypeError(
                "dataset must be a TensorDataset, with the default collate_fn, to be resident, got "
                f"{type(loader.dataset).__name__}: its __getitem__ would not run."
            )
        else:
            self._keyed = SubsetAugmentDataset(loader.dataset, seed=seed)
            collate = KeyedCollate(loader.collate_fn, check)
        if resident:
            self._options = {"batch_size": loader.batch_size}
        self._options["collate_fn"] = collate

    def __len__(self) -> int:
        """Return the number of examples, as it was at construction."""
        return len(self._keyed)

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        number: int = self._options.get("num_workers", 0)
        return number

    @property
    def candidates(self) -> Tensor:
        """Examples that training may visit: dataset indices, ascending."""
        return torch.arange(len(self)) if self.order is None else self.order.candidates

    @property
    def is_resident(self) -> bool:
        """Whether the images stay on the device."""
        return isinstance(self._keyed, TensorBatches) and self._keyed.resident

    def to(self, device: torch.device) -> None:
        """Move resident images to a device, unless they are there already."""
        if isinstance(self._keyed, TensorBatches):
            self._keyed.to(device)

    def read_epoch(self) -> int | None:
        """Return the epoch that the user's sampler was set to since it was read last."""
        epoch = getattr(self._sampler, "epoch", None)
        if not isinstance(epoch, int):
            return None
        is_new, self._epoch_read = epoch != self._epoch_read, epoch
        return epoch if is_new else None

    def refresh(self, loader: DataLoader[Any]) -> bool:
        """Adopt tensors that were newly assigned to the dataset; return whether there were any.

        Args:
            loader: Made here; its persistent workers, which hold the old ones, are given up.

        Raises:
            AugsubsetError: If the dataset's length has changed since construction.
        """
        n = len(self.dataset)
        if n != len(self):
            raise AugsubsetError(
                f"the dataset must keep its length {len(self)}, got {n}: indices would no "
                "longer mean the same examples. Construct a new loader."
            )
        is_new = isinstance(self._keyed, TensorBatches) and self._keyed.refresh()
        if is_new:
            loader._iterator = None
        return is_new

    def set_seed(self, seed: int) -> None:
        """Seed what is fetched by loaders made from now on."""
        self._seed = seed
        if isinstance(self._keyed, SubsetAugmentDataset):
            self._keyed = SubsetAugmentDataset(self.dataset, seed=seed)

    def make_loader(
        self, sampler: Sampler[int] | None = None, *, drop_last: bool = False, **changes: Any
    ) -> DataLoader[Any]:
        """Return a DataLoader with the user's options: all examples in order, or a sampler's.

        It has a separate generator, so that starting an epoch does not advance the caller's.
        """
        options = {**self._options, **changes}
        if sampler is None:
            # An occasional pass over everything: its workers must not stay in between.
            options["persistent_workers"] = False
        return DataLoader(
            self._keyed,
            sampler=sampler,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(self._seed),
            **options,
        )

    def fetch_samples(self, count: int) -> Iterator[Any]:
        """Yield a batch of the first two examples, then evenly spaced ones, then these again.

        As ``(batch, keys)``, like every loader made here.

        They are fetched as in training, in a worker where there are workers: a dataset that opens
        a file on first access must not do so here and be forked afterwards. Each evenly spaced
        example fills a batch by itself, so that neither its random numbers nor its padding depend
        on another. Both passes agree, unless the dataset draws from a generator of its own. What
        is random is the same whatever the seed of the run, which a checkpoint may change.

        Args:
            count: Number of evenly spaced examples, or fewer if the dataset is smaller.
        """
        candidates = self.candidates
        n = len(candidates)
        size = min(2, n, self._options["batch_size"])
        count = min(count, n)
        spread = [place * (n - 1) // max(1, count - 1) for place in range(count)]
        places = [*range(size), *[place for place in spread * 2 for _ in range(size)]]
        indices: Any = candidates[places].tolist()
        seed = self._seed
        self.set_seed(0)
        loader = self.make_loader(
            indices,
            batch_size=size,
            num_workers=min(1, self.num_workers),
            persistent_workers=False,
        )
        self.set_seed(seed)
        yield from ((map_tensors(Tensor.cpu, batch), keys) for batch, keys in loader)


def fresh_iterator(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator over a DataLoader, with new workers if persistent ones have died.

    The DataLoader itself would reuse the dead ones in every later epoch, and raise.
    """
    workers = getattr(loader._iterator, "_workers", ())
    if not all(worker.is_alive() for worker in workers):
        loader._iterator = None
    return iter(loader)
