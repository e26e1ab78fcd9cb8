"""The key: everything that a worker, a prefetcher or a resume needs to know, in one int64.

Workers hold copies of the dataset and samplers run ahead of the training step, so nothing about a
row may be remembered anywhere else. From the high bits down:

====== ==== =================================================================
epoch  13   0..8191: the epoch whose selection gives the row its weight
copy   14   0: the original; 1..8191: its augmented copies; 8192..12287: the
            original again, where a sampler repeats it; 12288..16382: further
            copies that fill an epoch up; all ones: padding of weight 0
index  36   0..2**36 - 1: position in the user's dataset
====== ==== =================================================================

A plain index is therefore the key of an original in epoch 0.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from augsubset.utils.checks import AugsubsetError

__all__ = [
    "FIRST_REPEAT",
    "LAST_FILLER",
    "MAX_COPIES",
    "MAX_EPOCHS",
    "MAX_FILLERS",
    "MAX_INDEX",
    "MAX_REPEATS",
    "PADDING",
    "check_epoch_exists",
    "is_original",
    "pack",
    "unpack",
]

_INDEX_BITS, _COPY_BITS, _EPOCH_BITS = 36, 14, 13
MAX_EPOCHS = 1 << _EPOCH_BITS
MAX_INDEX = (1 << _INDEX_BITS) - 1
PADDING = (1 << _COPY_BITS) - 1
"""Copy number of a row that only fills an epoch up and weighs nothing."""
LAST_FILLER = PADDING - 1
"""Copy number of the first further copy of an example; the next ones count down from it."""
MAX_COPIES = (1 << (_COPY_BITS - 1)) - 1
FIRST_REPEAT = MAX_COPIES + 1
"""Copy number of an original that a sampler drew a second time; the next ones count up from it."""
MAX_REPEATS = 1 << (_COPY_BITS - 2)
MAX_FILLERS = MAX_REPEATS - 1

Keys = TypeVar("Keys", int, Tensor, npt.NDArray[np.int64])


def check_epoch_exists(epoch: int) -> None:
    """Raise if a key has no room for an epoch.

    Raises:
        AugsubsetError: After epoch 8191.
    """
    if epoch >= MAX_EPOCHS:
        raise AugsubsetError(
            f"a run must end after {MAX_EPOCHS:,} epochs, since a key has room for no more, got "
            f"epoch {epoch}. Continue with a new loader and another seed."
        )


def pack(epoch: int, copy: Keys | int, index: Keys) -> Keys:
    """Return the keys of rows; takes ints, int64 arrays and int64 tensors.

    Ranges are not checked here: the sampler checks them once, at construction.

    Example:
        >>> unpack(pack(3, 1, 42))
        (3, 1, 42)
    """
    return (epoch << (_INDEX_BITS + _COPY_BITS)) | (copy << _INDEX_BITS) | index


def unpack(keys: Keys) -> tuple[Keys, Keys, Keys]:
    """Return (epoch, copy, index) of keys."""
    epoch = keys >> (_INDEX_BITS + _COPY_BITS)
    copy = (keys >> _INDEX_BITS) & PADDING
    return epoch, copy, keys & MAX_INDEX


def is_original(copy: Any) -> Any:
    """Return where a copy number, 0..16383, means the example itself, without strong augmentation.

    Example:
        >>> is_original(np.array([0, 1, FIRST_REPEAT, LAST_FILLER, PADDING])).tolist()
        [True, False, True, False, False]
    """
    return (copy == 0) | ((copy >= FIRST_REPEAT) & (copy < FIRST_REPEAT + MAX_REPEATS))
