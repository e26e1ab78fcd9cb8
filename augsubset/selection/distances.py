"""Squared distances between rows, in blocks; bit-identical in any block and on any device.

Every square is a direct difference, summed over the features in order. The Gram form
|x|^2 + |y|^2 - 2 <x, y> would not be faster here (the compiled loop matches a single-threaded
matrix product), and it loses the near-duplicates of a converged network: in float32, every
distance below about 3e-4 of the rows' norms is noise.

Note: the accuracy of float32. A sum of d squares has a relative error below (d + 2) 2**-24, a
distance half of that: 4e-7 with 10 features, 3e-5 with 1,000, however close two rows are. If
rounding the rows themselves to float32 already lost too much, pass float64. Distances between
outer products of float32 factors have a further error of up to 6e-7 of the rows' norms, from
balancing the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = [
    "Factors",
    "SquaredDistances",
    "bound_absolute_error",
    "bound_relative_error",
    "compute_squares_on_device",
]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Rows = slice | npt.NDArray[np.int64]

_TILE = 512  # columns per pass: four features of them fit in the L1 cache
_CHUNK = 4096  # rows per pass during preparation: bounds the temporaries


class Factors(NamedTuple):
    """One layer's gradients: a vector ``left`` per row, or a matrix ``left ⊗ right``.

    The matrix is never formed: ⟨a⊗h, a'⊗h'⟩ = ⟨a,a'⟩⟨h,h'⟩.

    Args:
        left: ``(n, c)``.
        right: ``(n, d)``, or ``None``.
    """

    left: FloatArray
    right: FloatArray | None = None

    def take(self, positions: npt.NDArray[np.int64]) -> Factors:
        """Return the rows at the given positions."""
        return Factors(self.left[positions], None if self.right is None else self.right[positions])


def bound_relative_error(factors: Sequence[Factors]) -> float:
    """Return a bound on the rounding error of a distance, relative to the distance."""
    widest: int = max(sum(side.shape[1] for side in part if side is not None) for part in factors)
    return (widest + 8) * float(np.finfo(factors[0].left.dtype).eps)


def bound_absolute_error(factors: Sequence[Factors]) -> float:
    """Return a bound on the further, absolute error of distances between outer products.

    Balancing rounds the factors, and some terms of the square may cancel even in float64: both
    errors are relative to the rows' norms, not to the distance.
    """
    products = [part for part in factors if part.right is not None]
    eps = float(np.finfo(factors[0].left.dtype).eps)
    return (4 * eps + 1e-7) * max(map(_find_largest_product, products), default=0.0)


class SquaredDistances:
    """Squared distances between two lists of rows, in units of :attr:`unit` squared.

    The unit is a power of two no smaller than the largest distance: no square overflows, and
    scaling is exact. With several layers, their squares are added. The dtype is that of the rows,
    or float64 for outer products whose terms may cancel.

    Args:
        rows: One entry per layer, n rows each.
        cols: Likewise, m rows; ``None``: the same rows.

    Cost:
        One pass over the rows and a transposed copy of ``cols``; then O(rows cols features) time
        on one core per block.
    """

    def __init__(self, rows: Sequence[Factors], cols: Sequence[Factors] | None = None) -> None:
        sides = [rows] if cols is None else [rows, cols]
        layers = [[side[layer] for side in sides] for layer in range(len(rows))]
        bounds = [_bound_largest_distance(parts) for parts in layers]
        largest = max(bounds)
        norm = largest * float(np.linalg.norm([bound / (largest or 1.0) for bound in bounds]))
        exponent = int(np.frexp(norm)[1])
        self.unit = 2.0**exponent
        self.num_cols = len(sides[-1][0].left)
        never_cancels = all(_is_free_of_cancellation(parts) for parts in layers)
        self.dtype = rows[0].left.dtype if never_cancels else np.dtype(np.float64)
        self.layers = [_Layer(parts[0], parts[-1], exponent, self.dtype) for parts in layers]

    def compute_block(self, rows: Rows, first: int = 0, last: int | None = None) -> FloatArray:
        """Return the squares of some rows against columns ``first`` to ``last`` (exclusive).

        Trap: the result is a view of a buffer that the next call overwrites.
        """
        last = self.num_cols if last is None else last
        total = self.layers[0].compute_block(rows, first, last)
        for layer in self.layers[1:]:
            total += layer.compute_block(rows, first, last)
        return total


def compute_squares_on_device(device: torch.device, many: Sequence[SquaredDistances]) -> Tensor:
    """Return the squares within several lists of rows at once, padded to the longest list.

    Bit-identical to :meth:`SquaredDistances.compute_block`: every operation rounds once, in the
    same order.

    Args:
        device: Where to compute.
        many: Distances within lists of rows, of the same dtype; each has its own unit.

    Returns:
        ``(len(many), n, n)``; the padding is undefined.

    Cost:
        Three kernels per feature over the whole result; twice its size in temporaries.
    """

    def pad(arrays: Iterable[FloatArray]) -> Tensor:
        return pad_sequence([torch.from_numpy(array).to(device) for array in arrays], True)

    total: Tensor | None = None
    for layers in zip(*(one.layers for one in many), strict=True):
        squares, norms = [], []
        for factor in range(len(layers[0].factors)):
            rows = pad(layer.factors[factor][0] for layer in layers)
            columns = rows.transpose(1, 2).contiguous()
            n = rows.shape[1]
            out = torch.zeros(len(rows), n, n, dtype=rows.dtype, device=device)
            for t in range(rows.shape[2]):
                difference = columns[:, t, None, :] - columns[:, t, :, None]
                out += difference.mul_(difference)
            squares.append(out)
        if layers[0].norms:
            for factor in range(2):
                norm = pad(layer.norms[factor][0] for layer in layers)
                norms.append((norm[:, :, None], norm[:, None, :]))
            (a_rows, a_cols), (h_rows, h_cols) = norms
            a, h = (part.double() for part in squares)
            # Four times the square: see _combine_factors, whose order of operations this keeps.
            four = a * (2 * (h_rows + h_cols) - h) + h * (2 * (a_rows + a_cols) - a)
            four += 2 * (a_rows - a_cols) * (h_rows - h_cols)
            scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)
            four *= scales.to(device)[:, None, None]
            squares[0] = four.clamp_(min=0).to(squares[0].dtype)
        total = squares[0] if total is None else total.add_(squares[0])
    assert total is not None
    return total


class _Layer:
    """One layer's factors, scaled so that squares come out in the common unit."""

    def __init__(self, rows: Factors, cols: Factors, exponent: int, dtype: np.dtype[Any]) -> None:
        self.factors: list[tuple[FloatArray, FloatArray]] = []  # rows (n, d), columns (d, m)
        self._buffers: list[FloatArray] = []
        self.norms: list[tuple[Float64Array, Float64Array]] = []
        if rows.right is None or cols.right is None:
            here, there = (_scale(part.left.astype(dtype), -exponent) for part in (rows, cols))
            self.factors.append((here, there.T.copy()))
            return
        scale = -exponent
        for here, there in zip(_balance_norms(rows), _balance_norms(cols), strict=True):
            largest = max(np.abs(here).max(initial=0), np.abs(there).max(initial=0))
            own = int(np.frexp(largest)[1])
            scale += own
            factor = _scale(here, -own).astype(dtype), _scale(there, -own).astype(dtype)
            self.factors.append((factor[0], factor[1].T.copy()))
            self.norms.append((_square_norms(factor[0]), _square_norms(factor[1])))
        self.scale = 0.25 * 4.0**scale

    def _reuse_buffer(self, factor: int, num_rows: int, num_cols: int) -> FloatArray:
        """Return a block's buffer, reused between calls to avoid page faults on fresh memory."""
        size = num_rows * num_cols
        if factor == len(self._buffers):
            self._buffers.append(np.empty(0, self.factors[factor][0].dtype))
        if len(self._buffers[factor]) < size:
            self._buffers[factor] = np.empty(size, self.factors[factor][0].dtype)
        return self._buffers[factor][:size].reshape(num_rows, num_cols)

    def compute_block(self, rows: Rows, first: int, last: int) -> FloatArray:
        squares = []
        for factor, (values, columns) in enumerate(self.factors):
            here = values[rows]
            out = self._reuse_buffer(factor, len(here), last - first)
            out.fill(0)
            _add_squared_differences(here, columns, first, out)
            squares.append(out)
        if self.norms:
            (left, left_cols), (right, right_cols) = self.norms
            norms = left[rows], left_cols[first:last], right[rows], right_cols[first:last]
            _combine_factors(squares[0], squares[1], *norms, self.scale)
        return squares[0]


