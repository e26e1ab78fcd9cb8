"""What all policies share: input checks, separate random streams, no gradients or autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from augsubset.augment.random import RowKeys
from augsubset.utils.checks import check_int
from augsubset.utils.torch_utils import check_range, is_unit

__all__ = ["AUGMIX", "CROP_FLIP", "MODULE", "RANDOM_OPS", "check_batch", "check_images"]
__all__ += ["clamp_rounding", "disable_grad_and_autocast", "get_stream", "move_masks"]

# Policies of different classes draw independently, even on the same rows and the same `stream=`.
AUGMIX, RANDOM_OPS, CROP_FLIP, MODULE = range(4)


def get_stream(policy_class: int, stream: int) -> int:
    """Return the random stream of a policy class for the user's ``stream=``."""
    return 4 * check_int("stream", stream, 0) + policy_class


def check_batch(x: Tensor) -> None:
    """Raise unless ``x`` is a batch of images of a supported dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"images must be one tensor (B, C, H, W), got {type(x).__name__}. Give images one size "
            "in the dataset, or write a policy (x, rows) -> x for theirs."
        )
    if x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise ValueError(
            "images must be (B, C, H, W), uint8 or float in [0, 1], got "
            f"(shape {tuple(x.shape)}, dtype {x.dtype})."
        )


def check_images(x: Tensor, rows: RowKeys) -> None:
    """Raise unless ``x`` is a batch of images with one key per image."""
    check_batch(x)
    if len(rows) != len(x):
        raise ValueError(
            f"rows must hold one key per image, got {len(rows)} keys for {len(x)} images."
        )


def move_masks(
    masks: Sequence[Any], x: Tensor, fill: int, move: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return masks moved as their images are.

    Args:
        masks: Integers or bools, ``(B, H, W)`` or ``(B, K, H, W)``, below 2**24.
        x: The images.
        fill: Value of pixels from outside.
        move: Moves ``(B, K, H, W)`` float32, with zeros from outside.

    Raises:
        TypeError: If one is not a tensor of integers.
        ValueError: If one does not have its images' number, height and width.
    """
    moved = []
    for mask in masks:
        if not isinstance(mask, Tensor) or mask.is_floating_point():
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"masks must be integers (B, H, W), got {kind}. For boxes, keypoints or floats "
                "pass a policy that transforms them, such as KorniaModule."
            )
        if mask.shape not in ((len(x), *x.shape[2:]), (len(x), *mask.shape[1:2], *x.shape[2:])):
            raise ValueError(
                f"masks must be (B, H, W) like the images {tuple(x.shape)}, got shape "
                f"{tuple(mask.shape)}."
            )
        planes = mask.reshape(len(x), -1, *x.shape[-2:]).float() - fill
        moved.append((move(planes) + fill).to(mask.dtype).view_as(mask))
    return moved


def clamp_rounding(x: Tensor) -> Tensor:
    """Return images in [0, 1]; raise if floats on the CPU leave it by more than rounding.

    On a GPU the check would force a synchronisation.
    """
    if not x.is_floating_point() or x.device.type != "cpu" or x.numel() == 0 or is_unit(x):
        return x
    low, high = torch.aminmax(x.detach())
    check_range("images must be in [0, 1]", low, high, "Augment before normalising, or pass uint8.")
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


@contextmanager
def disable_grad_and_autocast(device: torch.device) -> Iterator[None]:
    """Run a policy without gradients and outside the caller's autocast."""
    is_cast = torch.is_autocast_enabled(device.type)  # rare, and switching it off is slow
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if is_cast else nullcontext():
        yield
