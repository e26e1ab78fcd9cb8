"""The image operations that policies draw from: kernel, parameters and range of magnitudes.

Semantics are those of torchvision (``transforms.v2.functional``) on uint8 and on floats in [0, 1],
even where Pillow differs: ``color`` and ``contrast`` truncate gray values and use their exact mean,
where Pillow rounds both; ``sharpness`` rounds the smoothed image before blending; floats are not
quantised to 256 levels, except by ``equalize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from augsubset.augment import kernels
from augsubset.augment.checks import check_batch, clamp_rounding
from augsubset.augment.params import (
    WARP_FORM,
    Array,
    Prepare,
    PrepareContext,
    prepare_blend,
    prepare_blur,
    prepare_crop,
    prepare_cutout,
    prepare_flip,
    prepare_magnitude,
    prepare_noise,
    prepare_warp,
)
from augsubset.utils.checks import check_number

__all__ = ["OPS", "Op", "select_ops"]


@dataclass(frozen=True)
class Op:
    """An image operation with its range of magnitudes, from weakest to strongest.

    Args:
        apply: Function ``(x, magnitude) -> x`` that treats rows independently: x ``(m, C, H, W)``
            float32 in [0, 1], magnitude ``(m,)``. Its result is clamped to [0, 1].
        low: Magnitude at level 0.
        high: Magnitude at level 1. Levels in between are interpolated linearly.
        signed: If true, half of the rows get the magnitude mirrored about ``low``.
        integral: If true, magnitudes are rounded to integers.
        prepare: Function from magnitudes, forms and a ``PrepareContext`` to the kernel parameters
            ``(m, P)`` on the CPU. With it, ``apply`` is a kernel that takes these parameters, and
            uint8 without conversion. Operations that share a kernel run as one call.
        form: Constants passed to ``prepare``, so that operations can share it.
        limits: Smallest and largest magnitude that ``apply`` is defined for.
        channels: Supported numbers of channels; empty means any.

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
        if not all(self._is_valid(end) for end in ends):
            raise ValueError(
                f"magnitudes must be between {self.limits[0]:g} and {self.limits[1]:g}, got "
                f"{'+-' if self.signed else ''}{self.low:g} to {self.high:g}."
            )

    def _is_valid(self, magnitude: float) -> bool:
        return math.isfinite(magnitude) and self.limits[0] <= magnitude <= self.limits[1]

    def between(self, low: float, high: float) -> Op:
        """Return the same operation with another range of magnitudes."""
        return replace(self, low=low, high=high)

    def __call__(
        self, x: Tensor, magnitude: float | Tensor, spare: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        """Apply the operation to a batch at given magnitudes; nothing is drawn.

        Args:
            x: ``(m, C, H, W)``, uint8 or float in [0, 1].
            magnitude: One number, or one per row ``(m,)``.
            spare: Stands for the other uniform draws: place of a crop or cutout, seed of the noise.

        Raises:
            ValueError: If the images are not supported, or a magnitude is outside ``limits``.
        """
        check_batch(x)
        x = clamp_rounding(x)
        self.check_channels("the operation", x)
        magnitude = torch.as_tensor(magnitude, dtype=torch.float32)
        if magnitude.shape not in ((), (1,), (len(x),)):
            raise ValueError(
                "magnitude must be a number or one per image, got shape "
                f"{tuple(magnitude.shape)} for {len(x)} images."
            )
        if not all(self._is_valid(each) for each in magnitude.flatten().tolist()):
            raise ValueError(
                f"magnitudes must be between {self.limits[0]:g} and {self.limits[1]:g}, got "
                f"{magnitude.tolist()}."
            )
        spares = np.tile(np.array(spare, np.float32), (len(x), 1))
        context = PrepareContext(spares, *x.shape[-2:])
        params = self.compute_params(magnitude.expand(len(x)).numpy(), context)
        # Kernels need float32: in half precision equalize's factor 255.999 would round to 256.
        images = x if x.dtype == torch.uint8 else x.to(torch.float32)
        images = images.contiguous() if self.prepare is not None else images.clone()
        return self.run(images, torch.from_numpy(params).to(x.device)).to(x.dtype)

    def check_channels(self, name: str, x: Tensor) -> None:
        """Raise if the operation does not support the number of channels."""
        if self.channels and x.shape[1] not in self.channels:
            raise ValueError(
                f"images must have {' or '.join(map(str, self.channels))} channels for {name}, "
                f"got {x.shape[1]}."
            )

    def compute_params(self, magnitude: Array, context: PrepareContext) -> Array:
        """Return the parameters for :meth:`run`; ``(m, P)`` float32."""
        form = np.tile(np.array(self.form, np.float32), (len(magnitude), 1))
        params = (self.prepare or prepare_magnitude)(magnitude, form, context)
        return np.ascontiguousarray(params, np.float32)

    def run(self, x: Tensor, params: Tensor) -> Tensor:
        """Apply the kernel, or a user's function to floats in [0, 1]."""
        if self.prepare is not None:
            return self.apply(x, params)
        images = x if x.is_floating_point() else kernels.divide(x.float(), 255)
        out = self.apply(images, params[:, 0])
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"ops must keep the shape {tuple(x.shape)}, got {got}.")
        out = out.clamp(0, 1)
        return out.to(x.dtype) if x.is_floating_point() else (out * 255).round().to(x.dtype)


