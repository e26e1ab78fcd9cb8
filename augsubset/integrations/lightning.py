"""Under Lightning: it shards, its checkpoints hold the state, its logger the history."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from augsubset.loader import SubsetAugmentLoader
from augsubset.sampling import sharded
from augsubset.utils.checks import AugsubsetError

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.lightning needs lightning: pip install 'augsubset[lightning]'."
    ) from error

__all__ = ["SubsetAugmentCallback", "prepare"]

_log = logging.getLogger(__name__)

# What of the Trainer would change runs in silence.
_REFUSED = {
    "overfit_batches": "each epoch has rows of its own. Train on a Subset of the dataset",
    "reload_dataloaders_every_n_epochs": "a new loader would know nothing of earlier selections",
}


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
        TypeError: If there is no Trainer, and as :class:`~augsubset.SubsetAugmentLoader`.
        ValueError: As that.
        AugsubsetError: As that, and if a Trainer that resumes has no
            :class:`SubsetAugmentCallback`; one that does not is warned of.
    """
    if isinstance(trainer, type) or not hasattr(trainer, "distributed_sampler_kwargs"):
        raise TypeError(f"trainer must be a lightning Trainer, got {_named(trainer)}.")
    if not any(isinstance(callback, SubsetAugmentCallback) for callback in trainer.callbacks):
        if trainer.ckpt_path is not None:
            raise AugsubsetError(
                "the Trainer must have a SubsetAugmentCallback among its callbacks to resume: the "
                "loader would begin with another epoch than Lightning."
            )
        _log.warning("no SubsetAugmentCallback: from this run's checkpoints none can be resumed")
    shares = trainer.distributed_sampler_kwargs
    own = isinstance(loader, DataLoader) and type(loader.sampler) is DistributedSampler
    if shares is not None and not own:
        loader = sharded(loader, shares["num_replicas"], shares["rank"])
    return SubsetAugmentLoader(loader, model, augment, **options)


def _named(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


class SubsetAugmentCallback(Callback):
    """Keep Lightning's epochs and the loader's together, and log what was selected.

    Return the loader of :func:`prepare` from the hook ``train_dataloader()``; Lightning hands it
    on as it is. The loader's epoch is always Lightning's; its state is saved and restored by this
    callback, within an epoch too.

    Raises:
        AugsubsetError: When training starts, if there is no SubsetAugmentLoader, it is for another
            number of ranks than the Trainer's data is, or the Trainer would reload it or have the
            same batches in every epoch.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._logged = 0  # entries of the loader's history

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the loader, put a restored state into it, and begin with Lightning's epoch.

        Later epochs keep together by themselves: each iterator is the next.
        """
        loader = self._loader(trainer)
        shares = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        if shares != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be for the Trainer's {shares} shares of the data, got one for "
                f"{loader.num_replicas}. Construct it in train_dataloader(), by "
                "augsubset.integrations.lightning.prepare."
            )
        for name, instead in _REFUSED.items():
            if value := getattr(trainer, name):
                raise AugsubsetError(f"{name} must be 0, got {value}: {instead}.")
        if self._restored is not None:
            loader.load_state_dict(self._restored["loader"])
            self._logged = self._restored["logged"]
            self._restored = None
        self._logged = min(self._logged, len(loader.history))  # 0 for a new loader
        loader.set_epoch(trainer.current_epoch)

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
        """Add the loader's state to a checkpoint, if there is a loader by then."""
        if trainer.train_dataloader is not None:
            state = self._loader(trainer).state_dict()
            checkpoint["augsubset"] = {"loader": state, "logged": self._logged}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the state until there is a loader; a test of a checkpoint has none."""
        if trainer.state.fn == "fit":
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
