"""Numba versions of the kernels for images on the CPU: one row after another, all its operations.

A GPU wants few launches over many rows; a CPU wants a row to stay in cache from the first operation
to the last. Results are bit-identical to ``kernels.py``: the arithmetic has the same dtypes and
order. Hence ``np.float32`` everywhere (a Python number would widen to float64) and no ``fastmath``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba.extending import overload
from torch import Tensor

from augsubset.augment import kernels

__all__ = ["KERNELS", "NUM_PARAMS", "can_run", "replace_rows", "run_rows"]

Images = npt.NDArray[Any]  # uint8 or float32
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_NONE, _WARP, _BLEND, _SHARPEN, _POSTERIZE, _SOLARIZE, _AUTOCONTRAST, _EQUALIZE, _ERASE = range(9)

KERNELS: dict[Callable[..., Tensor], int] = {
    kernels.identity: _NONE,
    kernels.warp: _WARP,
    kernels.blend: _BLEND,
    kernels.sharpen: _SHARPEN,
    kernels.posterize: _POSTERIZE,
    kernels.solarize: _SOLARIZE,
    kernels.autocontrast: _AUTOCONTRAST,
    kernels.equalize: _EQUALIZE,
    kernels.erase: _ERASE,
}
"""The code of the loop that replaces each kernel."""

NUM_PARAMS: dict[Callable[..., Tensor], int] = {
    **{kernels.warp: 6, kernels.blend: 3, kernels.sharpen: 1},
    **{kernels.posterize: 1, kernels.solarize: 1, kernels.erase: 5},
}
"""How many parameters of a row a kernel reads."""

# Height times width of the largest images: float32 counts the pixels of no larger ones.
_MAX_PIXELS = (1 << 23) - 1

# Pixel values per thread below which starting another thread does not pay.
_MIN_VALUES_PER_THREAD = 1 << 21

_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_FIXED_POINT = 1 << 20  # as in kernels.blend


def can_run(x: Tensor) -> bool:
    """Return whether the loops take images ``(B, C, H, W)`` of this device, dtype and size."""
    is_small = x.shape[-2] * x.shape[-1] <= _MAX_PIXELS
    return x.device.type == "cpu" and x.dtype in (torch.uint8, torch.float32) and is_small


def run_rows(x: Tensor, kernel: Int64Array, params: Float32Array) -> Tensor:
    """Return the images with each row's kernels applied in slot order.

    Args:
        x: ``(B, C, H, W)`` uint8 or float32 in [0, 1], contiguous, on the CPU.
        kernel: Code from :data:`KERNELS` for each row and slot. ``(B, S)``
        params: Kernel parameters for each row and slot. ``(B, S, P)``
    """
    out = torch.empty_like(x)
    _run_in_threads(x.numpy(), np.arange(len(x)), kernel, params, out.numpy())
    return out


def replace_rows(x: Tensor, at: Int64Array, kernel: Int64Array, params: Float32Array) -> None:
    """Do the same to the images at some positions of a batch, and write the results over them."""
    images = x.numpy()
    _run_in_threads(images, at, kernel, params, images)


def _run_in_threads(
    source: Images, at: Int64Array, kernel: Int64Array, params: Float32Array, target: Images
) -> None:
    num_values = len(at) * math.prod(source.shape[1:])
    threads = min(torch.get_num_threads(), num_values // _MIN_VALUES_PER_THREAD, len(at))
    if threads <= 1:
        _run(source, at, kernel, params, target)
        return
    ends = np.linspace(0, len(at), threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:  # a new one per call: threads do not survive a fork
        parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
        list(pool.map(lambda i: _run(source, at[i], kernel[i], params[i], target), parts))


@numba.njit(cache=True, nogil=True)
def _run(x: Images, at: Int64Array, kernel: Int64Array, params: Float32Array, out: Images) -> None:
    spare = np.empty(x.shape[1:], x.dtype)
    size = x.shape[2] * x.shape[3]
    plane = np.zeros(size, np.float32)  # intermediate values of a channel
    packed = np.zeros(size + 1, np.uint32)  # all channels of a pixel; the last stays black
    is_in_place = x.ctypes.data == out.ctypes.data
    for i in range(at.shape[0]):
        source, result, num_left = x[at[i]], out[at[i]], 0
        for slot in range(kernel.shape[1]):
            num_left += kernel[i, slot] != _NONE
        if is_in_place and num_left % 2:
            _copy(source, spare)  # where the first kernel reads, as it writes over the image
            source = spare
        elif num_left == 0 and not is_in_place:
            _copy(source, result)
        for slot in range(kernel.shape[1]):
            which, p = kernel[i, slot], params[i, slot]
            if which == _NONE:
                continue
            # Kernels write to the other buffer: copies would cost as much as cheap operations.
            target = result if num_left % 2 else spare
            num_left -= 1
            if which == _WARP and x.itemsize == 1 and x.shape[1] == 3 and not _is_level(p):
                _warp_packed(source, p, target, packed)
            elif which == _WARP:
                _warp(source, p, target)
            elif which == _BLEND:
                _blend(source, p, target, plane)
            elif which == _SHARPEN:
                _sharpen(source, p, target, plane)
            elif which == _POSTERIZE:
                _posterize(source, p, target)
            elif which == _SOLARIZE:
                _solarize(source, p, target)
            elif which == _AUTOCONTRAST:
                _autocontrast(source, target)
            elif which == _EQUALIZE:
                _equalize(source, target)
            elif which == _ERASE:
                _erase(source, p, target)
            source = target


@numba.njit(cache=True, nogil=True)
def _copy(x: Images, out: Images) -> None:
    values, target = x.reshape(-1), out.reshape(-1)  # a flat loop compiles to a memcpy
    for i in range(values.shape[0]):
        target[i] = values[i]


@numba.njit(cache=True, nogil=True)
def _get_white(x: Images) -> np.float32:
    """Return the largest pixel value of the dtype."""
    return np.float32(255) if x.itemsize == 1 else np.float32(1)


@numba.njit(cache=True, nogil=True)
def _is_level(p: Float32Array) -> bool:
    """Return whether rows move as a whole: all columns plus a number, or that minus the column."""
    return bool(p[3] == 0 and abs(p[0]) == 1)


@numba.njit(cache=True, nogil=True)
def _find_sources(
    a: np.float32,
    d: np.float32,
    row_x: np.float32,
    row_y: np.float32,
    bottom: np.float32,
    outside: np.float32,
    across: Float32Array,
    index: Any,
) -> None:
    """Write where each column of a row comes from, as a pixel of the channel."""
    zero, step = np.float32(0), np.float32(across.shape[0])
    right = step - np.float32(1)
    for column in range(across.shape[0]):
        at_x = np.rint(a * across[column] + row_x)
        at_y = np.rint(d * across[column] + row_y)
        x_inside, y_inside = min(max(at_x, zero), right), min(max(at_y, zero), bottom)
        is_inside = (at_x == x_inside) & (at_y == y_inside)
        pixel = y_inside * step + x_inside  # exact: integers
        index[column] = np.int32(pixel if is_inside else outside)


@numba.njit(cache=True, nogil=True)
def _warp_packed(x: Images, p: Float32Array, out: Images, packed: Any) -> None:
    """Warp three channels of bytes, whose pixels are looked up once, not once a channel."""
    _, height, width = x.shape
    source, target, size = x.reshape(-1), out.reshape(-1), height * width
    red, green, blue = source[:size], source[size : 2 * size], source[2 * size :]
    for i in range(size):
        both = np.uint32(red[i]) | (np.uint32(green[i]) << np.uint32(8))
        packed[i] = both | (np.uint32(blue[i]) << np.uint32(16))
    across, bottom = np.arange(width).astype(np.float32), np.float32(height - 1)
    index, row, outside = np.empty(width, np.int32), np.empty(width, np.uint32), np.float32(size)
    count = np.uint64(width)  # unsigned, as in _warp
    for y in range(height):
        row_x = p[1] * np.float32(y) + p[2]
        row_y = p[4] * np.float32(y) + p[5]
        _find_sources(p[0], p[3], row_x, row_y, bottom, outside, across, index)
        for i in range(count):
            row[i] = packed[np.uint32(index[i])]
        for c in range(3):
            to, shift = np.uint64(c * size + y * width), np.uint32(8 * c)
            for i in range(count):
                target[to + i] = np.uint8(row[i] >> shift)


@numba.njit(cache=True, nogil=True)
def _warp(x: Images, p: Float32Array, out: Images) -> None:
    channels, height, width = x.shape
    source, target, size = x.reshape(-1), out.reshape(-1), height * width
    across, step = np.arange(width).astype(np.float32), np.float32(width)
    bottom = np.float32(height - 1)
    index = np.empty(width, np.int32)  # source pixel within a channel, -1 for outside
    a, d = p[0], p[3]
    # Up to 2**16 columns a sum that is inside is rounded by at most 2**-9, so only next to a tie
    # can that change the pixel.
    is_level = _is_level(p) and width <= 1 << 16
    away_from_tie = np.float32(0.5 - 2**-8)
    for y in range(height):
        row_x = p[1] * np.float32(y) + p[2]
        row_y = p[4] * np.float32(y) + p[5]
        is_block = is_level and abs(row_x - np.rint(row_x)) <= away_from_tie
        start = np.int64(0)  # source of the first column inside
        if is_block:
            # Clamp before the cast: a float beyond int64 has no defined result.
            shift = np.int64(min(max(np.rint(row_x), -2 * step), 2 * step))
            first = max(-shift if a > 0 else shift - width + 1, 0)
            last = min(width - shift if a > 0 else shift + 1, width)
            if first < last and np.rint(row_y) >= 0 and np.rint(row_y) < height:
                start = np.int64(np.rint(row_y)) * width + shift + (first if a > 0 else -first)
            else:
                first = last = width
        else:
            _find_sources(a, d, row_x, row_y, bottom, np.float32(-1), across, index)
            # Sources are monotone in the column, so those inside are neighbours.
            first, last = 0, width
            while first < last and index[first] < 0:
                first += 1
            while first < last and index[last - 1] < 0:
                last -= 1
        # Unsigned, as numba compiles a check for negative ones into every other index.
        count, before, after = np.uint64(last - first), np.uint64(first), np.uint64(width - last)
        for c in range(channels):
            at, to = np.uint64(c * size), np.uint64(c * size + y * width)
            for i in range(before):
                target[to + i] = 0
            to += before
            if not is_block:
                for i in range(count):
                    target[to + i] = source[at + np.uint64(index[before + i])]
            elif a > 0:
                at += np.uint64(start)
                for i in range(count):
                    target[to + i] = source[at + i]
            else:
                at += np.uint64(start)
                for i in range(count):
                    target[to + i] = source[at - i]
            to += count
            for i in range(after):
                target[to + i] = 0


def _truncate(value: Any, like: Images) -> Any:
    """Return a value without its fraction for bytes, as it is for floats. In loops only."""


@overload(_truncate, strict=False)
def _compile_truncate(value: Any, like: Any) -> Callable[..., Any]:
    if like.dtype == numba.uint8:
        return lambda value, like: np.int32(value)  # no other cast has vector instructions
    return lambda value, like: value


def _as_integers(plane: Float32Array, like: Images) -> Any:
    """Return a plane for gray levels or sums, as uint16 for bytes. In loops only."""


@overload(_as_integers, strict=False)
def _compile_as_integers(plane: Any, like: Any) -> Callable[..., Any]:
    if like.dtype == numba.uint8:
        return lambda plane, like: plane.view(np.uint16)[: plane.size]
    return lambda plane, like: plane


@numba.njit(cache=True, nogil=True)
def _as_pixel(value: Any, like: Images) -> Any:
    """Return a value clamped to the range of an image, and cast; bytes truncate."""
    return _truncate(min(max(value, np.float32(0)), _get_white(like)), like)


@numba.njit(cache=True, nogil=True)
def _to_gray(x: Images, gray: Any) -> None:
    """Write the luma of each pixel, truncated to integers for bytes."""
    channels = x.shape[0]
    red, green, blue = x[0].reshape(-1), x[1 % channels].reshape(-1), x[2 % channels].reshape(-1)
    for i in range(gray.shape[0]):
        if channels == 1:
            gray[i] = red[i]
        else:
            value = np.float32(red[i]) * _RED
            value += np.float32(green[i]) * _GREEN
            value += np.float32(blue[i]) * _BLUE
            gray[i] = _truncate(value, x)


@numba.njit(cache=True, nogil=True)
def _blend(x: Images, p: Float32Array, out: Images, plane: Float32Array) -> None:
    channels, is_bytes, gray = x.shape[0], x.itemsize == 1, _as_integers(plane, x)
    if channels == 1 and p[1] != 0:
        _copy(x, out)
        return
    of_image, of_gray = p[0], p[1]  # locals: in a loop that writes, p would be read every time
    # Bytes skip what has no weight; in floats it may still change the sign of a zero.
    if of_gray != 0 or p[2] != 0 or not is_bytes:
        _to_gray(x, gray)
    mean = np.float32(0)
    if p[2] != 0 or not is_bytes:
        unit, total = np.float32(1 if is_bytes else _FIXED_POINT), np.int64(0)
        for i in range(gray.shape[0]):
            total += np.int64(gray[i]) if is_bytes else np.int64(np.rint(gray[i] * unit))
        mean = np.float32(total) / np.float32(np.int64(unit) * gray.size)
    add = mean * p[2]
    for c in range(channels):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)
        if channels == 1 or (is_bytes and of_gray == 0):
            for i in range(flat.shape[0]):
                target[i] = _as_pixel(np.float32(flat[i]) * of_image + add, x)
        else:
            for i in range(flat.shape[0]):
                value = np.float32(flat[i]) * of_image + np.float32(gray[i]) * of_gray
                target[i] = _as_pixel(value + add, x)


@numba.njit(cache=True, nogil=True)
def _sharpen(x: Images, p: Float32Array, out: Images, plane: Float32Array) -> None:
    channels, height, width = x.shape
    if height <= 2 or width <= 2:
        _copy(x, out)
        return
    is_bytes, share = x.itemsize == 1, np.float32(1) - p[0]
    sums = _as_integers(plane, x)
    left, middle, right = sums[:-2], sums[1:-1], sums[2:]
    for c in range(channels):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)[1:-1]
        above, below = flat[: -2 * width], flat[2 * width :]
        row = flat[width:-width]
        for i in range(above.shape[0]):
            sums[width + i] = above[i] + row[i] + below[i]
        row = flat[1:-1]
        for i in range(target.shape[0]):
            inner = np.float32(row[i])
            smooth = np.float32(_truncate(left[i] + middle[i] + right[i], x))
            smooth += inner * np.float32(4)
            if is_bytes:
                # The same as the quotient for all 3,316 sums; a division takes much longer.
                smooth = np.rint(smooth * np.float32(1 / 13))
            else:
                smooth /= np.float32(13)
            target[i] = _as_pixel(inner + (smooth - inner) * share, x)
        # The borders stay.
        for y in range(height):
            out[c, y, 0], out[c, y, width - 1] = x[c, y, 0], x[c, y, width - 1]
        for column in range(width):
            out[c, 0, column] = x[c, 0, column]
            out[c, height - 1, column] = x[c, height - 1, column]


@numba.njit(cache=True, nogil=True)
def _posterize(x: Images, p: Float32Array, out: Images) -> None:
    flat, target = x.reshape(-1), out.reshape(-1)
    if x.itemsize == 1:
        mask = np.uint8(256 - np.float32(2 ** np.float64(8 - p[0])))
        for i in range(flat.shape[0]):
            target[i] = np.uint8(flat[i]) & mask
    else:
        levels = np.float32(2 ** np.float64(p[0]))
        for i in range(flat.shape[0]):
            target[i] = min(np.floor(flat[i] * levels), levels - np.float32(1)) / levels


@numba.njit(cache=True, nogil=True)
def _solarize(x: Images, p: Float32Array, out: Images) -> None:
    flat, target, white = x.reshape(-1), out.reshape(-1), _get_white(x)
    if x.itemsize == 1:
        threshold = np.uint8(np.ceil(p[0] * white))
        for i in range(flat.shape[0]):
            value = np.uint8(flat[i])
            target[i] = value ^ np.uint8(255) if value >= threshold else value
    else:
        for i in range(flat.shape[0]):
            target[i] = white - flat[i] if flat[i] >= p[0] else flat[i]


@numba.njit(cache=True, nogil=True)
def _autocontrast(x: Images, out: Images) -> None:
    for c in range(x.shape[0]):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)
        low, high = flat[0], flat[0]
        for i in range(flat.shape[0]):
            low, high = min(low, flat[i]), max(high, flat[i])
        if not high > low:
            _copy(x[c], out[c])
            continue
        first = np.float32(low) + np.float32(0)  # never -0: it compares equal to +0
        scale = (np.float32(high) - first) * np.float32(1 / np.float64(_get_white(x)))
        for i in range(flat.shape[0]):
            target[i] = _as_pixel((np.float32(flat[i]) - first) / scale, x)


@numba.njit(cache=True, nogil=True)
def _equalize(x: Images, out: Images) -> None:
    is_bytes = x.itemsize == 1
    count = x[0].size
    levels, table = np.empty(count, np.uint8), np.zeros(256, np.uint8)
    # Four histograms in turn: neighbouring pixels are often equal, and a second increment of the
    # same counter would wait for the first.
    parts, histogram = np.zeros((4, 256), np.int32), np.zeros(256, np.int64)
    fours = levels[: count // 4 * 4].reshape(-1, 4)
    for c in range(x.shape[0]):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)
        for i in range(count):
            levels[i] = flat[i] if is_bytes else flat[i] * np.float32(256 - 1e-3)
        parts[:] = 0
        for i in range(fours.shape[0]):
            parts[0, fours[i, 0]] += 1
            parts[1, fours[i, 1]] += 1
            parts[2, fours[i, 2]] += 1
            parts[3, fours[i, 3]] += 1
        for i in range(fours.size, count):
            parts[0, levels[i]] += 1
        for level in range(256):
            histogram[level] = parts[0, level] + parts[1, level] + parts[2, level] + parts[3, level]
        brightest = 255
        while histogram[brightest] == 0:
            brightest -= 1
        step = (count - histogram[brightest]) // 255
        below = step // 2
        for level in range(256):
            # In float64, exact here: a division of integers takes twice as long.
            table[level] = level if step == 0 else min(np.float64(below) / np.float64(step), 255)
            below += histogram[level]
        if is_bytes:
            for i in range(count):
                target[i] = table[levels[i]]
        else:
            for i in range(count):
                target[i] = np.float32(table[levels[i]]) / np.float32(255)


@numba.njit(cache=True, nogil=True)
def _erase(x: Images, p: Float32Array, out: Images) -> None:
    channels, height, width = x.shape
    white = _get_white(x)
    _copy(x, out)
    for c in range(channels):
        colour = p[4 + c] if p.shape[0] >= 4 + channels else p[4]
        for y in range(height):
            if y >= p[0] and y < p[2]:
                for column in range(width):
                    if column >= p[1] and column < p[3]:
                        out[c, y, column] = colour * white
