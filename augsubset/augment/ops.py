"""The image operations that policies draw from: a kernel, its parameters, a range of magnitudes.

Semantics are torchvision's (``transforms.v2.functional``) on uint8 and on floats in [0, 1]. Where
it and Pillow differ, torchvision is followed: ``color`` and ``contrast`` blend with gray values
whose fractions are cut off, and with their exact mean, where Pillow rounds both, ``sharpness``
rounds the smoothed image first, and floats are not cut to 256 levels, except by ``equalize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from augsubset.augment import kernels
from augsubset.augment.checks import check_batch, check_unit_range
from augsubset.augment.params import (
    FORM_OF_WARP,
    Array,
    Place,
    Prepare,
    alone,
    bell,
    blended,
    cropped,
    cut,
    mirrored,
    noisy,
    warped,
)
from augsubset.utils.checks import check_number

__all__ = ["OPS", "Op", "by_name"]


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
        # Kernels are written for float32: in half precision 255 levels and a bit are 256.
        images = x if x.dtype == torch.uint8 else x.to(torch.float32)
        images = images.contiguous() if self.prepare is not None else images.clone()
        return self.run(images, torch.from_numpy(params).to(x.device)).to(x.dtype)

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


def _warping(**factors: float) -> tuple[float, ...]:
    return tuple(factors.get(name, 0.0) for name in FORM_OF_WARP)


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
"""Every operation by its name, with the range that it has by default."""


def by_name(*names: str) -> dict[str, Op]:
    """Return some of :data:`OPS`."""
    return {name: OPS[name] for name in names}
