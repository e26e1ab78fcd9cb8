"""The image operations that policies draw from, each with a magnitude for every row.

All take a float32 batch in [0, 1] of 1 or 3 channels and return the same. The semantics are
torchvision's (``transforms.v2.functional``, which follows PIL); Kornia's functionals do the work
where theirs agree, and where a row's result does not depend on the batch around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import kornia
import torch
from torch import Tensor

__all__ = ["OPS", "Op"]


@dataclass(frozen=True)
class Op:
    """One operation and the range that its magnitude is drawn from, uniformly.

    Args:
        apply: ``(x (m, C, H, W), magnitude (m,)) -> (m, C, H, W)``, row by row independent.
        low: Least magnitude.
        high: Largest magnitude; with ``integral`` it can be drawn, otherwise it is the limit.
        signed: Whether the magnitude's sign is drawn too.
        integral: Whether the magnitude is a whole number.

    Raises:
        ValueError: If ``low`` is above ``high``.

    Example:
        >>> dim = Op(lambda x, factor: x * factor[:, None, None, None], low=0.5, high=1.0)
        >>> OPS_AND_MINE = {**OPS, "dim": dim}  # for RandomOps(OPS_AND_MINE)
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    integral: bool = False

    def __post_init__(self) -> None:
        """Validate once."""
        if not callable(self.apply) or not self.low <= self.high:
            raise ValueError(
                "an Op must have a callable and low <= high, got "
                f"apply={self.apply!r}, low={self.low}, high={self.high}."
            )

    def magnitudes(self, uniform: Tensor, sign: Tensor) -> Tensor:
        """Turn two uniform draws a row into magnitudes. ``(m,)`` each."""
        if self.integral:
            drawn = self.low + (uniform * (self.high - self.low + 1)).floor()
        else:
            drawn = self.low + uniform * (self.high - self.low)
        return torch.where(sign < 0.5, -drawn, drawn) if self.signed else drawn


def _column(magnitude: Tensor) -> Tensor:
    return magnitude[:, None, None, None]


def _warp(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, shift: Tensor) -> Tensor:
    """Move pixel p to (a b; c d)(p - centre) + centre + shift; nearest pixel, zeros from outside.

    Nearest is what PIL, torchvision and the published policies default to.
    """
    height, width = x.shape[-2:]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    matrix = torch.stack(
        [
            torch.stack([a, b, centre_x - a * centre_x - b * centre_y + shift[:, 0]], 1),
            torch.stack([c, d, centre_y - c * centre_x - d * centre_y + shift[:, 1]], 1),
        ],
        1,
    )
    return kornia.geometry.transform.warp_affine(
        x, matrix, (height, width), mode="nearest", padding_mode="zeros", align_corners=False
    )


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise about the centre."""
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _warp(x, cos, sin, -sin, cos, torch.zeros_like(degrees)[:, None].expand(-1, 2))


def _shear(x: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    """Shear about the upper left corner, in the direction of AutoAugment's code and torchvision."""
    height, width = x.shape[-2:]
    one = torch.ones_like(along_x)
    shift = torch.stack([-along_x * (height / 2), -along_y * (width / 2)], 1)
    return _warp(x, one, -along_x, -along_y, one, shift)


def shear_x(x: Tensor, factor: Tensor) -> Tensor:
    """Move each row of pixels left by ``factor`` times its distance from the top edge."""
    return _shear(x, factor, torch.zeros_like(factor))


def shear_y(x: Tensor, factor: Tensor) -> Tensor:
    """Move each column of pixels up by ``factor`` times its distance from the left edge."""
    return _shear(x, torch.zeros_like(factor), factor)


def _translate(x: Tensor, fraction_x: Tensor, fraction_y: Tensor) -> Tensor:
    """Move by a fraction of the size, cut to whole pixels."""
    height, width = x.shape[-2:]
    one, zero = torch.ones_like(fraction_x), torch.zeros_like(fraction_x)
    shift = torch.stack([(fraction_x * width).trunc(), (fraction_y * height).trunc()], 1)
    return _warp(x, one, zero, zero, one, shift)


