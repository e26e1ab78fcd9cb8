"""Under Lightning: it shards, its checkpoints hold the state, its logger the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from augsubset.errors import AugsubsetError
from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import sharded

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.lightning needs lightning: pip install 'augsubset[lightning]'."
    ) from error

__all__ = ["SubsetAugmentCallback", "prepare"]


def prepare(
    trainer: Any,
    loader: DataLoader[Any],
    model: nn.Module,
    augment: Callable[..., Any],
    **options: Any,
) -> SubsetAugmentLoader:
    """Return a :class:`~augsubset.SubsetAugmentLoader` over a DataLoader as Lightning shards it.

    For the hook ``train_dataloader()``, which runs once ranks know of each other. How many share
    the data, and which share is whose, is what the Trainer would give a DistributedSampler: with
    tensor parallelism some ranks have the same. A DistributedSampler of your own is left as it is.

    Args:
        trainer: The Trainer: ``self.trainer`` in the hook.
        loader: The DataLoader that the hook would return.
        model: The module in training: ``self``.
        augment: The strong policy.
        options: As of :class:`~augsubset.SubsetAugmentLoader`.

    Raises:
        TypeError: As :class:`~augsubset.SubsetAugmentLoader`.
        ValueError: Likewise.
    """
    shares = trainer.distributed_sampler_kwargs
    own = isinstance(loader, DataLoader) and type(loader.sampler) is DistributedSampler
    if shares is not None and not own:
        loader = sharded(loader, shares["num_replicas"], shares["rank"])
    return SubsetAugmentLoader(loader, model, augment, **options)


class SubsetAugmentCallback(Callback):
    """Keep Lightning's epochs and the loader's together, and log what was selected.

    Return the loader of :func:`prepare` from the hook ``train_dataloader()``; Lightning hands it
    on as it is. Its state is saved and restored by this callback, within an epoch too.

    Raises:
        AugsubsetError: When training starts, if there is no SubsetAugmentLoader, or it is for
            another number of ranks than the Trainer's data is.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._logged = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the loader, and put a restored state into it."""
        loader = self._loader(trainer)
        shares = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        if shares != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be for the Trainer's {shares} shares of the data, got one for "
                f"{loader.num_replicas}. Construct it in train_dataloader(), by "
                "augsubset.integrations.lightning.prepare."
            )
        if self._restored is not None:
            loader.load_state_dict(self._restored)
            self._restored = None
            # Lightning takes an epoch whose last batch was trained on for a whole one, and goes on
            # with the next: what is left of it, nothing, would stand for that one.
            if loader.num_batches_left == 0:
                loader.set_epoch(loader.epoch + 1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures of new selections."""
        history = self._loader(trainer).history
        for entry in history[self._logged :]:
            if entry["event"] == "selection":
                figures = {
                    f"augsubset/{name}": float(value)
                    for name, value in entry.items()
                    if isinstance(value, (int, float))
                }
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.global_step)
        self._logged = len(history)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the loader's state to a checkpoint."""
        checkpoint["augsubset"] = self._loader(trainer).state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the state until there is a loader."""
        self._restored = checkpoint.get("augsubset")

    @staticmethod
    def _loader(trainer: Any) -> SubsetAugmentLoader:
        loader = trainer.train_dataloader
        if not isinstance(loader, SubsetAugmentLoader):
            raise AugsubsetError(
                "train_dataloader() must return a SubsetAugmentLoader, got "
                f"{type(loader).__name__}."
            )
        return loader