@numba.njit(cache=True, nogil=True)
def _add_squared_differences(
    rows: FloatArray, columns: FloatArray, first: int, out: FloatArray
) -> None:
    """Add to ``out`` the squared distances of rows (m, d) to columns ``first``... of (d, n).

    Slices are taken inside: numba cannot tell that a slice passed in is contiguous, and would
    compile scalar code.
    """
    m, d = rows.shape
    last = first + out.shape[1]
    for begin in range(first, last, _TILE):
        end = min(last, begin + _TILE)
        for t in range(0, d - d % 4, 4):
            # Four features per pass: loading and storing the sums would dominate otherwise.
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
def _combine_factors(
    left: FloatArray,
    right: FloatArray,
    left_rows: Float64Array,
    left_cols: Float64Array,
    right_rows: Float64Array,
    right_cols: Float64Array,
    scale: float,
) -> None:
    r"""Turn the squared distances of both factors into those of their outer products, in ``left``.

    With :math:`\Delta` the difference and :math:`\Sigma` the sum of two rows,

    .. math:: 4\|a \otimes h - a' \otimes h'\|^2 = \|\Delta a\|^2 \|\Sigma h\|^2
        + \|\Sigma a\|^2 \|\Delta h\|^2
        + 2 (\|a\|^2 - \|a'\|^2)(\|h\|^2 - \|h'\|^2),

    where every term is small if the factors are close; the Gram form subtracts large numbers. Once
    both factors of a row have the same norm, the last term is a square, so no term is negative.
    Only the sums :math:`\|\Sigma h\|^2 = 2 \|h\|^2 + 2 \|h'\|^2 - \|\Delta h\|^2` can still
    cancel, between rows with nearly opposite factors. There are none if no feature of one factor
    changes sign, as with residuals of one class or inputs from a ReLU; else float64 is used.
    """
    for i in range(left.shape[0]):
        for j in range(left.shape[1]):
            a, h = np.float64(left[i, j]), np.float64(right[i, j])
            four = a * (2 * (right_rows[i] + right_cols[j]) - h) + h * (
                2 * (left_rows[i] + left_cols[j]) - a
            )
            four += 2 * (left_rows[i] - left_cols[j]) * (right_rows[i] - right_cols[j])
            left[i, j] = max(four * scale, 0.0)


