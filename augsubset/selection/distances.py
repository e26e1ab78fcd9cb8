"""Squared distances between rows, a block at a time: the same bits in any block, on any device.

Every square is a direct difference, summed over the features in their order. The Gram form
|x|^2 + |y|^2 - 2 <x, y> would not be faster here (the compiled loop keeps up with the matrix
products of one thread), and it loses the near-duplicates of a converged network: in float32, every
distance below some 3e-4 of the rows' norms is noise.

Note: what float32 costs. A sum of d squares has a relative error below (d + 2) 2**-24, a distance
half of that: 4e-7 with 10 features, 3e-5 with 1,000, however close two rows are. What was lost when
the rows themselves were rounded to float32, no distance brings back: pass float64 there. Products
of float32 factors are off by up to 6e-7 of the rows' norms besides, what balancing rounds them by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["Factors", "SquaredDistances", "absolute_error", "relative_error", "squares_on"]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Rows = slice | npt.NDArray[np.int64]

_TILE = 512  # columns a pass: four features of them stay in the first-level cache
_CHUNK = 4096  # rows a pass in the preparations, so that nothing is copied whole


class Factors(NamedTuple):
    """One layer's part of every row: the vector ``left``, or the matrix ``left ⊗ right``.

    The matrix is never formed: ⟨a⊗h, a'⊗h'⟩ = ⟨a,a'⟩⟨h,h'⟩.

    Args:
        left: ``(n, c)``.
        right: ``(n, d)``, or ``None``.
    """

    left: FloatArray
    right: FloatArray | None = None

    def at(self, positions: npt.NDArray[np.int64]) -> Factors:
        """Return the rows at some positions."""
        return Factors(self.left[positions], None if self.right is None else self.right[positions])


def relative_error(factors: Sequence[Factors]) -> float:
    """Return what rounding does to a distance between vectors at most, relative to it."""
    return max(  # type: ignore[no-any-return]
        (part.left.shape[1] + (0 if part.right is None else part.right.shape[1]) + 8)
        * float(np.finfo(part.left.dtype).eps)
        for part in factors
    )


def absolute_error(factors: Sequence[Factors]) -> float:
    """Return what rounding does to a distance at most beside that.

    Balancing rounds the factors of a product, and terms of its square may cancel where they are in
    float64: either error is relative to the norms, not to the distance.
    """
    largest = [_largest_product(part) for part in factors if part.right is not None]
    eps = float(np.finfo(factors[0].left.dtype).eps)
    return (4 * eps + 1e-7) * max(largest, default=0.0)


class SquaredDistances:
    """Squared distances between two lists of rows in units of :attr:`unit` squared.

    The unit is a power of two, at least the largest distance: no square overflows, and scaling
    costs no bit. Rows of several layers have the sum of the layers' squares. Squares are of the
    rows' type, or float64 where terms of a product's may cancel.

    Args:
        rows: One entry a layer, all of n rows.
        cols: Likewise, m rows; ``None``: the same rows.

    Cost:
        A pass over the rows and a transposed copy of ``cols``; a block then takes
        O(rows cols features) time on one core.
    """

    def __init__(self, rows: Sequence[Factors], cols: Sequence[Factors] | None = None) -> None:
        sides = [rows] if cols is None else [rows, cols]
        layers = [[side[layer] for side in sides] for layer in range(len(rows))]
        bounds = [_largest_distance(parts) for parts in layers]
        largest = max(bounds)
        norm = largest * float(np.linalg.norm([bound / (largest or 1.0) for bound in bounds]))
        exponent = int(np.frexp(norm)[1])
        self.unit = 2.0**exponent
        self.num_cols = len(sides[-1][0].left)
        is_safe = all(_cannot_cancel(parts) for parts in layers)
        self.dtype = rows[0].left.dtype if is_safe else np.dtype(np.float64)
        self.layers = [_Layer(parts[0], parts[-1], exponent, self.dtype) for parts in layers]

    def block(self, rows: Rows, first: int = 0, last: int | None = None) -> FloatArray:
        """Return squares of some rows against the columns from ``first`` to before ``last``.

        The next block is written over this one.
        """
        last = self.num_cols if last is None else last
        total = self.layers[0].block(rows, first, last)
        for layer in self.layers[1:]:
            total += layer.block(rows, first, last)
        return total


def squares_on(device: torch.device, many: Sequence[SquaredDistances]) -> Tensor:
    """Return the squares within several lists of rows at once, padded to the longest.

    Each operation rounds once and in the order of :meth:`SquaredDistances.block`: the same bits.

    Args:
        device: Where they are computed.
        many: Distances within lists of rows, of one dtype; each in its own unit.

    Returns:
        ``(len(many), n, n)``; what lies outside a list's own square is of no meaning.

    Cost:
        Three kernels a feature over the whole result; twice its size in temporaries.
    """
    total: Tensor | None = None
    for layers in zip(*(one.layers for one in many), strict=True):
        squares, norms = [], []
        for factor in range(len(layers[0].factors)):
            rows = pad_sequence(
                [torch.from_numpy(layer.factors[factor][0]).to(device) for layer in layers], True
            )
            columns = rows.transpose(1, 2).contiguous()
            out = torch.zeros(
                len(rows), rows.shape[1], rows.shape[1], dtype=rows.dtype, device=device
            )
            for t in range(rows.shape[2]):
                difference = columns[:, t, None, :] - columns[:, t, :, None]
                out += difference.mul_(difference)
            squares.append(out)
        if layers[0].norms:
            for factor in range(2):
                norm = pad_sequence(
                    [torch.from_numpy(layer.norms[factor][0]).to(device) for layer in layers], True
                )
                norms.append((norm[:, :, None], norm[:, None, :]))
            (a_rows, a_cols), (h_rows, h_cols) = norms
            a, h = (part.double() for part in squares)
            four = a * (2 * (h_rows + h_cols) - h) + h * (2 * (a_rows + a_cols) - a)
            four += 2 * (a_rows - a_cols) * (h_rows - h_cols)
            scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)
            four *= scales.to(device)[:, None, None]
            squares[0] = four.clamp_(min=0).to(squares[0].dtype)
        total = squares[0] if total is None else total.add_(squares[0])
    assert total is not None
    return total


class _Layer:
    """One layer's factors, scaled to the common unit."""

    def __init__(self, rows: Factors, cols: Factors, exponent: int, dtype: np.dtype[Any]) -> None:
        self.factors: list[tuple[FloatArray, FloatArray]] = []  # rows (n, d), columns (d, m)
        self._memory: list[FloatArray] = []
        self.norms: list[tuple[Float64Array, Float64Array]] = []
        if rows.right is None or cols.right is None:
            here, there = (_scaled(part.left.astype(dtype), -exponent) for part in (rows, cols))
            self.factors.append((here, there.T.copy()))
            return
        scale = -exponent
        for here, there in zip(_balanced(rows), _balanced(cols), strict=True):
            largest = max(np.abs(here).max(initial=0), np.abs(there).max(initial=0))
            own = int(np.frexp(largest)[1])
            scale += own
            factor = _scaled(here, -own).astype(dtype), _scaled(there, -own).astype(dtype)
            self.factors.append((factor[0], factor[1].T.copy()))
            self.norms.append((_squared_norms(factor[0]), _squared_norms(factor[1])))
        self.scale = 0.25 * 4.0**scale

    def _out(self, factor: int, num_rows: int, num_cols: int) -> FloatArray:
        """Return memory for a block; the same as before, or its pages would be faulted in anew."""
        size = num_rows * num_cols
        if factor == len(self._memory):
            self._memory.append(np.empty(0, self.factors[factor][0].dtype))
        if len(self._memory[factor]) < size:
            self._memory[factor] = np.empty(size, self.factors[factor][0].dtype)
        return self._memory[factor][:size].reshape(num_rows, num_cols)

    def block(self, rows: Rows, first: int, last: int) -> FloatArray:
        squares = []
        for factor, (values, columns) in enumerate(self.factors):
            here = values[rows]
            out = self._out(factor, len(here), last - first)
            out.fill(0)
            _squares(here, columns, first, out)
            squares.append(out)
        if self.norms:
            (left, left_cols), (right, right_cols) = self.norms
            _combine(
                squares[0],
                squares[1],
                left[rows],
                left_cols[first:last],
                right[rows],
                right_cols[first:last],
                self.scale,
            )
        return squares[0]


