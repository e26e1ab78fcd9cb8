"""The image operations that policies draw from: a kernel, its parameters, a range of magnitudes.

Semantics are torchvision's (``transforms.v2.functional``) on uint8 and on floats in [0, 1]. Where
it and Pillow differ, torchvision is followed: ``color`` and ``contrast`` cut fractions off where
Pillow rounds, ``sharpness`` rounds the smoothed image first, and floats are not cut to 256 levels,
except by ``equalize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import kernels
from augsubset.augment.images import check_batch, check_unit_range
from augsubset.errors import check_number

__all__ = ["OPS", "Op", "Place", "alone", "by_name", "cut"]

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


Prepare = Callable[[Array, Array, Place], Array]


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
        prepare: The kernel's parameters by magnitudes, forms and :class:`Place`, ``(m, P)`` on the
            host. With it, ``apply`` is a kernel: it takes these, and uint8 as it is. Rows of all
            operations with one kernel are done in one go.
        form: What tells operations with one ``prepare`` apart.
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
    form: tuple[float, ...] = ()
    limits: tuple[float, float] = (-np.inf, np.inf)
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Validate once."""
        if not callable(self.apply):
            raise TypeError(f"apply must be callable, got {type(self.apply).__name__}.")
        check_number("low", self.low)
        check_number("high", self.high)
        ends = [self.low, self.high, 2 * self.low - self.high if self.signed else self.low]
        if not all(self._has_meaning(end) for end in ends):
            raise ValueError(
                f"magnitudes must be between {self.limits[0]:g} and {self.limits[1]:g}, got "
                f"{'+-' if self.signed else ''}{self.low:g} to {self.high:g}."
            )

    def _has_meaning(self, magnitude: float) -> bool:
        return math.isfinite(magnitude) and self.limits[0] <= magnitude <= self.limits[1]

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

        Raises:
            ValueError: If images are none that it takes, or a magnitude is outside ``limits``.
        """
        check_batch(x)
        check_unit_range(x)
        self.check_channels("the operation", x)
        magnitude = torch.as_tensor(magnitude, dtype=torch.float32)
        if magnitude.shape not in ((), (1,), (len(x),)):
            raise ValueError(
                f"magnitude must be a number or one an image, got shape {tuple(magnitude.shape)} "
                f"for {len(x)} images."
            )
        if not all(self._has_meaning(each) for each in magnitude.flatten().tolist()):
            raise ValueError(
                f"magnitudes must be between {self.limits[0]:g} and {self.limits[1]:g}, got "
                f"{magnitude.tolist()}."
            )
        place = Place(np.tile(np.array(spare, np.float32), (len(x), 1)), *x.shape[-2:])
        params = self.parameters(magnitude.expand(len(x)).numpy(), place)
        images = x.contiguous() if self.prepare is not None else x.clone()
        return self.run(images, torch.from_numpy(params).to(x.device))

    def check_channels(self, name: str, x: Tensor) -> None:
        """Refuse images with a number of channels that it does not take."""
        if self.channels and x.shape[1] not in self.channels:
            raise ValueError(
                f"images must have {' or '.join(map(str, self.channels))} channels for {name}, "
                f"got {x.shape[1]}."
            )

    def parameters(self, magnitude: Array, place: Place) -> Array:
        """Return what :meth:`run` takes beside the images; ``(m, P)`` float32."""
        form = np.tile(np.array(self.form, np.float32), (len(magnitude), 1))
        params = (self.prepare or alone)(magnitude, form, place)
        return np.ascontiguousarray(params, np.float32)

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


def alone(magnitude: Array, _: Array, __: Place) -> Array:
    """Take the magnitude for the only parameter."""
    return magnitude[:, None]


# Columns of what `warped` takes for a form: how far a magnitude of one turns, slides and moves.
_DEGREES, _SHEAR_X, _SHEAR_Y, _SHARE_X, _SHARE_Y, _PIXELS_X, _PIXELS_Y = range(7)


def _warping(**factors: float) -> tuple[float, ...]:
    names = ("degrees", "shear_x", "shear_y", "share_x", "share_y", "pixels_x", "pixels_y")
    return tuple(factors.get(name, 0.0) for name in names)


@numba.njit(cache=True, nogil=True)
def _warped(magnitude: Array, form: Array, height: int, width: int, out: Array) -> None:
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    for i in range(magnitude.shape[0]):
        angle = np.deg2rad(np.float64(magnitude[i] * form[i, _DEGREES]))
        cos, sin = np.cos(angle), np.sin(angle)
        shear_x, shear_y = magnitude[i] * form[i, _SHEAR_X], magnitude[i] * form[i, _SHEAR_Y]
        # Fractions of a size are cut to whole pixels.
        moved_x = np.trunc(magnitude[i] * form[i, _SHARE_X] * np.float32(width))
        moved_x += np.trunc(magnitude[i] * form[i, _PIXELS_X])
        moved_y = np.trunc(magnitude[i] * form[i, _SHARE_Y] * np.float32(height))
        moved_y += np.trunc(magnitude[i] * form[i, _PIXELS_Y])
        out[i, 0] = out[i, 4] = cos
        out[i, 1], out[i, 3] = shear_x - sin, shear_y + sin
        # A shear keeps the corner, half a pixel off the centre of the first one.
        out[i, 2] = centre_x * (1 - cos) + centre_y * sin + shear_x / 2 - moved_x
        out[i, 5] = centre_y * (1 - cos) - centre_x * sin + shear_y / 2 - moved_y


def warped(magnitude: Array, form: Array, place: Place) -> Array:
    """Return where pixels come from: turned about the centre, slid about the upper left corner."""
    out = np.empty((len(magnitude), 6), np.float32)
    _warped(magnitude, form, place.height, place.width, out)
    return out


def mirrored(magnitude: Array, form: Array, place: Place) -> Array:
    """Return where pixels come from in a mirror; the form says in which axes, x and y."""
    out = np.zeros((len(magnitude), 6), np.float32)
    out[:, 0], out[:, 4] = (1 - 2 * form).T
    out[:, 2], out[:, 5] = form[:, 0] * (place.width - 1), form[:, 1] * (place.height - 1)
    return out


def cropped(padding: Array, _: Array, place: Place) -> Array:
    """Return where pixels come from in a random window of the padded image."""
    steps = np.floor(place.spare * (2 * padding[:, None] + 1)) - padding[:, None]
    out = np.zeros((len(padding), 6), np.float32)
    out[:, 0] = out[:, 4] = 1
    out[:, 2], out[:, 5] = steps[:, 1], steps[:, 0]
    return out


def cut(share: Array, _: Array, place: Place, colour: tuple[float, ...] = (0.5,)) -> Array:
    """Return a square around a uniform pixel, cut off at the edges of the image."""
    side = np.round(share * min(place.height, place.width))
    out = np.empty((len(share), 7), np.float32)
    for axis, size in enumerate((place.height, place.width)):
        first = np.floor(place.spare[:, axis] * size) - np.floor(side / 2)
        out[:, axis], out[:, axis + 2] = first, first + side
    out[:, 4:] = colour
    return out


def blended(factor: Array, form: Array, _: Place) -> Array:
    """Return factors of the image and of what it is blended with: its gray version, its mean."""
    out = np.empty((len(factor), 3), np.float32)
    out[:, 0] = factor
    out[:, 1:] = (1 - factor)[:, None] * form
    return out


def bell(sigma: Array, _: Array, place: Place) -> Array:
    """Return weights of five pixels in a row, of fewer where the image is small."""
    radius = min(2, place.height - 1, place.width - 1)
    away = np.arange(radius + 1)
    scaled = away / np.maximum(sigma.astype(np.float64), 1e-3)[:, None]
    weights: Array = np.exp(-np.square(scaled) / 2)
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]
    return weights


def noisy(sigma: Array, _: Array, place: Place) -> Array:
    return np.concatenate([sigma[:, None], place.spare], 1)


def _warp(low: float, high: float, **factors: float) -> Op:
    form = _warping(**factors)
    return Op(kernels.warp, low, high, signed=True, prepare=warped, form=form)


def _blend(gray: float, mean: float) -> Op:
    return Op(
        kernels.blend,
        *(1, 1.9),
        signed=True,
        prepare=blended,
        form=(gray, mean),
        limits=(0, np.inf),
        channels=(1, 3),
    )


# The first fourteen have the ranges of AutoAugment's search space (Cubuk et al., 2019,
# arXiv:1805.09501, table 6), which RandAugment took over: translations of 150 of 331 pixels, shown
# as fractions of the size, and enhancement by 0.1 to 1.9.
OPS: dict[str, Op] = {
    "rotate": _warp(0, 30, degrees=1),
    "shear_x": _warp(0, 0.3, shear_x=1),
    "shear_y": _warp(0, 0.3, shear_y=1),
    "translate_x": _warp(0, 150 / 331, share_x=1),
    "translate_y": _warp(0, 150 / 331, share_y=1),
    "brightness": _blend(gray=0, mean=0),
    "contrast": _blend(gray=0, mean=1),
    "color": _blend(gray=1, mean=0),
    "sharpness": Op(kernels.sharpen, 1, 1.9, signed=True, prepare=alone, limits=(0, np.inf)),
    "posterize": Op(kernels.posterize, 8, 4, integral=True, prepare=alone, limits=(0, 8)),
    "solarize": Op(kernels.solarize, 1, 0, prepare=alone, limits=(0, 1)),
    "autocontrast": Op(kernels.autocontrast, prepare=alone),
    "equalize": Op(kernels.equalize, prepare=alone),
    "invert": Op(kernels.solarize, prepare=alone, limits=(0, 0)),
    "identity": Op(kernels.identity, prepare=alone),
    "horizontal_flip": Op(kernels.warp, prepare=mirrored, form=(1, 0)),
    "vertical_flip": Op(kernels.warp, prepare=mirrored, form=(0, 1)),
    "translate_x_pixels": _warp(0, 10, pixels_x=1),
    "translate_y_pixels": _warp(0, 10, pixels_y=1),
    "crop": Op(kernels.warp, 4, 4, integral=True, prepare=cropped, limits=(0, np.inf)),
    "crop_reflect": Op(
        kernels.warp_reflected, 4, 4, integral=True, prepare=cropped, limits=(0, np.inf)
    ),
    "cutout": Op(kernels.erase, 0, 0.5, prepare=cut, limits=(0, 1)),
    "gaussian_blur": Op(kernels.blur, 0.1, 2.0, prepare=bell, limits=(0, np.inf)),
    "gaussian_noise": Op(kernels.noise, 0, 0.1, prepare=noisy, limits=(0, np.inf)),
}


def by_name(*names: str) -> dict[str, Op]:
    """Return some of :data:`OPS`."""
    return {name: OPS[name] for name in names}
