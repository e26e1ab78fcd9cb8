"""Read a user's DataLoader, so that it can be rebuilt around our dataset and sampler."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from augsubset.sampling.dataset import check_map_style

__all__ = ["LoaderOrder", "loader_options", "loader_order", "sharded"]


class LoaderOrder(NamedTuple):
    """What a DataLoader's sampler says.

    Args:
        shuffle: Whether it shuffles.
        num_replicas: Ranks that share its order; ``None`` where it does not shard.
        rank: This one, likewise.
        drop_last: Whether sharding drops an uneven tail.
    """

    shuffle: bool
    num_replicas: int | None = None
    rank: int | None = None
    drop_last: bool = False


def loader_order(loader: Any) -> LoaderOrder:
    """Return what there is to take over of a DataLoader's order; refuse any other.

    Raises:
        TypeError: If it is no plain DataLoader over a map-style dataset. A subclass may do anything
            in its ``__iter__``, which rebuilding would lose in silence.
        ValueError: If it has a sampler or batch sampler of its own, or does not batch.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch DataLoader, got {type(loader).__name__}.")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "loader must be over a map-style dataset, got an IterableDataset. A selection needs "
            "to address examples by index."
        )
    if type(loader) is not DataLoader:
        raise TypeError(
            f"loader must be a plain torch DataLoader, got the subclass {type(loader).__name__}. "
            "It is rebuilt around our sampler, which would lose what the subclass adds. One that "
            "accelerate prepared goes through augsubset.integrations.accelerate.prepare."
        )
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(
            "loader must not have a batch_sampler of its own or batch_size=None, got "
            f"batch_sampler={type(loader.batch_sampler).__name__}. Pass batch_size instead: the "
            "subset decides which rows there are."
        )
    sampler: Any = loader.sampler
    examples = check_map_style(loader.dataset)
    if type(sampler) is DistributedSampler:
        if len(sampler.dataset) != examples:  # type: ignore[arg-type]
            raise ValueError(
                "the DistributedSampler must be of the loader's own dataset, got one of "
                f"{len(sampler.dataset)} examples for {examples}."  # type: ignore[arg-type]
            )
        return LoaderOrder(sampler.shuffle, sampler.num_replicas, sampler.rank, sampler.drop_last)
    if type(sampler) not in (SequentialSampler, RandomSampler):
        raise ValueError(
            f"loader must not have a sampler of its own, got sampler={type(sampler).__name__}. "
            "Use shuffle=True or False: the subset decides which rows there are."
        )
    replaces = isinstance(sampler, RandomSampler) and sampler.replacement
    draws = len(sampler)
    if replaces or draws != examples:
        raise ValueError(
            f"loader must draw every example once, got a sampler of {draws} draws "
            f"{'with replacement ' if replaces else ''}for {examples} examples. Pass "
            "shuffle=True, and a Subset of the dataset for fewer examples."
        )
    return LoaderOrder(isinstance(sampler, RandomSampler))


def loader_options(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return what a DataLoader was given but for its dataset, order, generator, collation."""
    names = [
        "batch_size",
        "num_workers",
        "pin_memory",
        "timeout",
        "worker_init_fn",
        "multiprocessing_context",
        "prefetch_factor",
        "persistent_workers",
        "in_order",  # since torch 2.6
    ]
    return {name: getattr(loader, name) for name in names if hasattr(loader, name)}


def sharded(loader: DataLoader[Any], num_replicas: int, rank: int) -> DataLoader[Any]:
    """Return a DataLoader of the same data and options for one share, as a framework says.

    Raises:
        TypeError: As :func:`loader_order`.
        ValueError: Likewise, or if it is sharded already.
    """
    order = loader_order(loader)
    if order.num_replicas is not None:
        raise ValueError(
            f"loader must not be sharded already, got a DistributedSampler of "
            f"{order.num_replicas} shares: each would be dealt once more."
        )
    sampler: DistributedSampler[Any] = DistributedSampler(
        loader.dataset, num_replicas, rank, shuffle=order.shuffle, drop_last=loader.drop_last
    )
    return DataLoader(
        loader.dataset,
        sampler=sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        **loader_options(loader),
    )
