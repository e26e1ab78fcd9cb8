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
    gray = np.empty(x.shape[2:], np.float32)
    other = np.empty(x.shape[2:], np.float32)
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
            else:
                _copy(source, target)
            if which == _BLEND:
                _blend(target, p, gray)
            elif which == _SHARPEN:
                _sharpen(target, p, gray, other)
            elif which == _POSTERIZE:
                _posterize(target, p)
            elif which == _SOLARIZE:
                _solarize(target, p)
            elif which == _AUTOCONTRAST:
                _autocontrast(target)
            elif which == _EQUALIZE:
                _equalize(target)
            elif which == _ERASE:
                _erase(target, p)
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
def _blend(x: Images, p: Float32Array, gray: Float32Array) -> None:
    channels, height, width = x.shape
    is_bytes, white, zero = x.itemsize == 1, _get_white(x), np.float32(0)
    if channels == 1 and p[1] != 0:
        return
    total = np.int64(0)
    for y in range(height):
        for column in range(width):
            if channels == 1:
                value = np.float32(x[0, y, column])
            else:
                value = np.float32(x[0, y, column]) * _RED
                value += np.float32(x[1, y, column]) * _GREEN
                value += np.float32(x[2, y, column]) * _BLUE
                if is_bytes:
                    value = np.floor(value)
            gray[y, column] = value
            total += np.int64(value if is_bytes else np.rint(value * np.float32(_FIXED_POINT)))
    unit = 1 if is_bytes else _FIXED_POINT
    mean = np.float32(total) / np.float32(unit * height * width)
    add = mean * p[2]
    for c in range(channels):
        for y in range(height):
            for column in range(width):
                value = np.float32(x[c, y, column]) * p[0]
                if channels != 1:
                    value += gray[y, column] * p[1]
                value += add
                x[c, y, column] = min(max(value, zero), white)


@numba.njit(cache=True, nogil=True)
def _sharpen(x: Images, p: Float32Array, sums: Float32Array, smooth: Float32Array) -> None:
    channels, height, width = x.shape
    if height <= 2 or width <= 2:
        return
    is_bytes, white, zero = x.itemsize == 1, _get_white(x), np.float32(0)
    share = np.float32(1) - p[0]
    for c in range(channels):
        image = x[c]
        for y in range(1, height - 1):
            for column in range(width):
                value = np.float32(image[y - 1, column]) + np.float32(image[y, column])
                sums[y, column] = value + np.float32(image[y + 1, column])
        for y in range(1, height - 1):
            for column in range(1, width - 1):
                value = sums[y, column - 1] + sums[y, column]
                value += sums[y, column + 1]
                value += np.float32(image[y, column]) * np.float32(4)
                value /= np.float32(13)
                smooth[y, column] = np.rint(value) if is_bytes else value
        for y in range(1, height - 1):
            for column in range(1, width - 1):
                inner = np.float32(image[y, column])
                value = inner + (smooth[y, column] - inner) * share
                image[y, column] = min(max(value, zero), white)


@numba.njit(cache=True, nogil=True)
def _posterize(x: Images, p: Float32Array) -> None:
    flat = x.reshape(-1)
    if x.itemsize == 1:
        mask = np.uint8(256 - np.float32(2 ** np.float64(8 - p[0])))
        for i in range(flat.shape[0]):
            flat[i] = np.uint8(flat[i]) & mask
    else:
        levels = np.float32(2 ** np.float64(p[0]))
        for i in range(flat.shape[0]):
            flat[i] = min(np.floor(flat[i] * levels), levels - np.float32(1)) / levels


@numba.njit(cache=True, nogil=True)
def _solarize(x: Images, p: Float32Array) -> None:
    flat, white = x.reshape(-1), _get_white(x)
    threshold = np.ceil(p[0] * white) if x.itemsize == 1 else p[0]
    for i in range(flat.shape[0]):
        value = np.float32(flat[i])
        if value >= threshold:
            flat[i] = white - value


@numba.njit(cache=True, nogil=True)
def _autocontrast(x: Images) -> None:
    white, zero = _get_white(x), np.float32(0)
    for c in range(x.shape[0]):
        flat = x[c].reshape(-1)
        low, high = flat[0], flat[0]
        for i in range(flat.shape[0]):
            low, high = min(low, flat[i]), max(high, flat[i])
        if not high > low:
            continue
        first = np.float32(low)
        scale = (np.float32(high) - first) * np.float32(1 / np.float64(white))
        for i in range(flat.shape[0]):
            value = (np.float32(flat[i]) - first) / scale
            flat[i] = min(max(value, zero), white)


@numba.njit(cache=True, nogil=True)
def _equalize(x: Images) -> None:
    is_bytes = x.itemsize == 1
    count = x[0].size
    levels, table = np.empty(count, np.uint8), np.zeros(256, np.uint8)
    # Two histograms in turn: neighbouring pixels are often equal, and a second increment of the
    # same counter would wait for the first.
    histogram = np.zeros((2, 256), np.int64)
    for c in range(x.shape[0]):
        flat = x[c].reshape(-1)
        for i in range(count):
            levels[i] = flat[i] if is_bytes else flat[i] * np.float32(256 - 1e-3)
        histogram[:] = 0
        for i in range(0, count - 1, 2):
            histogram[0, levels[i]] += 1
            histogram[1, levels[i + 1]] += 1
        if count % 2:
            histogram[0, levels[count - 1]] += 1
        brightest = 255
        while histogram[0, brightest] + histogram[1, brightest] == 0:
            brightest -= 1
        step = (count - histogram[0, brightest] - histogram[1, brightest]) // 255
        below = 0
        for level in range(256):
            table[level] = level if step == 0 else min((below + step // 2) // step, 255)
            below += histogram[0, level] + histogram[1, level]
        if is_bytes:
            for i in range(count):
                flat[i] = table[levels[i]]
        else:
            for i in range(count):
                flat[i] = np.float32(table[levels[i]]) / np.float32(255)


@numba.njit(cache=True, nogil=True)
def _erase(x: Images, p: Float32Array) -> None:
    channels, height, width = x.shape
    white = _get_white(x)
    for c in range(channels):
        colour = p[4 + c] if p.shape[0] >= 4 + channels else p[4]
        for y in range(height):
            if y >= p[0] and y < p[2]:
                for column in range(width):
                    if column >= p[1] and column < p[3]:
                        x[c, y, column] = colour * white
