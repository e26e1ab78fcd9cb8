"""Adapter for Hugging Face accelerate: sharding, gradient accumulation and checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import read_order, shard_loader
from augsubset.utils.checks import AugsubsetError
from augsubset.utils.torch_utils import rebuild_loader

try:
    from accelerate.data_loader import (
        BatchSamplerShard,
        DataLoaderAdapter,
        DataLoaderDispatcher,
        DataLoaderStateMixin,
        SeedableRandomSampler,
    )
    from accelerate.state import GradientState
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.accelerate needs accelerate: pip install 'augsubset[accelerate]'."
    ) from error

__all__ = ["prepare"]


class _Prepared(DataLoaderStateMixin):  # type: ignore[misc]
    """Proxy of a loader that tells accelerate which batch is the last of an epoch.

    Args:
        loader: Ours.
        accelerator: Whose schedulers are compared with the loader's length.
        plain_lengths: Batches of the DataLoader that it was made of, on all ranks and on each.
    """

    def __init__(
        self, loader: SubsetAugmentLoader, accelerator: Any, plain_lengths: set[int]
    ) -> None:
        self.loader = loader
        self.schedulers = getattr(accelerator, "_schedulers", [])
        self.plain_lengths = plain_lengths
        self.has_warned = False
        self.gradient_state = GradientState()
        self.dataset = loader.dataset
        self.total_batch_size = loader.batch_size * loader.num_replicas
        self.reset()

    def __iter__(self) -> Iterator[Any]:
        total = self.loader.num_batches_left
        self.check_schedulers()
        self.begin()
        try:
            for number, batch in enumerate(self.loader, 1):
                self.end_of_dataloader = number == total
                if not self.has_warned:
                    self.check_schedulers()
                yield batch
        finally:
            self.end()

    def check_schedulers(self) -> None:
        """Warn once of a scheduler as long as the plain loader, or at its end before training.

        Accelerate would silently keep the last learning rate.
        """
        for prepared in self.schedulers:
            factor = 1 if prepared.split_batches else self.loader.num_replicas
            length, scheduler = len(self) * factor, prepared.scheduler
            total = getattr(scheduler, "total_steps", None)
            if total is None or self.has_warned or not prepared.step_with_optimizer:
                continue
            is_plain = total % length and not all(total % each for each in self.plain_lengths)
            if is_plain or scheduler._step_count > total:
                self.has_warned = True
                warnings.warn(
                    f"{type(scheduler).__name__} has total_steps={total}, but accelerate steps it "
                    f"{length} times in each epoch of this loader. Construct the scheduler after "
                    "augsubset's prepare(), with num_epochs * len(loader)"
                    f"{' * accelerator.num_processes' if factor > 1 else ''} steps.",
                    stacklevel=3,
                )

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader, unless accelerate means one of its own classes."""
        if name.startswith("_") or name == "loader":  # missing while a copy is being made
            raise AttributeError(name)
        if name == "sampler":  # which skip_first_batches asks for
            raise AttributeError(
                "skip_first_batches() must not be called on this loader: accelerator.load_state() "
                "skipped what was consumed. Remove the call."
            )
        return getattr(self.loader, name)


def prepare(
    accelerator: Any,
    loader: DataLoader[Any],
    model: nn.Module,
    augment: Callable[..., Any],
    **options: Any,
) -> Any:
    """Return a :class:`~augsubset.SubsetAugmentLoader` over a DataLoader that accelerate shards.

    accelerate determines the number of shards, this process's shard, the rows of each step and,
    with ``split_batches``, the batch size. Only an uneven tail differs: it is filled up with rows
    of weight 0, or with further copies where rows are not weighted, instead of repeated rows.
    The last batch of an epoch ends a gradient accumulation. ``save_state`` saves the loader's
    state, and ``load_state`` resumes, within an epoch too, without ``skip_first_batches``.

    Args:
        accelerator: An ``accelerate.Accelerator``.
        loader: A DataLoader, prepared by accelerate or not.
        model: The model, prepared or not. Call this before ``accelerator.prepare``: a scheduler
            then has the length of this loader, times ``accelerator.num_processes``.
        augment: The strong policy.
        options: Further arguments of :class:`~augsubset.SubsetAugmentLoader`.

    Returns:
        A proxy with all attributes of the loader. ``accelerator.prepare`` returns it unchanged.

    Raises:
        TypeError: If ``accelerator`` is not an Accelerator, or an argument of the loader is of the
            wrong type.
        ValueError: If accelerate dispatches batches, the data is sharded already, or an argument
            of the loader is out of range.
    """
    if isinstance(accelerator, type) or not hasattr(accelerator, "prepare_data_loader"):
        name = getattr(accelerator, "__name__", type(accelerator).__name__)
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {name}.")
    shard = _take_over_shard(accelerator, loader)
    ours = SubsetAugmentLoader(shard, model, augment, **options)
    if accelerator not in _states:
        _states[accelerator] = _States()
        accelerator.register_for_checkpointing(_states[accelerator])
    _states[accelerator].add(ours)
    return _Prepared(ours, accelerator, {len(loader), len(shard)})