def _is_free_of_cancellation(parts: Sequence[Factors]) -> bool:
    """Return whether no two rows can have opposite factors: see :func:`_combine_factors`."""

    def has_constant_signs(sides: Sequence[FloatArray]) -> bool:
        low = np.min([side.min(0, initial=0) for side in sides], axis=0)
        high = np.max([side.max(0, initial=0) for side in sides], axis=0)
        return not bool(((low < 0) & (high > 0)).any())

    rights = [part.right for part in parts if part.right is not None]
    return (
        not rights
        or has_constant_signs(rights)
        or has_constant_signs([part.left for part in parts])
    )


def _balance_norms(rows: Factors) -> tuple[Float64Array, Float64Array]:
    """Return both factors in float64, rescaled to equal norms in each row; the product is kept."""
    assert rows.right is not None
    sides = [side.astype(np.float64) for side in (rows.left, rows.right)]
    exponents = [np.frexp(np.abs(side).max(1, initial=0))[1] for side in sides]
    norms = [
        np.sqrt(_square_norms(np.ldexp(side, -exponent[:, None])))
        for side, exponent in zip(sides, exponents, strict=True)
    ]
    is_zero = (norms[0] == 0) | (norms[1] == 0)
    ratio = np.sqrt(np.divide(norms[1], norms[0], out=np.zeros(len(norms[0])), where=~is_zero))
    # Exponents are kept apart from mantissas: the ratio of two norms may overflow.
    difference = exponents[1] - exponents[0]
    shift = difference // 2
    ratio *= np.where(difference % 2, np.sqrt(2.0), 1.0)
    inverse = np.divide(1.0, ratio, out=np.zeros(len(ratio)), where=~is_zero)
    left = np.ldexp(sides[0], shift[:, None]) * ratio[:, None]
    return left, np.ldexp(sides[1], -shift[:, None]) * inverse[:, None]


