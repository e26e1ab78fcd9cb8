"""Turn magnitudes into the per-row parameters that kernels take.

The common cases are compiled with numba: many NumPy calls on small arrays would take longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["CompiledPrepare", "Prepare", "PrepareContext", "prepare_rows"]
__all__ += ["prepare_blend", "prepare_blur", "prepare_crop", "prepare_cutout", "prepare_flip"]
__all__ += ["prepare_magnitude", "prepare_noise", "prepare_warp"]

Array = npt.NDArray[Any]  # of floats
Int64Array = npt.NDArray[np.int64]


class PrepareContext(NamedTuple):
    """What parameters may depend on besides the magnitude.

    Args:
        spare: Two more uniform numbers in [0, 1) per row. ``(m, 2)``
        height: Image height.
        width: Image width.
    """

    spare: Array
    height: int
    width: int


Prepare = Callable[[Array, Array, PrepareContext], Array]

_MAGNITUDE, _WARP, _FLIP, _CROP, _BLEND, _CUTOUT, _BLUR, _NOISE = range(8)
_NUM_PARAMS = (1, 6, 6, 6, 3, 7, 3, 3)

# Columns of a warp's form: how far a magnitude of 1 rotates, shears and translates, the last both
# as a fraction of the image size and in pixels.
WARP_FORM = ("degrees", "shear_x", "shear_y", "fraction_x", "fraction_y", "pixels_x", "pixels_y")
_DEGREES, _SHEAR_X, _SHEAR_Y, _FRACTION_X, _FRACTION_Y, _PIXELS_X, _PIXELS_Y = range(7)


@dataclass(frozen=True)
class CompiledPrepare:
    """A case of :func:`prepare_rows`, which handles rows of different operations in one call."""

    code: int

    def __call__(self, magnitude: Array, form: Array, context: PrepareContext) -> Array:
        """Return the parameters, ``(m, P)`` float32."""
        num_rows = len(magnitude)
        out = np.zeros((num_rows, 1, max(_NUM_PARAMS)), np.float32)
        prepare_rows(
            np.full(num_rows, self.code),
            np.arange(num_rows)[:, None],
            np.asarray(form, np.float32),
            np.asarray(magnitude, np.float32)[:, None],
            np.asarray(context.spare, np.float32)[:, None],
            context.height,
            context.width,
            out,
        )
        return out[:, 0, : _NUM_PARAMS[self.code]]


prepare_magnitude = CompiledPrepare(_MAGNITUDE)
"""The magnitude itself is the only parameter."""

prepare_warp = CompiledPrepare(_WARP)
"""Inverse affine matrix: rotation about the centre, shear about the upper left corner."""

prepare_flip = CompiledPrepare(_FLIP)
"""Inverse affine matrix of a flip; the form holds a flag for each of x and y."""

prepare_crop = CompiledPrepare(_CROP)
"""Inverse affine matrix of a random window of the padded image."""

prepare_blend = CompiledPrepare(_BLEND)
"""Factors of the image, of its gray version and of its mean; the form says which gets the rest."""

prepare_cutout = CompiledPrepare(_CUTOUT)
"""A square around a random pixel, of the form's colour; what lies outside the image is ignored."""

prepare_blur = CompiledPrepare(_BLUR)
"""A 5-tap Gaussian's weights from the centre outwards, fewer for tiny images."""

prepare_noise = CompiledPrepare(_NOISE)
"""The standard deviation, and the two numbers that seed the noise."""


@numba.njit(cache=True, nogil=True)
def prepare_rows(
    code: Int64Array,
    op: Int64Array,
    form: Array,
    magnitude: Array,
    spare: Array,
    height: int,
    width: int,
    out: Array,
) -> None:
    """Write the parameters of all rows and slots whose operation has a compiled case.

    Args:
        code: Case of each operation, -1 if it has none. The last entry is for op -1, no operation.
        op: Operation of each row and slot, -1 for none. ``(B, S)``
        form: Form of each operation, padded with zeros.
        magnitude: ``(B, S)``
        spare: ``(B, S, 2)``
        height: Image height.
        width: Image width.
        out: Zeros on entry. ``(B, S, P)``
    """
    one = np.float32(1)
    # Indexed element by element: reference counting of a view costs more than the loop body. Three
    # cases before the others: among all of them, branches are guessed wrong more often.
    for i in range(op.shape[0]):
        for slot in range(op.shape[1]):
            at, value = op[i, slot], magnitude[i, slot]
            which = code[at]
            if which == _WARP:
                a, b, c, d, e, f = _get_affine(value, form, at, height, width)
                out[i, slot, 0], out[i, slot, 1], out[i, slot, 2] = a, b, c
                out[i, slot, 3], out[i, slot, 4], out[i, slot, 5] = d, e, f
            elif which == _BLEND:
                out[i, slot, 0], rest = value, one - value
                out[i, slot, 1], out[i, slot, 2] = rest * form[at, 0], rest * form[at, 1]
            elif which == _MAGNITUDE:
                out[i, slot, 0] = value
            elif which >= 0:
                _prepare_other(which, at, form, value, spare, height, width, out, i, slot)


