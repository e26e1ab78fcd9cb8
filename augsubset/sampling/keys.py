"""The key: everything that a worker, a prefetcher or a resume needs to know, in one int64.

Workers hold copies of the dataset and samplers run ahead of the training step, so nothing about a
row may be remembered anywhere else. From the high bits down:

====== ==== =================================================================
epoch  13   0..8191: which epoch's selection weighs the row
copy   14   0 the original, 1..r its augmented copies, all ones padding
index  36   0..2**36 - 1: position in the user's dataset
====== ==== =================================================================

A plain index is therefore the key of an original in epoch 0.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["MAX_COPIES", "MAX_EPOCHS", "MAX_INDEX", "PADDING", "pack", "unpack"]

_INDEX_BITS, _COPY_BITS, _EPOCH_BITS = 36, 14, 13
MAX_EPOCHS = 1 << _EPOCH_BITS
MAX_INDEX = (1 << _INDEX_BITS) - 1
PADDING = (1 << _COPY_BITS) - 1
"""The copy number of a row that only fills up an epoch; its weight is zero."""
MAX_COPIES = PADDING - 1

Keys = TypeVar("Keys", int, Tensor, npt.NDArray[np.int64])


def pack(epoch: int, copy: Keys | int, index: Keys) -> Keys:
    """Return the keys of rows; ints, int64 arrays and int64 tensors alike.

    The caller vouches for the ranges: the sampler checks them once, at construction.

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
