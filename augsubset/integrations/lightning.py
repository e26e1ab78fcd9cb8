"""Under Lightning: the loader's state in its checkpoints, the history in its logger."""

from __future__ import annotations

from typing import Any

from augsubset.errors import AugsubsetError
from augsubset.loader import SubsetAugmentLoader

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.lightning needs lightning: pip install 'augsubset[lightning]'."
    ) from error

__all__ = ["SubsetAugmentCallback"]


class SubsetAugmentCallback(Callback):
    """Keep Lightning's epochs and the loader's together, and log what was selected.

    Return the loader from the hook ``train_dataloader()``, which runs once ranks know of each
    other; Lightning leaves it as it is, and it shards itself. Its state is saved and restored by
    this callback, within an epoch too.

    Raises:
        AugsubsetError: When training starts, if there is no SubsetAugmentLoader, or it does not
            know of all ranks.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._logged = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the loader, and put a restored state into it."""
        loader = self._loader(trainer)
        if trainer.world_size != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be shared by all {trainer.world_size} ranks, got one for "
                f"{loader.num_replicas}. Construct it in train_dataloader()."
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
