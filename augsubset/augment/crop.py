"""Weak augmentation: a random crop of the padded image, mirrored half of the time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from augsubset.augment.checks import CROP_FLIP, check_images, stream_of
from augsubset.augment.kernels import taken
from augsubset.augment.random import RowKeys, uniforms
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.torch_utils import sent

__all__ = ["CropFlip"]


class CropFlip:
    """Pad, crop back to the size at a random place, and mirror half of the rows: weak augmentation.

    A row's crop depends on its key alone, as in :class:`RandomOps`; pixels are moved, never
    computed, so any dtype comes out exact.

    Args:
        padding: Pixels added on each side.
        flip: Probability of mirroring left to right.
        padding_mode: What lies outside: ``"constant"`` zeros, or the image ``"reflect"``-ed.
        stream: As in :class:`RandomOps`.
        every: As in :class:`RandomOps`.

    Raises:
        TypeError: If a number is of the wrong kind.
        ValueError: If a value is out of range.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``.

    Cost:
        One gather of all pixels.
    """

    def __init__(
        self,
        padding: int = 4,
        *,
        flip: float = 0.5,
        padding_mode: Literal["constant", "reflect"] = "constant",
        stream: int = 0,
        every: int = 1,
    ) -> None:
        check_choice("padding_mode", padding_mode, ("constant", "reflect"))
        check_number("flip", flip)
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability, got flip={flip}.")
        self.padding = check_int("padding", padding, 0)
        self.flip = flip
        self.padding_mode = padding_mode
        self.stream = stream_of(CROP_FLIP, stream)
        self.every = check_int("every", every, 1)

    def __repr__(self) -> str:
        return (
            f"CropFlip(padding={self.padding}, flip={self.flip}, "
            f"padding_mode={self.padding_mode!r})"
        )

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch with every row cropped and perhaps mirrored."""
        check_images(x, rows)
        height, width = x.shape[-2:]
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(
                f"padding must be less than the image's size {height} x {width} to reflect, "
                f"got padding={self.padding}."
            )
        if len(x) == 0:
            return x
        draws = uniforms(rows.held(self.every), 3, self.stream)
        offsets = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        rows_from = offsets[:, :1] + np.arange(height)
        columns_from = offsets[:, 1:] + np.arange(width)
        mirrored = draws[:, 2] < self.flip
        columns_from[mirrored] = columns_from[mirrored, ::-1]
        if self.padding_mode == "reflect":
            rows_from = height - 1 - np.abs(height - 1 - np.abs(rows_from))
            columns_from = width - 1 - np.abs(width - 1 - np.abs(columns_from))
        # In an image with a black border of one pixel.
        first = (np.clip(rows_from, -1, height) + 1) * (width + 2)
        second = np.clip(columns_from, -1, width) + 1
        at = sent(torch.from_numpy(np.concatenate([first, second], 1)), x.device)
        with torch.no_grad():
            return taken(x, at[:, :height, None] + at[:, None, height:])