@numba.njit(cache=True, nogil=True)
def _prepare_other(
    which: int,
    at: int,
    form: Array,
    value: Any,
    spare: Array,
    height: int,
    width: int,
    out: Array,
    i: int,
    slot: int,
) -> None:
    """Write the parameters of one row and slot of the rarer cases."""
    one, two = np.float32(1), np.float32(2)
    if which == _FLIP:
        flip_x, flip_y = form[at, 0], form[at, 1]
        out[i, slot, 0], out[i, slot, 4] = one - two * flip_x, one - two * flip_y
        out[i, slot, 2], out[i, slot, 5] = flip_x * (width - 1), flip_y * (height - 1)
    elif which == _CROP:
        num_offsets = two * value + one  # from -value to value
        out[i, slot, 0] = out[i, slot, 4] = one
        out[i, slot, 2] = np.floor(spare[i, slot, 1] * num_offsets) - value
        out[i, slot, 5] = np.floor(spare[i, slot, 0] * num_offsets) - value
    elif which == _CUTOUT:
        side = np.rint(value * np.float32(min(height, width)))
        for axis in range(2):
            size = np.float32(height if axis == 0 else width)
            first = np.floor(spare[i, slot, axis] * size) - np.floor(side / two)
            out[i, slot, axis], out[i, slot, axis + 2] = first, first + side
        for channel in range(3):
            out[i, slot, 4 + channel] = form[at, channel]
    elif which == _BLUR:
        sigma, total = max(np.float64(value), 1e-3), 0.0
        radius = min(2, height - 1, width - 1)
        for away in range(radius + 1):
            total += np.exp(-((away / sigma) ** 2) / 2)
        total = 2 * total - 1  # each twice but the centre, which is 1
        for away in range(radius + 1):
            out[i, slot, away] = np.exp(-((away / sigma) ** 2) / 2) / total
    elif which == _NOISE:
        out[i, slot, 0] = value
        out[i, slot, 1], out[i, slot, 2] = spare[i, slot, 0], spare[i, slot, 1]


@numba.njit(cache=True, nogil=True)
def _get_affine(magnitude: Any, form: Array, at: int, height: int, width: int) -> tuple[Any, ...]:
    """Return a to f of the map from output to source pixels, (a x + b y + c, d x + e y + f).

    It is the inverse of what the image appears to do, hence the minus at every translation.
    """
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = 1.0, 0.0
    if form[at, _DEGREES] != 0:
        angle = np.deg2rad(np.float64(magnitude * form[at, _DEGREES]))
        cos, sin = np.cos(angle), np.sin(angle)
    shear_x, shear_y = magnitude * form[at, _SHEAR_X], magnitude * form[at, _SHEAR_Y]
    # Translations by a fraction of the size are truncated to whole pixels, as in torchvision.
    moved_x = np.trunc(magnitude * form[at, _FRACTION_X] * np.float32(width))
    moved_x += np.trunc(magnitude * form[at, _PIXELS_X])
    moved_y = np.trunc(magnitude * form[at, _FRACTION_Y] * np.float32(height))
    moved_y += np.trunc(magnitude * form[at, _PIXELS_Y])
    # A shear fixes the image's corner, which is half a pixel from the centre of the first pixel:
    # hence shear / 2. A rotation fixes the centre: c - R c.
    return (
        cos,
        shear_x - sin,
        centre_x * (1 - cos) + centre_y * sin + shear_x / 2 - moved_x,
        shear_y + sin,
        cos,
        centre_y * (1 - cos) - centre_x * sin + shear_y / 2 - moved_y,
    )
