"""The image operations that policies draw from: a kernel, its parameters, a range of magnitudes.

Semantics are torchvision's (``transforms.v2.functional``) on uint8 and on floats in [0, 1]. Where
it and Pillow differ, torchvision is followed: ``color`` and ``contrast`` cut fractions off where
Pillow rounds, ``sharpness`` rounds the smoothed image first, and floats are not cut to 256 levels,
except by ``equalize``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import kernels

__all__ = ["OPS", "Op", "Place", "by_name", "cut"]

Array = npt.NDArray[Any]  # floating, on the host


class Place(NamedTuple):
    """What parameters may depend on beside the magnitude.

    Args:
        spare: Two more uniform numbers in [0, 1). ``(m, 2)``
        height: Of the images.
        width: Of the images.
    """

    spare: Array
    height: int
    width: int


Prepare = Callable[[Array, Place], Array]


@dataclass(frozen=True)
class Op:
    """One operation, and the magnitudes from its weakest to its strongest.

    Args:
        apply: What is done to the pixels, row by row independently. Of your own: ``(x, magnitude)
            -> x``, with x ``(m, C, H, W)`` float32 in [0, 1] and magnitude ``(m,)``; what it
            returns is clamped to [0, 1].
        low: Magnitude at level 0.
        high: Magnitude at level 1; levels between are in proportion.
        signed: Whether half of the rows get the magnitude mirrored about ``low``.
        integral: Whether magnitudes are rounded to whole numbers.
        prepare: The kernel's parameters by magnitude, ``(m,) -> (m, P)`` on the host. With it,
            ``apply`` is a kernel: it takes these, and uint8 as it is. Rows of all operations with
            one kernel are done in one go.
        limits: Least and largest magnitude that ``apply`` has a meaning for.
        channels: Numbers of channels that it takes; empty: any.

    Raises:
        TypeError: If ``apply`` is not callable.
        ValueError: If a magnitude would be outside ``limits``.

    Example:
        >>> dim = Op(lambda x, factor: x * factor[:, None, None, None], low=1.0, high=0.5)
        >>> OPS_AND_MINE = {**OPS, "dim": dim}  # for RandomOps(OPS_AND_MINE)
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    integral: bool = False
    prepare: Prepare | None = None
    limits: tuple[float, float] = (-np.inf, np.inf)
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Validate once."""
        if not callable(self.apply):
            raise TypeError(f"apply must be callable, got {type(self.apply).__name__}.")
        ends = [self.low, self.high, 2 * self.low - self.high if self.signed else self.low]
        if not all(self.limits[0] <= end <= self.limits[1] for end in ends):
            raise ValueError(
                f"magnitudes must be between {self.limits[0]:g} and {self.limits[1]:g}, got "
                f"{'+-' if self.signed else ''}{self.low:g} to {self.high:g}."
            )

    def between(self, low: float, high: float) -> Op:
        """Return the operation with another range."""
        return replace(self, low=low, high=high)

    def __call__(
        self, x: Tensor, magnitude: float | Tensor, spare: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        """Apply to a batch at one magnitude, or one a row, without a draw.

        Args:
            x: ``(m, C, H, W)``, uint8 or float in [0, 1].
            magnitude: A number or ``(m,)``.
            spare: What would be drawn besides: where to crop or cut, and the seed of noise.
        """
        magnitude = torch.as_tensor(magnitude, dtype=torch.float32).expand(len(x))
        place = Place(np.tile(np.array(spare, np.float32), (len(x), 1)), *x.shape[-2:])
        params = self.parameters(magnitude.numpy(), place)
        return self.run(x.contiguous(), torch.from_numpy(params).to(x.device))

    def parameters(self, magnitude: Array, place: Place) -> Array:
        """Return what :meth:`run` takes beside the images; ``(m, P)`` float32."""
        if self.prepare is None:
            return np.ascontiguousarray(magnitude[:, None])
        return self.prepare(magnitude, place).astype(np.float32, copy=False)

    def run(self, x: Tensor, params: Tensor) -> Tensor:
        """Apply the kernel, or a function of your own on floats in [0, 1]."""
        if self.prepare is not None:
            return self.apply(x, params)
        images = x if x.is_floating_point() else x.float() / 255
        out = self.apply(images, params[:, 0])
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"ops must keep the shape {tuple(x.shape)}, got {got}.")
        out = out.clamp(0, 1)
        return out.to(x.dtype) if x.is_floating_point() else (out * 255).round().to(x.dtype)


def _alone(magnitude: Array, _: Place) -> Array:
    return magnitude[:, None]


def _about_centre(a: Array, b: Array, d: Array, e: Array, place: Place) -> Array:
    """Return source coordinates by a matrix (a b; d e) about the image's centre."""
    x, y = (place.width - 1) / 2, (place.height - 1) / 2
    return np.stack([a, b, x - a * x - b * y, d, e, y - d * x - e * y], 1)


