"""Adapter for Hugging Face's Trainer: the loader's state in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from augsubset.loader import SubsetAugmentLoader
from augsubset.utils.checkpoint import load_checkpoint, save_checkpoint
from augsubset.utils.checks import AugsubsetError

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "augsubset.integrations.transformers needs transformers: pip install "
        "'augsubset[transformers]'."
    ) from error

__all__ = ["SubsetAugmentCallback"]

_FILE = "augsubset.ckpt"


class SubsetAugmentCallback(TrainerCallback):
    """Save the loader's state in each checkpoint of the Trainer, and restore it on resuming.

    Return the loader from ``get_train_dataloader``, and pass ``ignore_data_skip=True`` to the
    TrainingArguments: the loader itself skips the batches that were consumed, without fetching
    them again.

    Args:
        resume_from: The checkpoint folder that training resumes from, if it is not the output
            folder's checkpoint of that step.

    Raises:
        AugsubsetError: When training starts, if ``get_train_dataloader`` returned another loader or
            one for a different number of ranks, the Trainer would skip batches too, the checkpoint
            has no loader state, or the number of batches is not a multiple of
            ``gradient_accumulation_steps``: after resuming within an epoch, the Trainer drops an
            incomplete accumulation at its end.
    """

    def __init__(self, resume_from: str | Path | None = None) -> None:
        self._resume_from = resume_from

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **others: Any
    ) -> None:
        """Check the settings, and restore the loader's state in a resumed run."""
        loader = _check_loader(train_dataloader)
        if args.world_size != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be for the Trainer's {args.world_size} ranks, got one for "
                f"{loader.num_replicas}: the ranks would train separately. On CPUs the Trainer "
                "needs use_cpu=True to initialise the process group."
            )
        config = args.accelerator_config
        if args.world_size > 1 and (config.split_batches or config.dispatch_batches):
            raise AugsubsetError(
                "accelerator_config must have neither split_batches nor dispatch_batches: the "
                "loader's batches are sharded already."
            )
        if not args.ignore_data_skip:
            raise AugsubsetError(
                "TrainingArguments must have ignore_data_skip=True: the loader skips the consumed "
                "batches itself."
            )
        if len(loader) % args.gradient_accumulation_steps:
            raise AugsubsetError(
                f"gradient_accumulation_steps must divide the epoch's {len(loader)} batches, got "
                f"{args.gradient_accumulation_steps}: resumed within an epoch, the Trainer would "
                "drop the incomplete accumulation at its end."
            )
        if not state.global_step:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        path = Path(self._resume_from or folder) / _FILE
        if not path.exists():
            raise AugsubsetError(
                f"the checkpoint must hold the loader's state, got no {path}. If it is in another "
                "folder, pass resume_from=."
            )
        loader.load_state_dict(load_checkpoint(path)["loader"])
        # If no batches are left of the epoch, the Trainer continues with the next one.
        if loader.num_batches_left == 0:
            loader.set_epoch(loader.epoch + 1)

    def on_save(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **others: Any
    ) -> None:
        """Write the loader's state to the Trainer's checkpoint folder."""
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_checkpoint(folder / _FILE, loader=_check_loader(train_dataloader).state_dict())


def _check_loader(loader: Any) -> SubsetAugmentLoader:
    if not isinstance(loader, SubsetAugmentLoader):
        raise AugsubsetError(
            "get_train_dataloader() must return a SubsetAugmentLoader, got "
            f"{type(loader).__name__}."
        )
    return loader
