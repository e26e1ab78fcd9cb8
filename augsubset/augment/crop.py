"""Weak augmentation: a random crop of the padded image, and a random horizontal flip."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from augsubset.augment.checks import CROP_FLIP, check_images, get_stream, move_masks
from augsubset.augment.kernels import take_pixels
from augsubset.augment.random import RowKeys, draw_uniforms
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.torch_utils import to_device_async

__all__ = ["CropFlip"]


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
        One gather over all pixels.
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
        height, width = x.shape[-2:]
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(
                f"padding must be smaller than the image, {height} x {width}, to reflect it, "
                f"got padding={self.padding}."
            )
        if len(x) == 0:
            return (x, *masks) if masks else x
        draws = draw_uniforms(rows.round_epochs(self.every), 3, self.stream)
        offsets = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        source_y = offsets[:, :1] + np.arange(height)
        source_x = offsets[:, 1:] + np.arange(width)
        is_flipped = draws[:, 2] < self.flip
        source_x[is_flipped] = source_x[is_flipped, ::-1]
        if self.padding_mode == "reflect":
            source_y = height - 1 - np.abs(height - 1 - np.abs(source_y))
            source_x = width - 1 - np.abs(width - 1 - np.abs(source_x))
        # Flat indices into the image with take_pixels' black border of one pixel.
        row_start = (np.clip(source_y, -1, height) + 1) * (width + 2)
        column = np.clip(source_x, -1, width) + 1
        both = np.concatenate([row_start, column], 1)  # one transfer instead of two
        index = to_device_async(torch.from_numpy(both), x.device)
        index = index[:, :height, None] + index[:, None, height:]
        with torch.no_grad():
            out = take_pixels(x, index)
            moved = move_masks(masks, x, self.mask_fill, lambda mask: take_pixels(mask, index))
        return (out, *moved) if masks else out
