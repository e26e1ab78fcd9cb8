"""Under Hugging Face accelerate: it shards, and has what accumulation and checkpoints need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import loader_options, loader_order, sharded
from augsubset.utils.checks import AugsubsetError

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
    """A loader, with all that it has, that tells accelerate which batch is the last of an epoch."""

    def __init__(self, loader: SubsetAugmentLoader) -> None:
        self.loader = loader
        self.gradient_state = GradientState()
        self.dataset = loader.dataset
        self.total_batch_size = loader.batch_size * loader.num_replicas
        self.reset()

    def __iter__(self) -> Iterator[Any]:
        total = self.loader.num_batches_left
        self.begin()
        try:
            for number, batch in enumerate(self.loader, 1):
                self.end_of_dataloader = number == total
                yield batch
        finally:
            self.end()

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return what the loader says of itself; what accelerate keeps to itself is not asked."""
        if name.startswith("_") or name == "loader":  # which is missing while a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)


def prepare(
    accelerator: Any,
    loader: DataLoader[Any],
    model: nn.Module,
    augment: Callable[..., Any],
    **options: Any,
) -> Any:
    """Return a :class:`~augsubset.SubsetAugmentLoader` over a DataLoader that accelerate shards.

    accelerate says how many share it, which share is whose and, with ``split_batches``, how large
    a batch is; each step has the rows that accelerate would deal in it, but an uneven tail is
    filled up with rows of weight 0 where it repeats some at full weight. The last batch of an epoch
    ends an accumulation, and the state is in ``save_state``: resuming within an epoch comes with
    ``load_state``, and no ``skip_first_batches`` is needed.

    Args:
        accelerator: An ``accelerate.Accelerator``.
        loader: A DataLoader, as it was or as ``accelerator.prepare`` returned it.
        model: The model, as it was or prepared.
        augment: The strong policy.
        options: As of :class:`~augsubset.SubsetAugmentLoader`.

    Returns:
        The loader, with all that it has. ``accelerator.prepare`` passes it through untouched.

    Raises:
        TypeError: If there is no Accelerator, and as :class:`~augsubset.SubsetAugmentLoader`.
        ValueError: As that, if accelerate dispatches batches, or if something else shards too.
    """
    if isinstance(accelerator, type) or not hasattr(accelerator, "prepare_data_loader"):
        name = getattr(accelerator, "__name__", type(accelerator).__name__)
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {name}.")
    ours = SubsetAugmentLoader(_sharded(accelerator, loader), model, augment, **options)
    if accelerator not in _states:
        _states[accelerator] = _States()
        accelerator.register_for_checkpointing(_states[accelerator])
    _states[accelerator].add(ours)
    return _Prepared(ours)


class _States:
    """The states of an accelerator's loaders in its checkpoints, as far as they are still in use.

    accelerate keeps what is registered as long as itself: a loader would stay, with model and
    data, that was let go of when it did not fit into memory.
    """

    def __init__(self) -> None:
        self._loaders: list[ReferenceType[SubsetAugmentLoader]] = []

    def add(self, loader: SubsetAugmentLoader) -> None:
        self._loaders.append(ref(loader))

    @property
    def _in_use(self) -> list[SubsetAugmentLoader]:
        return [loader for each in self._loaders if (loader := each()) is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"loaders": [loader.state_dict() for loader in self._in_use]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        states = state["loaders"]
        if len(states) != len(self._in_use):
            raise AugsubsetError(
                f"the checkpoint must be of {len(self._in_use)} SubsetAugmentLoaders as there are, "
                f"got one of {len(states)}. Prepare as many, in the same order."
            )
        for loader, each in zip(self._in_use, states, strict=True):
            loader.load_state_dict(each)


_states: WeakKeyDictionary[Any, _States] = WeakKeyDictionary()


def _sharded(accelerator: Any, loader: Any) -> DataLoader[Any]:
    """Let accelerate shard a DataLoader, and take over which share it made of it."""
    options = loader_options(loader)
    if not issubclass(type(loader), DataLoaderAdapter):
        loader_order(loader)  # refuses any other before accelerate goes at it
        # Without workers, which a stateful one would start for itself.
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
            "would fetch for all, where each selects and weighs its own rows."
        )
    batches, num_replicas, rank, split = loader.batch_sampler, 1, 0, 1
    if isinstance(batches, BatchSamplerShard):
        num_replicas, rank = batches.num_processes, batches.process_index
        split = num_replicas if batches.split_batches else 1
        batches = batches.batch_sampler
    if type(batches) is not BatchSampler:
        raise ValueError(
            "loader must not have a batch_sampler of its own or batch_size=None, got "
            f"batch_sampler={type(batches).__name__}: the subset decides which rows there are."
        )
    sampler: Any = batches.sampler
    if type(sampler) is SeedableRandomSampler:
        sampler = RandomSampler(sampler.data_source, sampler.replacement, len(sampler))
    was = DataLoader(
        loader.dataset,
        sampler=sampler,
        drop_last=batches.drop_last,
        collate_fn=loader.collate_fn,
        **{**options, "batch_size": batches.batch_size // split},
    )
    return sharded(was, num_replicas, rank)
