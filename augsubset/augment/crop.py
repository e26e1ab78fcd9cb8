"""Weak augmentation: a random crop of the padded image, and a random horizontal flip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import kernels_cpu
from augsubset.augment.checks import CROP_FLIP, check_images, get_stream, move_masks
from augsubset.augment.kernels import take_pixels, warp
from augsubset.augment.plan import CropTables, fill_crops
from augsubset.augment.random import RowKeys
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.torch_utils import to_device_async

__all__ = ["CropFlip"]

Int32Array = npt.NDArray[np.int32]


class CropFlip:
    """Pad each image, crop a random window of the original size, and flip it at random.

    As in :class:`RandomOps`, a row's crop depends on its key alone. Pixels are moved and never
    computed, so the result is exact for every dtype.

    Args:
        padding: Pixels added on each side.
        flip: Probability of a horizontal flip.
        padding_mode: Padding with zeros (``"constant"``) or with the mirrored image
            (``"reflect"``).
        stream: As in :class:`RandomOps`.
        every: As in :class:`RandomOps`.
        mask_fill: As in :class:`RandomOps`.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a value is out of range.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``; masks as in :class:`RandomOps`.

    Cost:
        One gather over all pixels; on the CPU, for uint8 or float32 with zeros around, copies of
        rows.
    """

    def __init__(
        self,
        padding: int = 4,
        *,
        flip: float = 0.5,
        padding_mode: Literal["constant", "reflect"] = "constant",
        stream: int = 0,
        every: int = 1,
        mask_fill: int = 0,
    ) -> None:
        check_choice("padding_mode", padding_mode, ("constant", "reflect"))
        check_number("flip", flip)
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], got flip={flip}.")
        self.padding = check_int("padding", padding, 0)
        self.flip = flip
        self.padding_mode = padding_mode
        self.stream = get_stream(CROP_FLIP, stream)
        self.every = check_int("every", every, 1)
        self.mask_fill = check_int("mask_fill", mask_fill, -(1 << 24), 1 << 24)

    @property
    def tables(self) -> CropTables:
        """What the loops that plan a batch need."""
        return CropTables(self.stream, self.every, self.padding, np.float32(self.flip))

    @property
    def is_geometric(self) -> bool:
        """Whether pixels move."""
        return self.padding > 0 or self.flip > 0

    def __repr__(self) -> str:
        return (
            f"CropFlip(padding={self.padding}, flip={self.flip}, "
            f"padding_mode={self.padding_mode!r})"
        )

    def __call__(self, x: Tensor, rows: RowKeys, *masks: Tensor) -> Any:
        """Return the batch with each image cropped, and flipped or not; masks with them."""
        check_images(x, rows)
        seed, epoch, index, copy = rows.arrays
        crops = np.empty((len(x), 3), np.int32)
        fill_crops(seed, epoch, index, copy, self.tables, crops)
        return self.crop(x, crops, *masks)

    def crop(self, x: Tensor, crops: Int32Array, *masks: Tensor) -> Any:
        """Do the same with what was drawn: first row, first column, mirrored or not; ``(B, 3)``."""
        height, width = x.shape[-2:]
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(
                f"padding must be smaller than the image, {height} x {width}, to reflect it, "
                f"got padding={self.padding}."
            )
        if len(x) == 0:
            return (x, *masks) if masks else x
        is_reflected = self.padding_mode == "reflect"
        if kernels_cpu.can_run(x) and not is_reflected:
            move = _by_loops(crops, width)
        else:
            both = torch.from_numpy(_list_sources(crops, height, width, is_reflected))
            move = _by_gather(to_device_async(both, x.device), height)
        with torch.no_grad():
            out = move(x)
            moved = move_masks(masks, x, self.mask_fill, move)
        return (out, *moved) if masks else out


def _by_loops(crops: Int32Array, width: int) -> Callable[[Tensor], Tensor]:
    """Return what moves whole rows on the CPU: a crop is a warp, and copies blocks there."""
    kernel = np.full((len(crops), 1), kernels_cpu.KERNELS[warp])
    params = _list_warps(crops, width)
    return lambda images: kernels_cpu.run_rows(images.contiguous(), kernel, params)


@numba.njit(cache=True, nogil=True)
def _list_warps(crops: Int32Array, width: int) -> npt.NDArray[np.float32]:
    """Return each crop's parameters of the kernel, ``(B, 1, 6)``."""
    params = np.zeros((crops.shape[0], 1, 6), np.float32)
    for i in range(crops.shape[0]):
        is_flipped = crops[i, 2] != 0
        params[i, 0, 0] = -1 if is_flipped else 1
        params[i, 0, 2] = crops[i, 1] + (width - 1 if is_flipped else 0)
        params[i, 0, 4] = 1
        params[i, 0, 5] = crops[i, 0]
    return params


def _by_gather(both: Tensor, height: int) -> Callable[[Tensor], Tensor]:
    """Return what moves pixels by their indices, on any device."""
    index = both[:, :height, None] + both[:, None, height:]
    return lambda images: take_pixels(images, index)


@numba.njit(cache=True, nogil=True)
def _list_sources(
    crops: Int32Array, height: int, width: int, is_reflected: bool
) -> npt.NDArray[np.int64]:
    """Return where each row and column of the crops begins, ``(B, H + W)``, to be added up.

    They are flat indices into the image with :func:`take_pixels`' black border of one pixel, in
    one array because it is copied to the device.
    """
    both = np.empty((crops.shape[0], height + width), np.int64)
    for i in range(crops.shape[0]):
        for axis in range(2):
            size, first = (height, 0) if axis == 0 else (width, height)
            for step in range(size):
                is_mirrored = axis == 1 and crops[i, 2] != 0
                source = crops[i, axis] + (size - 1 - step if is_mirrored else step)
                if is_reflected:
                    source = size - 1 - abs(size - 1 - abs(source))
                inside = min(max(source, -1), size) + 1
                both[i, first + step] = inside * (width + 2) if axis == 0 else inside
    return both