class _States:
    """The states of all live loaders of an accelerator, for its checkpoints.

    An accelerator never releases what is registered with it. Weak references let a loader, its
    model and its data be freed when the caller drops it, as when a batch size does not fit.
    """

    def __init__(self) -> None:
        self._loaders: list[ReferenceType[SubsetAugmentLoader]] = []

    def add(self, loader: SubsetAugmentLoader) -> None:
        self._loaders.append(ref(loader))

    @property
    def _live_loaders(self) -> list[SubsetAugmentLoader]:
        return [loader for each in self._loaders if (loader := each()) is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"loaders": [loader.state_dict() for loader in self._live_loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        states = state["loaders"]
        if len(states) != len(self._live_loaders):
            raise AugsubsetError(
                f"the checkpoint must be of {len(self._live_loaders)} SubsetAugmentLoaders as "
                f"prepared here, got one of {len(states)}. Prepare as many, in the same order."
            )
        for loader, each in zip(self._live_loaders, states, strict=True):
            loader.load_state_dict(each)


_states: WeakKeyDictionary[Any, _States] = WeakKeyDictionary()


def _take_over_shard(accelerator: Any, loader: Any) -> DataLoader[Any]:
    """Let accelerate shard a DataLoader, and return it with the same shard as we represent it."""
    given = loader
    generator = None
    if not issubclass(type(loader), DataLoaderAdapter):
        # Refuses a loader that we cannot rebuild, before accelerate changes it and its generator.
        if (seed := read_order(loader).seed) is not None:
            generator = torch.Generator().manual_seed(seed)
        # Without workers: a StatefulDataLoader would start its own.
        loader = accelerator.prepare_data_loader(
            DataLoader(
                loader.dataset,
                loader.batch_size,
                sampler=loader.sampler,
                drop_last=loader.drop_last,
                collate_fn=loader.collate_fn,
            )
        )
    if issubclass(type(loader), DataLoaderDispatcher) or isinstance(
        loader.dataset, IterableDataset
    ):
        raise ValueError(
            "accelerate must shard, got dispatch_batches=True or an IterableDataset: one process "
            "would fetch for all, but each process selects its own rows."
        )
    batches, num_replicas, rank, split = loader.batch_sampler, 1, 0, 1
    if isinstance(batches, BatchSamplerShard):
        num_replicas, rank = batches.num_processes, batches.process_index
        split = num_replicas if batches.split_batches else 1
        batches = batches.batch_sampler
    if type(batches) is not BatchSampler:
        raise ValueError(
            "loader must not have a batch_sampler of its own or batch_size=None, got "
            f"batch_sampler={type(batches).__name__}: the selection determines the rows."
        )
    sampler: Any = batches.sampler
    if type(sampler) is SeedableRandomSampler:
        generator = generator or torch.Generator().manual_seed(sampler.initial_seed)
        sampler = RandomSampler(sampler.data_source, sampler.replacement, len(sampler))
    batch_size, drop_last = batches.batch_size // split, batches.drop_last
    changes = {"batch_size": batch_size, "drop_last": drop_last, "generator": generator}
    original = rebuild_loader(given, sampler=sampler, **changes)
    return shard_loader(original, num_replicas, rank)