def _scale(values: FloatArray, exponent: int) -> FloatArray:
    scaled: FloatArray = np.ldexp(values, np.int32(exponent))
    return scaled


def _square_norms(values: FloatArray) -> Float64Array:
    squares = np.empty(len(values))
    for begin in range(0, len(values), _CHUNK):
        some = slice(begin, begin + _CHUNK)
        np.square(values[some], dtype=np.float64).sum(1, out=squares[some])
    return squares


def _bound_largest_distance(parts: Sequence[Factors]) -> float:
    """Return an upper bound on the distances of one layer, within a small factor of the largest.

    Uses |a⊗h - a'⊗h'| <= |a - a'| |h| + |a'| |h - h'|. Independent of the order of the rows.
    """
    left = _bound_diameter([part.left for part in parts])
    if parts[0].right is None:
        return left
    rights = [part.right for part in parts if part.right is not None]
    largest_left, largest_right = (
        max(_find_largest_norm(part) for part in side) for side in ([p.left for p in parts], rights)
    )
    by_factor = left * largest_right + largest_left * _bound_diameter(rights)
    return min(by_factor, 2.000001 * max(_find_largest_product(part) for part in parts))


def _find_largest_norm(values: FloatArray) -> float:
    own = float(np.abs(values).max(initial=0))
    if own == 0:
        return 0.0
    exponent = int(np.frexp(own)[1])
    return float(np.ldexp(np.sqrt(_square_norms(_scale(values, -exponent)).max()), exponent))


def _find_largest_product(rows: Factors) -> float:
    """Return the largest |left| |right| of any row."""
    assert rows.right is not None
    norms = np.ones(len(rows.left))
    scale = 0
    for side in (rows.left, rows.right):
        exponent = int(np.frexp(np.abs(side).max(initial=0))[1])
        norms *= np.sqrt(_square_norms(_scale(side.astype(np.float64), -exponent)))
        scale += exponent
    return float(np.ldexp(norms.max(initial=0), scale))


def _bound_diameter(parts: Sequence[FloatArray]) -> float:
    """Return a bound on the diameter: twice the radius around the centre of the bounding box."""
    if parts[0].shape[1] == 0:
        return 0.0
    low = np.min([part.min(0) for part in parts], axis=0).astype(np.float64)
    high = np.max([part.max(0) for part in parts], axis=0).astype(np.float64)
    widest = float((high - low).max())
    if widest == 0:
        return 0.0
    centre = low + (high - low) / 2
    radius = max(
        float(np.linalg.norm((part[begin : begin + _CHUNK] - centre) / widest, axis=1).max())
        for part in parts
        for begin in range(0, len(part), _CHUNK)
    )
    return 2.000001 * widest * radius