@numba.njit(cache=True, nogil=True)
def _squares(rows: FloatArray, columns: FloatArray, first: int, out: FloatArray) -> None:
    """Add squared distances of rows (m, d) to columns first.. of (d, n) to all of out.

    Rows of the arrays are sliced inside: of a slice passed in, numba would not know that its
    elements are adjacent, and would compile scalar code.
    """
    m, d = rows.shape
    last = first + out.shape[1]
    for begin in range(first, last, _TILE):
        end = min(last, begin + _TILE)
        for t in range(0, d - d % 4, 4):
            # Four features a pass: reading and writing the sums would take most of the time.
            c0 = columns[t, begin:end]
            c1 = columns[t + 1, begin:end]
            c2 = columns[t + 2, begin:end]
            c3 = columns[t + 3, begin:end]
            for i in range(m):
                sums = out[i, begin - first : end - first]
                x0, x1, x2, x3 = rows[i, t], rows[i, t + 1], rows[i, t + 2], rows[i, t + 3]
                for j in range(end - begin):
                    total = sums[j]
                    difference = c0[j] - x0
                    total += difference * difference
                    difference = c1[j] - x1
                    total += difference * difference
                    difference = c2[j] - x2
                    total += difference * difference
                    difference = c3[j] - x3
                    total += difference * difference
                    sums[j] = total
        for t in range(d - d % 4, d):
            column = columns[t, begin:end]
            for i in range(m):
                sums = out[i, begin - first : end - first]
                x0 = rows[i, t]
                for j in range(end - begin):
                    difference = column[j] - x0
                    sums[j] += difference * difference


