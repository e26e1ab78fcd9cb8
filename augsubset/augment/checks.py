"""What every policy needs: images checked, streams apart, the caller's context kept out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from augsubset.augment.random import RowKeys
from augsubset.utils.checks import check_int

__all__ = [
    "AUGMIX",
    "CROP_FLIP",
    "MODULE",
    "RANDOM_OPS",
    "check_batch",
    "check_images",
    "check_unit_range",
    "plain_context",
    "stream_of",
]

# Classes of policies that see the same rows draw independently of each other.
AUGMIX, RANDOM_OPS, CROP_FLIP, MODULE = range(4)


def stream_of(policy_class: int, stream: int) -> int:
    """Return the stream that a policy of a class draws from."""
    return 4 * check_int("stream", stream, 0) + policy_class


def check_batch(x: Tensor) -> None:
    """Refuse what is no batch of images."""
    if x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise ValueError(
            "images must be (B, C, H, W), uint8 or float in [0, 1], got "
            f"(shape {tuple(x.shape)}, dtype {x.dtype})."
        )


def check_images(x: Tensor, rows: RowKeys) -> None:
    """Refuse what is no batch of images with one key a row."""
    check_batch(x)
    if len(rows) != len(x):
        raise ValueError(f"rows must hold one key an image, got {len(rows)} for {len(x)}.")


def check_unit_range(x: Tensor) -> None:
    """Refuse floats outside [0, 1] on the host; on a device that would have to be waited for."""
    if not x.is_floating_point() or x.device.type != "cpu" or x.numel() == 0:
        return
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(
            f"images must be in [0, 1], got values from {low:.4g} to {high:.4g}. Augment before "
            "normalising, or pass uint8."
        )


@contextmanager
def plain_context(device: torch.device) -> Iterator[None]:
    """Keep gradients and the caller's autocast out of a policy."""
    is_cast = torch.is_autocast_enabled(device.type)  # seldom, and to turn it off takes a while
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if is_cast else nullcontext():
        yield
