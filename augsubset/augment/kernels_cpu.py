"""Numba versions of the kernels for images on the CPU: one row after another, all its operations.

A GPU wants few launches over many rows; a CPU wants a row to stay in cache from the first operation
to the last. Results are bit-identical to ``kernels.py``: the arithmetic has the same dtypes and
order. Hence ``np.float32`` everywhere (a Python number would widen to float64) and no ``fastmath``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import kernels

__all__ = ["KERNELS", "run_rows"]

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

# Pixel values per thread below which starting another thread does not pay.
_MIN_VALUES_PER_THREAD = 1 << 21

_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_FIXED_POINT = 1 << 20  # as in kernels.blend


def run_rows(x: Tensor, kernel: Int64Array, params: Float32Array) -> Tensor:
    """Return the images with each row's kernels applied in slot order.

    Args:
        x: ``(B, C, H, W)`` uint8 or float32 in [0, 1], contiguous, on the CPU.
        kernel: Code from :data:`KERNELS` for each row and slot. ``(B, S)``
        params: Kernel parameters for each row and slot. ``(B, S, P)``
    """
    out = torch.empty_like(x)
    source, target = x.numpy(), out.numpy()
    threads = min(torch.get_num_threads(), x.numel() // _MIN_VALUES_PER_THREAD, len(x))
    if threads <= 1:
        _run(source, kernel, params, target)
        return out
    ends = np.linspace(0, len(x), threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:  # a new one per call: threads do not survive a fork
        parts = [slice(first, last) for first, last in itertools.pairwise(ends)]
        list(pool.map(lambda at: _run(source[at], kernel[at], params[at], target[at]), parts))
    return out


@numba.njit(cache=True, nogil=True)
def _run(x: Images, kernel: Int64Array, params: Float32Array, out: Images) -> None:
    spare = np.empty(x.shape[1:], x.dtype)
    for i in range(x.shape[0]):
        source, num_left = x[i], 0
        for slot in range(kernel.shape[1]):
            num_left += kernel[i, slot] != _NONE
        if num_left == 0:
            _copy(source, out[i])
        for slot in range(kernel.shape[1]):
            which, p = kernel[i, slot], params[i, slot]
            if which == _NONE:
                continue
            # Kernels write to the other buffer: copies would cost as much as cheap operations.
            target = out[i] if num_left % 2 else spare  # the last is out
            num_left -= 1
            if which == _WARP:
                _warp(source, p, target)
            elif which == _BLEND:
                _blend(source, p, target)
            elif which == _SHARPEN:
                _sharpen(source, p, target)
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
def _is_inside(p: Float32Array, row_x: Any, row_y: Any, column: Any, x: Images) -> Any:
    """Return whether the source of a column is a pixel of the image."""
    at_x = np.rint(p[0] * np.float32(column) + row_x)
    at_y = np.rint(p[3] * np.float32(column) + row_y)
    return at_x >= 0 and at_x < x.shape[2] and at_y >= 0 and at_y < x.shape[1]


@numba.njit(cache=True, nogil=True)
def _warp(x: Images, p: Float32Array, out: Images) -> None:
    channels, height, width = x.shape
    source, target, size = x.reshape(-1), out.reshape(-1), height * width
    zero, right, bottom = np.float32(0), np.float32(width - 1), np.float32(height - 1)
    across, step = np.arange(width).astype(np.float32), np.float32(width)
    index = np.empty(width, np.uint32)  # source pixel within a channel
    a, d = p[0], p[3]
    # Rows that move as a whole: every column plus one number, or that number minus the column.
    # Below 2**14 columns the sum is rounded by at most 2**-9 where it is inside, which matters
    # only next to a tie.
    is_level, away_from_tie = d == 0 and abs(a) == 1, np.float32(0.5 - 2**-8)
    is_level = is_level and width < 1 << 14
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
            if first >= last or not _is_inside(p, row_x, row_y, first, x):
                first = last = width
            else:
                start = np.int64(np.rint(row_y)) * width + shift + (first if a > 0 else -first)
        else:
            # Sources are monotone in the column, so those inside are neighbours.
            first, last = 0, width
            while first < last and not _is_inside(p, row_x, row_y, first, x):
                first += 1
            while first < last and not _is_inside(p, row_x, row_y, last - 1, x):
                last -= 1
            for column in range(width):
                # The bounds matter outside alone, and for NaN.
                at_x = min(max(zero, np.rint(a * across[column] + row_x)), right)
                at_y = min(max(zero, np.rint(d * across[column] + row_y)), bottom)
                index[column] = np.int32(at_y * step + at_x)  # exact: integers
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


@numba.njit(cache=True, nogil=True)
def _to_gray(x: Images, y: int, gray: Float32Array) -> None:
    """Write the luma of one row, truncated to integers for bytes."""
    channels, is_bytes = x.shape[0], x.itemsize == 1
    red, green, blue = x[0, y], x[1 % channels, y], x[2 % channels, y]
    for column in range(x.shape[2]):
        if channels == 1:
            gray[column] = red[column]
        else:
            value = np.float32(red[column]) * _RED
            value += np.float32(green[column]) * _GREEN
            value += np.float32(blue[column]) * _BLUE
            gray[column] = np.floor(value) if is_bytes else value


@numba.njit(cache=True, nogil=True)
def _blend(x: Images, p: Float32Array, out: Images) -> None:
    channels, height, width = x.shape
    is_bytes, white, zero = x.itemsize == 1, _get_white(x), np.float32(0)
    if channels == 1 and p[1] != 0:
        _copy(x, out)
        return
    of_image, of_gray = p[0], p[1]  # locals: in a loop that writes, p would be read every time
    gray = np.zeros(width, np.float32)
    mean = zero
    if p[2] != 0:
        unit = np.float32(1 if is_bytes else _FIXED_POINT)
        total = np.int64(0)
        for y in range(height):
            _to_gray(x, y, gray)
            for column in range(width):
                total += np.int64(gray[column] if is_bytes else np.rint(gray[column] * unit))
        mean = np.float32(total) / np.float32(np.int64(unit) * height * width)
    # Without a weight only the sign of a zero is left of a term.
    add = mean * p[2]
    for y in range(height):
        if of_gray != 0:
            _to_gray(x, y, gray)
        for c in range(channels):
            row, target = x[c, y], out[c, y]
            for column in range(width):
                value = np.float32(row[column]) * of_image
                if channels != 1:
                    value += gray[column] * of_gray
                value += add
                target[column] = min(max(value, zero), white)


@numba.njit(cache=True, nogil=True)
def _sharpen(x: Images, p: Float32Array, out: Images) -> None:
    channels, height, width = x.shape
    _copy(x, out)  # the borders stay
    if height <= 2 or width <= 2:
        return
    is_bytes, white, zero = x.itemsize == 1, _get_white(x), np.float32(0)
    share = np.float32(1) - p[0]
    sums = np.empty(width, np.float32)
    for c in range(channels):
        for y in range(1, height - 1):
            above, row, below, target = x[c, y - 1], x[c, y], x[c, y + 1], out[c, y]
            for column in range(width):
                value = np.float32(above[column]) + np.float32(row[column])
                sums[column] = value + np.float32(below[column])
            for column in range(1, width - 1):
                inner = np.float32(row[column])
                smooth = sums[column - 1] + sums[column]
                smooth += sums[column + 1]
                smooth += inner * np.float32(4)
                if is_bytes:
                    # The quotient rounded, without a division: a sum of bytes over 13 is never a
                    # tie, and half a unit more keeps the product away from the next integer.
                    smooth = np.floor((smooth + np.float32(6.5)) * np.float32(1 / 13))
                else:
                    smooth /= np.float32(13)
                value = inner + (smooth - inner) * share
                target[column] = min(max(value, zero), white)


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
    white, zero = _get_white(x), np.float32(0)
    for c in range(x.shape[0]):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)
        low, high = flat[0], flat[0]
        for i in range(flat.shape[0]):
            low, high = min(low, flat[i]), max(high, flat[i])
        if not high > low:
            _copy(x[c], out[c])
            continue
        first = np.float32(low)
        scale = (np.float32(high) - first) * np.float32(1 / np.float64(white))
        for i in range(flat.shape[0]):
            value = (np.float32(flat[i]) - first) / scale
            target[i] = min(max(value, zero), white)


@numba.njit(cache=True, nogil=True)
def _equalize(x: Images, out: Images) -> None:
    is_bytes = x.itemsize == 1
    count = x[0].size
    levels, table = np.empty(count, np.uint8), np.zeros(256, np.uint8)
    # Four histograms in turn: neighbouring pixels are often equal, and a second increment of the
    # same counter would wait for the first. Unsigned as in _warp.
    parts = np.zeros(4 * 256, np.int32)
    histogram = np.zeros(256, np.int64)
    for c in range(x.shape[0]):
        flat, target = x[c].reshape(-1), out[c].reshape(-1)
        for i in range(count):
            levels[i] = flat[i] if is_bytes else flat[i] * np.float32(256 - 1e-3)
        parts[:] = 0
        for four in range(np.uint64(count // 4)):
            first = four * np.uint64(4)
            parts[np.uint64(levels[first])] += 1
            parts[np.uint64(levels[first + np.uint64(1)]) + np.uint64(256)] += 1
            parts[np.uint64(levels[first + np.uint64(2)]) + np.uint64(512)] += 1
            parts[np.uint64(levels[first + np.uint64(3)]) + np.uint64(768)] += 1
        for i in range(count - count % 4, count):
            parts[levels[i]] += 1
        for level in range(256):
            histogram[level] = parts[level] + parts[level + 256]
            histogram[level] += parts[level + 512] + parts[level + 768]
        brightest = 255
        while histogram[brightest] == 0:
            brightest -= 1
        step = (count - histogram[brightest]) // 255
        below = 0
        for level in range(256):
            table[level] = level if step == 0 else min((below + step // 2) // step, 255)
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