def _rotated(degrees: Array, place: Place) -> Array:
    angle = np.deg2rad(degrees.astype(np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    return _about_centre(cos, -sin, sin, cos, place)


def _moved(
    magnitude: Array,
    along_x: Array | float = 0.0,
    along_y: Array | float = 0.0,
    shear_x: Array | float = 0.0,
    shear_y: Array | float = 0.0,
) -> Array:
    """Return source coordinates where rows and columns are moved and slide along each other."""
    out = np.zeros((len(magnitude), 6))
    out[:, 0] = out[:, 4] = 1
    out[:, 1], out[:, 2], out[:, 3], out[:, 5] = shear_x, along_x, shear_y, along_y
    return out


def _sheared_x(factor: Array, _: Place) -> Array:
    # About the upper left corner of the image; pixels have their centres half a pixel in.
    return _moved(factor, along_x=factor / 2, shear_x=factor)


def _sheared_y(factor: Array, _: Place) -> Array:
    return _moved(factor, along_y=factor / 2, shear_y=factor)


def _shifted_x(fraction: Array, place: Place) -> Array:
    return _moved(fraction, along_x=-np.trunc(fraction * np.float32(place.width)))


def _shifted_y(fraction: Array, place: Place) -> Array:
    return _moved(fraction, along_y=-np.trunc(fraction * np.float32(place.height)))


def _shifted_x_pixels(pixels: Array, _: Place) -> Array:
    return _moved(pixels, along_x=-np.trunc(pixels))


def _shifted_y_pixels(pixels: Array, _: Place) -> Array:
    return _moved(pixels, along_y=-np.trunc(pixels))


def _mirrored_x(_: Array, place: Place) -> Array:
    out = _moved(_, along_x=place.width - 1.0)
    out[:, 0] = -1
    return out


def _mirrored_y(_: Array, place: Place) -> Array:
    out = _moved(_, along_y=place.height - 1.0)
    out[:, 4] = -1
    return out


def _cropped(padding: Array, place: Place) -> Array:
    steps = np.floor(place.spare * (2 * padding[:, None] + 1)) - padding[:, None]
    return _moved(padding, along_x=steps[:, 1], along_y=steps[:, 0])


def cut(fraction: Array, place: Place, colour: tuple[float, ...] = (0.5,)) -> Array:
    """Return a square around a uniform pixel, cut off at the edges of the image."""
    side = np.round(fraction * min(place.height, place.width))
    out = np.empty((len(fraction), 4 + len(colour)), np.float32)
    for axis, size in enumerate((place.height, place.width)):
        first = np.floor(place.spare[:, axis] * size) - np.floor(side / 2)
        out[:, axis], out[:, axis + 2] = first, first + side
    out[:, 4:] = colour
    return out


def _brightened(factor: Array, _: Place) -> Array:
    return _blended(factor, np.zeros_like(factor), np.zeros_like(factor))


def _contrasted(factor: Array, _: Place) -> Array:
    return _blended(factor, np.zeros_like(factor), 1 - factor)


def _coloured(factor: Array, _: Place) -> Array:
    return _blended(factor, 1 - factor, np.zeros_like(factor))


def _blended(image: Array, gray: Array, mean: Array) -> Array:
    return np.stack([image, gray, mean], 1)


def _bell(sigma: Array, place: Place) -> Array:
    """Return weights of five pixels in a row, of fewer where the image is small."""
    radius = min(2, place.height - 1, place.width - 1)
    away = np.arange(radius + 1)
    scaled = away / np.maximum(sigma.astype(np.float64), 1e-3)[:, None]
    weights: Array = np.exp(-np.square(scaled) / 2)
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    return weights


def _noisy(sigma: Array, place: Place) -> Array:
    return np.concatenate([sigma[:, None], place.spare], 1)


_FACTOR = (0.0, np.inf)
_GRAY_OR_RGB = (1, 3)

# The first fourteen have the ranges of AutoAugment's search space (Cubuk et al., 2019,
# arXiv:1805.09501, table 6), which RandAugment took over: translations of 150 of 331 pixels, shown
# as fractions of the size, and enhancement by 0.1 to 1.9.
OPS: dict[str, Op] = {
    "rotate": Op(kernels.warp, 0, 30, signed=True, prepare=_rotated),
    "shear_x": Op(kernels.warp, 0, 0.3, signed=True, prepare=_sheared_x),
    "shear_y": Op(kernels.warp, 0, 0.3, signed=True, prepare=_sheared_y),
    "translate_x": Op(kernels.warp, 0, 150 / 331, signed=True, prepare=_shifted_x),
    "translate_y": Op(kernels.warp, 0, 150 / 331, signed=True, prepare=_shifted_y),
    "brightness": Op(
        kernels.blend, 1, 1.9, True, False, _brightened, limits=_FACTOR, channels=_GRAY_OR_RGB
    ),
    "contrast": Op(
        kernels.blend, 1, 1.9, True, False, _contrasted, limits=_FACTOR, channels=_GRAY_OR_RGB
    ),
    "color": Op(
        kernels.blend, 1, 1.9, True, False, _coloured, limits=_FACTOR, channels=_GRAY_OR_RGB
    ),
    "sharpness": Op(kernels.sharpen, 1, 1.9, signed=True, prepare=_alone, limits=_FACTOR),
    "posterize": Op(kernels.posterize, 8, 4, integral=True, prepare=_alone, limits=(0, 8)),
    "solarize": Op(kernels.solarize, 1, 0, prepare=_alone, limits=(0, 1)),
    "autocontrast": Op(kernels.autocontrast, prepare=_alone),
    "equalize": Op(kernels.equalize, prepare=_alone),
    "invert": Op(kernels.solarize, prepare=_alone, limits=(0, 0)),
    "identity": Op(kernels.identity, prepare=_alone),
    "horizontal_flip": Op(kernels.warp, prepare=_mirrored_x),
    "vertical_flip": Op(kernels.warp, prepare=_mirrored_y),
    "translate_x_pixels": Op(kernels.warp, 0, 10, signed=True, prepare=_shifted_x_pixels),
    "translate_y_pixels": Op(kernels.warp, 0, 10, signed=True, prepare=_shifted_y_pixels),
    "crop": Op(kernels.warp, 4, 4, integral=True, prepare=_cropped, limits=_FACTOR),
    "crop_reflect": Op(
        kernels.warp_reflected, 4, 4, integral=True, prepare=_cropped, limits=_FACTOR
    ),
    "cutout": Op(kernels.erase, 0, 0.5, prepare=cut, limits=(0, 1)),
    "gaussian_blur": Op(kernels.blur, 0.1, 2.0, prepare=_bell, limits=_FACTOR),
    "gaussian_noise": Op(kernels.noise, 0, 0.1, prepare=_noisy, limits=_FACTOR),
}


def by_name(*names: str) -> dict[str, Op]:
    """Return some of :data:`OPS`."""
    return {name: OPS[name] for name in names}
