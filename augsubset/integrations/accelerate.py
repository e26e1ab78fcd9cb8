"""Under Hugging Face accelerate: who shards, and what its accumulation and checkpoints need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from augsubset.errors import AugsubsetError
from augsubset.loader import SubsetAugmentLoader

try:
    from accelerate.data_loader import DataLoaderStateMixin
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
        self.total_batch_size = loader.batch_size
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


def prepare(accelerator: Any, loader: SubsetAugmentLoader) -> Any:
    """Return the loader as ``accelerator.accumulate`` and ``save_state`` expect it.

    ``accelerator.prepare`` passes the loader through untouched: it is no DataLoader, and shards
    itself, where accelerate would repeat rows to fill up uneven tails. What it then lacks is this:
    the last batch of an epoch ends an accumulation, and its state is in accelerate's checkpoints.
    Resuming within an epoch comes with ``load_state``: no ``skip_first_batches`` is needed.

    Args:
        accelerator: An ``accelerate.Accelerator``, made before the loader.
        loader: A loader made from the DataLoader as it was, not prepared.

    Raises:
        TypeError: If it is no such loader.
        AugsubsetError: If the loader does not know of all processes.
    """
    if not isinstance(loader, SubsetAugmentLoader):
        raise TypeError(f"loader must be a SubsetAugmentLoader, got {type(loader).__name__}.")
    if accelerator.num_processes != loader.num_replicas:
        raise AugsubsetError(
            f"the loader must be shared by accelerate's {accelerator.num_processes} processes, got "
            f"one for {loader.num_replicas}. Construct it after the Accelerator."
        )
    accelerator.register_for_checkpointing(loader)
    return _Prepared(loader)