@numba.njit(cache=True, nogil=True)
def _combine(
    left: FloatArray,
    right: FloatArray,
    left_rows: Float64Array,
    left_cols: Float64Array,
    right_rows: Float64Array,
    right_cols: Float64Array,
    scale: float,
) -> None:
    r"""Turn squared distances of two factors into those of their outer products, in ``left``.

    With :math:`\Delta` a difference and :math:`\Sigma` a sum of two rows,

    .. math:: 4\|a \otimes h - a' \otimes h'\|^2 = \|\Delta a\|^2 \|\Sigma h\|^2
        + \|\Sigma a\|^2 \|\Delta h\|^2
        + 2 (\|a\|^2 - \|a'\|^2)(\|h\|^2 - \|h'\|^2),

    where every term is small when the factors are close; the Gram form subtracts large ones. With
    both factors of one norm the last term is a square, so no term is negative. What may still
    cancel is a sum, :math:`\|\Sigma h\|^2 = 2 \|h\|^2 + 2 \|h'\|^2 - \|\Delta h\|^2`, between rows
    with nearly opposite factors. Where each feature of one factor has one sign, as residuals of a
    class and inputs from a ReLU do, no two rows are opposite; elsewhere this is done in float64.
    """
    for i in range(left.shape[0]):
        for j in range(left.shape[1]):
            a, h = np.float64(left[i, j]), np.float64(right[i, j])
            four = a * (2 * (right_rows[i] + right_cols[j]) - h) + h * (
                2 * (left_rows[i] + left_cols[j]) - a
            )
            four += 2 * (left_rows[i] - left_cols[j]) * (right_rows[i] - right_cols[j])
            left[i, j] = max(four * scale, 0.0)


def _cannot_cancel(parts: Sequence[Factors]) -> bool:
    """Return whether no two rows of a layer have opposite factors: see :func:`_combine`.

    It is so for vectors, and where no feature of one factor has both signs.
    """

    def one_signed(sides: Sequence[FloatArray]) -> bool:
        low = np.min([side.min(0, initial=0) for side in sides], axis=0)
        high = np.max([side.max(0, initial=0) for side in sides], axis=0)
        return not bool(((low < 0) & (high > 0)).any())

    rights = [part.right for part in parts if part.right is not None]
    return not rights or one_signed(rights) or one_signed([part.left for part in parts])


