"""Adapter for Lightning: sharding, checkpoints and logging."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import shard_loader
from augsubset.utils.checks import AugsubsetError

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.lightning needs lightning: pip install 'augsubset[lightning]'."
    ) from error

__all__ = ["SubsetAugmentCallback", "prepare"]

_log = logging.getLogger(__name__)

# Trainer options that would silently change a run.
_REFUSED = {
    "overfit_batches": "each epoch has different rows. Train on a Subset of the dataset",
    "reload_dataloaders_every_n_epochs": "a new loader would not have the earlier selections",
}


def prepare(
    trainer: Any,
    loader: DataLoader[Any],
    model: nn.Module,
    augment: Callable[..., Any],
    **options: Any,
) -> SubsetAugmentLoader:
    """Return a :class:`~augsubset.SubsetAugmentLoader` over a DataLoader as Lightning shards it.

    Call it in the hook ``train_dataloader()``, which runs after the process group is initialised.
    The data is sharded as the Trainer would by a DistributedSampler; under tensor parallelism some
    ranks share a shard. A DistributedSampler of the DataLoader's own is kept.

    Args:
        trainer: The Trainer: ``self.trainer`` in the hook.
        loader: The DataLoader that the hook would return.
        model: The module in training: ``self``.
        augment: The strong policy.
        options: Further arguments of :class:`~augsubset.SubsetAugmentLoader`.

    Raises:
        TypeError: If ``trainer`` is not a Trainer, or an argument of the loader is of the wrong
            type.
        ValueError: If an argument of the loader is out of range.
        AugsubsetError: If the Trainer resumes without a :class:`SubsetAugmentCallback` (a new run
            without one logs a warning).
    """
    if isinstance(trainer, type) or not hasattr(trainer, "distributed_sampler_kwargs"):
        raise TypeError(f"trainer must be a lightning Trainer, got {_describe(trainer)}.")
    if not any(isinstance(callback, SubsetAugmentCallback) for callback in trainer.callbacks):
        if trainer.ckpt_path is not None:
            raise AugsubsetError(
                "the Trainer must have a SubsetAugmentCallback among its callbacks to resume: "
                "otherwise the loader would start at another epoch than Lightning."
            )
        _log.warning("no SubsetAugmentCallback: this run cannot be resumed from its checkpoints")
    shards = trainer.distributed_sampler_kwargs
    is_sharded = isinstance(loader, DataLoader) and type(loader.sampler) is DistributedSampler
    if shards is not None and not is_sharded:
        loader = shard_loader(loader, shards["num_replicas"], shards["rank"])
    return SubsetAugmentLoader(loader, model, augment, **options)


def _describe(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


class SubsetAugmentCallback(Callback):
    """Save and restore the loader's state, keep its epoch equal to Lightning's, log selections.

    Return the loader of :func:`prepare` from the hook ``train_dataloader()``. The state is in
    Lightning's checkpoints, within an epoch too.

    Raises:
        AugsubsetError: When training starts, if ``train_dataloader()`` returned another loader or
            one for a different number of shards, or if the Trainer would reload it or repeat the
            same batches in every epoch.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._num_logged = 0  # entries of the loader's history

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the loader, restore its state, and start at Lightning's epoch."""
        loader = self._find_loader(trainer)
        num_shards = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        if num_shards != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be for the Trainer's {num_shards} shards, got one for "
                f"{loader.num_replicas}. Construct it in train_dataloader(), by "
                "augsubset.integrations.lightning.prepare."
            )
        for name, reason in _REFUSED.items():
            if value := getattr(trainer, name):
                raise AugsubsetError(f"{name} must be 0, got {value}: {reason}.")
        if self._restored is not None:
            loader.load_state_dict(self._restored["loader"])
            self._num_logged = self._restored["num_logged"]
            self._restored = None
        self._num_logged = min(self._num_logged, len(loader.history))  # 0 for a new loader
        loader.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the numbers of new selections."""
        history = self._find_loader(trainer).history
        for entry in history[self._num_logged :]:
            if entry["event"] == "selection":
                metrics = {
                    f"augsubset/{name}": float(value)
                    for name, value in entry.items()
                    if isinstance(value, (int, float))
                }
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=trainer.global_step)
        self._num_logged = len(history)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the loader's state to a checkpoint, if the loader exists yet."""
        if trainer.train_dataloader is not None:
            state = self._find_loader(trainer).state_dict()
            checkpoint["augsubset"] = {"loader": state, "num_logged": self._num_logged}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state until the loader exists; outside of ``fit`` there is none."""
        if trainer.state.fn == "fit":
            self._restored = checkpoint.get("augsubset")
            if self._restored is not None:
                _reopen_epoch(checkpoint["loops"]["fit_loop"], self._restored["loader"]["epoch"])

    @staticmethod
    def _find_loader(trainer: Any) -> SubsetAugmentLoader:
        loader = trainer.train_dataloader
        if not isinstance(loader, SubsetAugmentLoader):
            raise AugsubsetError(
                "train_dataloader() must return a SubsetAugmentLoader, got "
                f"{type(loader).__name__}."
            )
        return loader


def _reopen_epoch(loop: dict[str, Any], epoch: int) -> None:
    """Let Lightning resume within the loader's epoch if it was stopped in the middle.

    When ``max_steps`` or ``should_stop`` ends an epoch early, Lightning counts it as processed: a
    checkpoint saved after that would continue with the next epoch and lose the rest of this one.
    """
    progress = loop["epoch_progress"]
    is_complete = loop["epoch_loop.batch_progress"]["is_last_batch"]
    if not is_complete and epoch < progress["current"]["processed"]:
        for counts in (progress["total"], progress["current"]):
            counts["processed"] = counts["completed"] = counts["started"] - 1