def translate_x(x: Tensor, fraction: Tensor) -> Tensor:
    """Move right by a fraction of the width."""
    return _translate(x, fraction, torch.zeros_like(fraction))


def translate_y(x: Tensor, fraction: Tensor) -> Tensor:
    """Move down by a fraction of the height."""
    return _translate(x, torch.zeros_like(fraction), fraction)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 gives black, 1 the image."""
    return kornia.enhance.adjust_brightness_accumulative(x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray level: 0 gives a flat gray, 1 the image.

    Kornia's mean is a float sum whose order, hence last bit, depends on the batch's shape; whole
    numbers add up the same in any order.
    """
    gray = kornia.color.rgb_to_grayscale(x) if x.shape[1] == 3 else x
    pixels = gray.shape[-1] * gray.shape[-2]
    total = (gray * (1 << 20)).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
    mean = (total.double() / (pixels << 20)).to(x.dtype)
    factor = _column(factor)
    return (x * factor + mean * (1 - factor)).clamp(0, 1)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image: 0 gives gray, 1 the image. A gray image stays as it is."""
    return kornia.enhance.adjust_saturation_with_gray_subtraction(x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: 0 gives that, 1 the image, 2 sharper. Borders stay.

    Nine shifted sums in one order; a convolution may pick its algorithm by the batch's shape.
    """
    height, width = x.shape[-2:]
    if height <= 2 or width <= 2:
        return x
    smooth = x[..., 1:-1, 1:-1] * 4
    for top in range(3):
        for left in range(3):
            smooth = smooth + x[..., top : top + height - 2, left : left + width - 2]
    smooth = torch.nn.functional.pad(smooth / 13, (1, 1, 1, 1))
    inner = torch.nn.functional.pad(
        torch.ones((height - 2, width - 2), dtype=torch.bool, device=x.device), (1, 1, 1, 1)
    )
    smooth = torch.where(inner, smooth, x)
    return (smooth + (x - smooth) * _column(factor)).clamp(0, 1)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of 8."""
    step = torch.exp2(8 - _column(bits))
    return ((x * 255).round() / step).floor() * step / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above the threshold."""
    return torch.where(x >= _column(threshold), 1 - x, x)


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range; a constant channel stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    stretched = ((x - low) / (high - low)).clamp(0, 1)
    return torch.where(high > low, stretched, x)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram of 256 levels."""
    return kornia.enhance.equalize(x)


def invert(x: Tensor, _: Tensor) -> Tensor:
    """Turn v into 1 - v."""
    return kornia.enhance.invert(x)


# Ranges of AutoAugment's search space (Cubuk et al., 2019, arXiv:1805.09501, table 6), which
# RandAugment took over; translations of 150 of 331 pixels as fractions of the size.
OPS: dict[str, Op] = {
    "rotate": Op(rotate, 0.0, 30.0, signed=True),
    "shear_x": Op(shear_x, 0.0, 0.3, signed=True),
    "shear_y": Op(shear_y, 0.0, 0.3, signed=True),
    "translate_x": Op(translate_x, 0.0, 150 / 331, signed=True),
    "translate_y": Op(translate_y, 0.0, 150 / 331, signed=True),
    "brightness": Op(brightness, 0.1, 1.9),
    "contrast": Op(contrast, 0.1, 1.9),
    "color": Op(color, 0.1, 1.9),
    "sharpness": Op(sharpness, 0.1, 1.9),
    "posterize": Op(posterize, 4, 8, integral=True),
    "solarize": Op(solarize, 0.0, 1.0),
    "autocontrast": Op(autocontrast),
    "equalize": Op(equalize),
    "invert": Op(invert),
}