def _balanced(rows: Factors) -> tuple[Float64Array, Float64Array]:
    """Return both factors in float64, each row's of one norm: their product is the same."""
    assert rows.right is not None
    sides = [side.astype(np.float64) for side in (rows.left, rows.right)]
    exponents = [np.frexp(np.abs(side).max(1, initial=0))[1] for side in sides]
    norms = [
        np.sqrt(_squared_norms(np.ldexp(side, -exponent[:, None])))
        for side, exponent in zip(sides, exponents, strict=True)
    ]
    is_zero = (norms[0] == 0) | (norms[1] == 0)
    ratio = np.sqrt(np.divide(norms[1], norms[0], out=np.zeros(len(norms[0])), where=~is_zero))
    # Exponents apart: a power of two of the whole range would overflow on the way.
    difference = exponents[1] - exponents[0]
    shift = difference // 2
    ratio *= np.where(difference % 2, np.sqrt(2.0), 1.0)
    inverse = np.divide(1.0, ratio, out=np.zeros(len(ratio)), where=~is_zero)
    left = np.ldexp(sides[0], shift[:, None]) * ratio[:, None]
    return left, np.ldexp(sides[1], -shift[:, None]) * inverse[:, None]


def _scaled(values: FloatArray, exponent: int) -> FloatArray:
    scaled: FloatArray = np.ldexp(values, np.int32(exponent))
    return scaled


def _squared_norms(values: FloatArray) -> Float64Array:
    return np.concatenate(
        [np.square(values[:0], dtype=np.float64).sum(1)]
        + [
            np.square(values[begin : begin + _CHUNK], dtype=np.float64).sum(1)
            for begin in range(0, len(values), _CHUNK)
        ]
    )


def _largest_distance(parts: Sequence[Factors]) -> float:
    """Return a bound on the distances of one layer, within a small factor of the largest.

    From |a⊗h - a'⊗h'| <= |a - a'| |h| + |a'| |h - h'|. The order of the rows does not matter.
    """
    left = _spread([part.left for part in parts])
    if parts[0].right is None:
        return left
    rights = [part.right for part in parts if part.right is not None]
    largest_left, largest_right = (
        max(_largest_norm(part) for part in side) for side in ([p.left for p in parts], rights)
    )
    by_factor = left * largest_right + largest_left * _spread(rights)
    return min(by_factor, 2.000001 * max(_largest_product(part) for part in parts))


def _largest_norm(values: FloatArray) -> float:
    own = float(np.abs(values).max(initial=0))
    if own == 0:
        return 0.0
    exponent = int(np.frexp(own)[1])
    return float(np.ldexp(np.sqrt(_squared_norms(_scaled(values, -exponent)).max()), exponent))


def _largest_product(rows: Factors) -> float:
    """Return the largest norm of a row, |left| |right|."""
    assert rows.right is not None
    norms = np.ones(len(rows.left))
    scale = 0
    for side in (rows.left, rows.right):
        exponent = int(np.frexp(np.abs(side).max(initial=0))[1])
        norms *= np.sqrt(_squared_norms(_scaled(side.astype(np.float64), -exponent)))
        scale += exponent
    return float(np.ldexp(norms.max(initial=0), scale))


def _spread(parts: Sequence[FloatArray]) -> float:
    """Return twice the largest distance from the middle of the box around all rows."""
    if parts[0].shape[1] == 0:
        return 0.0
    low = np.min([part.min(0) for part in parts], axis=0).astype(np.float64)
    high = np.max([part.max(0) for part in parts], axis=0).astype(np.float64)
    widest = float((high - low).max())
    if widest == 0:
        return 0.0
    middle = low + (high - low) / 2
    radius = max(
        float(np.linalg.norm((part[begin : begin + _CHUNK] - middle) / widest, axis=1).max())
        for part in parts
        for begin in range(0, len(part), _CHUNK)
    )
    return 2.000001 * widest * radius