def _make_warp(low: float, high: float, **factors: float) -> Op:
    form = tuple(factors.get(name, 0.0) for name in WARP_FORM)
    return Op(kernels.warp, low, high, signed=True, prepare=prepare_warp, form=form)


def _make_blend(gray: float, mean: float) -> Op:
    return Op(
        kernels.blend,
        *(1, 1.9),
        signed=True,
        prepare=prepare_blend,
        form=(gray, mean),
        limits=(0, np.inf),
        channels=(1, 3),
    )


# The first fourteen have the ranges of AutoAugment's search space (Cubuk et al., 2019,
# arXiv:1805.09501, table 6), which RandAugment adopted: translation by up to 150 of 331 pixels,
# here a fraction of the size, and enhancement factors of 0.1 to 1.9.
OPS: dict[str, Op] = {
    "rotate": _make_warp(0, 30, degrees=1),
    "shear_x": _make_warp(0, 0.3, shear_x=1),
    "shear_y": _make_warp(0, 0.3, shear_y=1),
    "translate_x": _make_warp(0, 150 / 331, fraction_x=1),
    "translate_y": _make_warp(0, 150 / 331, fraction_y=1),
    "brightness": _make_blend(gray=0, mean=0),
    "contrast": _make_blend(gray=0, mean=1),
    "color": _make_blend(gray=1, mean=0),
    "sharpness": Op(
        kernels.sharpen, 1, 1.9, signed=True, prepare=prepare_magnitude, limits=(0, np.inf)
    ),
    "posterize": Op(
        kernels.posterize, 8, 4, integral=True, prepare=prepare_magnitude, limits=(0, 8)
    ),
    "solarize": Op(kernels.solarize, 1, 0, prepare=prepare_magnitude, limits=(0, 1)),
    "autocontrast": Op(kernels.autocontrast, prepare=prepare_magnitude),
    "equalize": Op(kernels.equalize, prepare=prepare_magnitude),
    "invert": Op(kernels.solarize, prepare=prepare_magnitude, limits=(0, 0)),
    "identity": Op(kernels.identity, prepare=prepare_magnitude),
    "horizontal_flip": Op(kernels.warp, prepare=prepare_flip, form=(1, 0)),
    "vertical_flip": Op(kernels.warp, prepare=prepare_flip, form=(0, 1)),
    "translate_x_pixels": _make_warp(0, 10, pixels_x=1),
    "translate_y_pixels": _make_warp(0, 10, pixels_y=1),
    "crop": Op(kernels.warp, 4, 4, integral=True, prepare=prepare_crop, limits=(0, np.inf)),
    "crop_reflect": Op(
        kernels.warp_reflected, 4, 4, integral=True, prepare=prepare_crop, limits=(0, np.inf)
    ),
    "cutout": Op(
        kernels.erase, 0, 0.5, prepare=prepare_cutout, form=(0.5, 0.5, 0.5), limits=(0, 1)
    ),
    "gaussian_blur": Op(kernels.blur, 0.1, 2.0, prepare=prepare_blur, limits=(0, np.inf)),
    "gaussian_noise": Op(kernels.add_noise, 0, 0.1, prepare=prepare_noise, limits=(0, np.inf)),
}
"""Every built-in operation by name, with its default range."""


def select_ops(*names: str) -> dict[str, Op]:
    """Return the named entries of :data:`OPS`."""
    return {name: OPS[name] for name in names}
