"""Under Hugging Face's Trainer: the loader's state in its checkpoints."""

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
    """Keep the loader's state in each checkpoint of the Trainer, and go on from there.

    Return the loader from ``get_train_dataloader``, and pass ``ignore_data_skip=True`` to the
    TrainingArguments: the loader skips by itself what was consumed, to the bit, where the Trainer
    would fetch it in vain.

    Args:
        resume_from: The checkpoint folder that training resumes from, where it is not the one of
            its step in the output folder.

    Raises:
        AugsubsetError: When training starts, if ``get_train_dataloader`` returned no
            SubsetAugmentLoader or one for another number of ranks, the Trainer would skip too, the
            checkpoint has no state of ours, or an epoch's batches do not divide into
            accumulations: resumed within an epoch, the Trainer takes no step for an incomplete one
            at its end.
    """

    def __init__(self, resume_from: str | Path | None = None) -> None:
        self._resume_from = resume_from

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **others: Any
    ) -> None:
        """Check what resuming needs, and do so if this is a resumed run."""
        loader = _checked(train_dataloader)
        if args.world_size != loader.num_replicas:
            raise AugsubsetError(
                f"the loader must be for the Trainer's {args.world_size} ranks, got one for "
                f"{loader.num_replicas}: each would train apart. On processors the Trainer "
                "needs use_cpu=True to know of the others."
            )
        config = args.accelerator_config
        if args.world_size > 1 and (config.split_batches or config.dispatch_batches):
            raise AugsubsetError(
                "accelerator_config must have neither split_batches nor dispatch_batches: each "
                "rank has the loader's batches as they are."
            )
        if not args.ignore_data_skip:
            raise AugsubsetError(
                "TrainingArguments must have ignore_data_skip=True: the loader skips by itself "
                "what was consumed."
            )
        if len(loader) % args.gradient_accumulation_steps:
            raise AugsubsetError(
                f"gradient_accumulation_steps must divide the epoch's {len(loader)} batches, got "
                f"{args.gradient_accumulation_steps}: resumed within an epoch, the Trainer would "
                "take no step for the rest."
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
        # At an epoch's last batch the Trainer goes on with the next one.
        if loader.num_batches_left == 0:
            loader.set_epoch(loader.epoch + 1)

    def on_save(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **others: Any
    ) -> None:
        """Write the loader's state beside the Trainer's."""
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_checkpoint(folder / _FILE, loader=_checked(train_dataloader).state_dict())


def _checked(loader: Any) -> SubsetAugmentLoader:
    if not isinstance(loader, SubsetAugmentLoader):
        raise AugsubsetError(
            "get_train_dataloader() must return a SubsetAugmentLoader, got "
            f"{type(loader).__name__}."
        )
    return loader
