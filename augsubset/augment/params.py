"""From magnitudes to what kernels take: compiled, as many small arrays would take longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["Compiled", "Place", "Prepare", "bell", "cut", "noisy", "prepare_rows"]
__all__ += ["alone", "blended", "cropped", "mirrored", "warped"]

Array = npt.NDArray[Any]  # floating, on the host
Int64Array = npt.NDArray[np.int64]


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

_ALONE, _WARPED, _MIRRORED, _CROPPED, _BLENDED = range(5)
_NUM_PARAMS = (1, 6, 6, 6, 3)

# Columns of the form of a warp: how far a magnitude of one turns, slides and moves.
FORM_OF_WARP = ("degrees", "shear_x", "shear_y", "share_x", "share_y", "pixels_x", "pixels_y")
_DEGREES, _SHEAR_X, _SHEAR_Y, _SHARE_X, _SHARE_Y, _PIXELS_X, _PIXELS_Y = range(7)


@dataclass(frozen=True)
class Compiled:
    """A preparation that :func:`prepare_rows` knows, for any mixture of operations at once.

    Args:
        code: Which one.
    """

    code: int

    def __call__(self, magnitude: Array, form: Array, place: Place) -> Array:
        """Return parameters by magnitudes and forms; ``(m, P)`` float32."""
        num_rows = len(magnitude)
        out = np.zeros((num_rows, 1, max(_NUM_PARAMS)), np.float32)
        prepare_rows(
            np.full(num_rows, self.code),
            np.arange(num_rows)[:, None],
            np.asarray(form, np.float32),
            np.asarray(magnitude, np.float32)[:, None],
            np.asarray(place.spare, np.float32)[:, None],
            place.height,
            place.width,
            out,
        )
        return out[:, 0, : _NUM_PARAMS[self.code]]


alone = Compiled(_ALONE)
"""The magnitude for the only parameter."""

warped = Compiled(_WARPED)
"""Where pixels come from: turned about the centre, slid about the upper left corner."""

mirrored = Compiled(_MIRRORED)
"""Where pixels come from in a mirror; the form says in which axes, x and y."""

cropped = Compiled(_CROPPED)
"""Where pixels come from in a random window of the padded image."""

blended = Compiled(_BLENDED)
"""Factors of the image and of what it is blended with: its gray version, its mean."""


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
    """Write the parameters of every row and slot whose operation's preparation is compiled.

    Args:
        code: Of each operation, -1 for another preparation; the last is that of none.
        op: Operation of each row and slot, -1 for none. ``(B, S)``
        form: Of each operation, zeros after its own.
        magnitude: ``(B, S)``
        spare: ``(B, S, 2)``
        height: Of the images.
        width: Of the images.
        out: Zeros at first. ``(B, S, P)``
    """
    one, two = np.float32(1), np.float32(2)
    # One index after the other: a view would be counted, which takes longer than what is done.
    for i in range(op.shape[0]):
        for slot in range(op.shape[1]):
            at, value = op[i, slot], magnitude[i, slot]
            which = code[at]
            if which == _WARPED:
                xx, xy, xo, yx, yy, yo = _warped(value, form, at, height, width)
                out[i, slot, 0], out[i, slot, 1], out[i, slot, 2] = xx, xy, xo
                out[i, slot, 3], out[i, slot, 4], out[i, slot, 5] = yx, yy, yo
            elif which == _MIRRORED:
                flip_x, flip_y = form[at, 0], form[at, 1]
                out[i, slot, 0], out[i, slot, 4] = one - two * flip_x, one - two * flip_y
                out[i, slot, 2], out[i, slot, 5] = flip_x * (width - 1), flip_y * (height - 1)
            elif which == _CROPPED:
                steps = two * value + one
                out[i, slot, 0] = out[i, slot, 4] = one
                out[i, slot, 2] = np.floor(spare[i, slot, 1] * steps) - value
                out[i, slot, 5] = np.floor(spare[i, slot, 0] * steps) - value
            elif which == _BLENDED:
                rest = one - value
                out[i, slot, 0] = value
                out[i, slot, 1], out[i, slot, 2] = rest * form[at, 0], rest * form[at, 1]
            elif which == _ALONE:
                out[i, slot, 0] = value


@numba.njit(cache=True, nogil=True)
def _warped(magnitude: Any, form: Array, at: int, height: int, width: int) -> tuple[Any, ...]:
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = 1.0, 0.0
    if form[at, _DEGREES] != 0:
        angle = np.deg2rad(np.float64(magnitude * form[at, _DEGREES]))
        cos, sin = np.cos(angle), np.sin(angle)
    shear_x, shear_y = magnitude * form[at, _SHEAR_X], magnitude * form[at, _SHEAR_Y]
    # Fractions of a size are cut to whole pixels.
    moved_x = np.trunc(magnitude * form[at, _SHARE_X] * np.float32(width))
    moved_x += np.trunc(magnitude * form[at, _PIXELS_X])
    moved_y = np.trunc(magnitude * form[at, _SHARE_Y] * np.float32(height))
    moved_y += np.trunc(magnitude * form[at, _PIXELS_Y])
    # A shear keeps the corner, half a pixel off the centre of the first one.
    return (
        cos,
        shear_x - sin,
        centre_x * (1 - cos) + centre_y * sin + shear_x / 2 - moved_x,
        shear_y + sin,
        cos,
        centre_y * (1 - cos) - centre_x * sin + shear_y / 2 - moved_y,
    )


# Drawn seldom enough to be prepared in arrays.


def cut(share: Array, _: Array, place: Place, colour: tuple[float, ...] = (0.5,)) -> Array:
    """Return a square around a uniform pixel, cut off at the edges of the image."""
    side = np.round(share * min(place.height, place.width))
    out = np.empty((len(share), 7), np.float32)
    for axis, size in enumerate((place.height, place.width)):
        first = np.floor(place.spare[:, axis] * size) - np.floor(side / 2)
        out[:, axis], out[:, axis + 2] = first, first + side
    out[:, 4:] = colour
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
    """Return the deviation, and what decides the noise."""
    return np.concatenate([sigma[:, None], place.spare], 1)
