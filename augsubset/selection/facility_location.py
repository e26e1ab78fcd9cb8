r"""The facility-location objective in exact integer arithmetic.

.. math:: F(S) = \sum_i \max_{j \in S} s(d_{ij}), \qquad F(\emptyset) = 0

with s = C - d and C the largest distance within the class (paper, eq. 11, in the sum form of its
appendix A.6; the Frobenius norm printed there is not a bound). Maximising F minimises the cost
:math:`\xi = \sum_i \min_{j \in S} d_{ij}`.

Note: why integers. Greedy compares sums of thousands of similarities. A floating-point sum depends
on the order of its terms, hence on the maximiser, the chunk size and the device. So each
dissimilarity s(0) - s(d) is rounded once to an integer *level*. Integer sums do not depend on
order, so all exact maximisers return the same picks, ties included. One level of "shifted" is
2**-30 of a power of two within a small factor of C; float32 has only 24 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.selection.distances import (
    Factors,
    Rows,
    SquaredDistances,
    bound_absolute_error,
    bound_relative_error,
    compute_squares_on_device,
)
from augsubset.utils.checks import check_choice

__all__ = [
    "UNIT",
    "FacilityLocation",
    "Levels",
    "Similarity",
    "check_similarity",
    "compute_cost_lower_bound",
    "compute_levels_on_device",
    "find_nearest_other",
    "find_nearest_picks",
    "marginal_gains",
]

UNIT = 1 << 30  # the highest level; the sum of three still fits in uint32, see greedy.py

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]
Similarity = Literal["shifted", "shifted_sq", "exp"] | Callable[[Tensor], Tensor]

_BLOCK = 16  # rows per pass: their mirror image is then written in whole cache lines
_MIRRORED = 32  # features from which computing a square costs more than copying its mirror image


def check_similarity(similarity: Any) -> None:
    """Raise unless the similarity is a known name or a function that maps tensors to tensors."""
    if not callable(similarity):
        check_choice(
            "similarity", similarity, ("shifted", "shifted_sq", "exp"), "Or pass a callable."
        )
        return
    probe = similarity(torch.tensor([[0.0, 0.5, 1.0]]))
    if not isinstance(probe, Tensor) or probe.shape != (1, 3):
        raise TypeError(
            "similarity must return a tensor of the same shape as the distances, got "
            f"{type(probe).__name__}"
            f"{f' of shape {tuple(probe.shape)}' if isinstance(probe, Tensor) else ''}."
        )
    if not float(probe[0, 0]) > 0:
        raise ValueError(
            f"similarity must be positive at distance 0, got {float(probe[0, 0])}. Shift it up."
        )


@dataclass(frozen=True, eq=False)
class Levels:
    """Dissimilarity of every candidate to every example of its class, as integers.

    Args:
        matrix: ``(n, n)`` int32 from 0, zero on the diagonal, symmetric; row = candidate.
        row_sums: ``(n,)``
        nearest_other: Level of each example to the nearest other one. ``(n,)``
        uncovered: Level of an example without a representative.
        step: Dissimilarity per level.
    """

    matrix: Int32Array
    row_sums: Int64Array
    nearest_other: Int32Array
    uncovered: int
    step: float


class FacilityLocation:
    """The objective over one class; computes all levels at once or those of some candidates.

    Args:
        rows: The gradients of the class.
        similarity: As in :func:`select_coreset`.

    Cost:
        All levels of n examples take 4 n^2 bytes and O(n^2 features) time on one core.
    """

    def __init__(self, rows: Sequence[Factors], similarity: Similarity) -> None:
        self.num_examples = len(rows[0].left)
        self.squares = SquaredDistances(rows)
        self.relative_error = bound_relative_error(rows)
        self.absolute_error = bound_absolute_error(rows)
        self._similarity = similarity
        self.takes_root = similarity == "shifted"
        widths = [[side.shape[1] for side in part if side is not None] for part in rows]
        self._width = sum(map(sum, widths))
        self._num_features = sum(left * max([1, *right]) for left, *right in widths)
        if similarity == "shifted":
            self.step = self.squares.unit / UNIT
        elif similarity == "shifted_sq":
            self.step = self.squares.unit**2 / UNIT
        elif similarity == "exp":
            self.step = 1 / UNIT
        else:
            zero = torch.from_numpy(self.squares.compute_block(np.zeros(1, np.int64), 0, 1) * 0)
            self.step = float(similarity(zero)) / UNIT

    @property
    def is_shifted(self) -> bool:
        """Whether C, and so the uncovered level, is only known once all distances are."""
        return self._similarity in ("shifted", "shifted_sq")

    def compute_levels(self, buffer: Int32Array | None = None) -> Levels:
        """Return all levels, in the first n * n elements of ``buffer`` if one is given."""
        n = self.num_examples
        if buffer is None:
            buffer = np.empty(n * n, np.int32)
        matrix = buffer[: n * n].reshape(n, n)
        row_sums, nearest_other = np.zeros(n, np.int64), np.full(n, UNIT, np.int32)
        out: Any = (matrix, row_sums, nearest_other)
        largest = 0
        mirrored = self._width >= _MIRRORED
        for begin in range(0, n, _BLOCK):
            part = self._compute_block(slice(begin, begin + _BLOCK), begin if mirrored else 0)
            constants = _get_constants(part)
            top = _fill_rows(part, self.takes_root, *constants, begin, mirrored, *out)
            largest = max(largest, int(top))
        uncovered = largest if self.is_shifted else UNIT
        return Levels(matrix, row_sums, nearest_other, uncovered, self.step)

    def compute_rows(self, positions: Int64Array) -> Int32Array:
        """Return the levels of some candidates: ``(len(positions), n)``."""
        part = self._compute_block(positions)
        levels = np.empty(part.shape, np.int32)
        _round_rows(part, self.takes_root, *_get_constants(part), levels)
        return levels

    def _compute_block(self, rows: Rows, first: int = 0) -> FloatArray:
        squares = torch.from_numpy(self.squares.compute_block(rows, first))
        return self.compute_dissimilarity(squares).numpy()

    def compute_dissimilarity(self, squares: Tensor) -> Tensor:
        """Return what is rounded to levels: the squares, or (s(0) - s(d)) / s(0), in [0, 1]."""
        if self.is_shifted:
            return squares
        distances = squares.sqrt() * self.squares.unit
        if self._similarity == "exp":
            return -torch.expm1(-distances / self._num_features)
        assert callable(self._similarity)
        greatest = self.step * UNIT  # s(0)
        lost = (greatest - self._similarity(distances).to(distances.dtype)) / greatest
        low, high = float(lost.min()), float(lost.max())
        if not -1e-6 <= low <= high <= 1 + 1e-6:  # catches NaN too
            raise ValueError(
                "similarity must be between 0 and its value at distance 0, got values from "
                f"{greatest * (1 - high):g} to {greatest * (1 - low):g} where that is "
                f"{greatest:g}."
            )
        return lost.clamp(0, 1)


def compute_levels_on_device(
    device: torch.device, many: Sequence[FacilityLocation]
) -> tuple[Tensor, Tensor]:
    """Return the levels of several classes on a device, padded to the largest class.

    Bit-identical to :meth:`FacilityLocation.compute_levels` for "shifted" and "shifted_sq".

    Returns:
        Levels ``(classes, n, n)`` int32, zero in the padding; uncovered level of each class
        ``(classes,)`` int32.
    """
    levels = compute_squares_on_device(device, [one.squares for one in many])
    uncovered = []
    for c, one in enumerate(many):
        n = one.num_examples
        own = levels[c, :n, :n]
        # Via float64: torch's float32 square root is not correctly rounded on every CPU.
        own.copy_(own.double().sqrt_() if one.takes_root else one.compute_dissimilarity(own))
        own.mul_(UNIT).add_(0.5)
        levels[c, n:] = 0
        levels[c, :, n:] = 0
        uncovered.append(own.max().to(torch.int32) if one.is_shifted else torch.tensor(UNIT))
    return levels.to(torch.int32), torch.stack([one.to(device, torch.int32) for one in uncovered])


def _get_constants(part: FloatArray) -> tuple[Any, Any]:
    """Return the factor and offset of rounding in the array's dtype, so that numba keeps it."""
    return part.dtype.type(UNIT), part.dtype.type(0.5)


@numba.njit(cache=True, nogil=True)
def _round(part: FloatArray, root: bool, one: float, half: float, out: Int32Array) -> None:
    """Round a row of dissimilarities (``root``: of their squares) to levels."""
    if root:
        for j in range(part.shape[0]):
            out[j] = np.int32(np.sqrt(part[j]) * one + half)
    else:
        for j in range(part.shape[0]):
            out[j] = np.int32(part[j] * one + half)


@numba.njit(cache=True, nogil=True)
def _round_rows(part: FloatArray, root: bool, one: float, half: float, out: Int32Array) -> None:
    for i in range(part.shape[0]):
        _round(part[i], root, one, half, out[i])


@numba.njit(cache=True, nogil=True)
def _fill_rows(
    part: FloatArray,
    root: bool,
    one: float,
    half: float,
    begin: int,
    mirrored: bool,
    matrix: Int32Array,
    row_sums: Int64Array,
    nearest_other: Int32Array,
) -> np.int32:
    """Write a block of rows, complete or right of the diagonal and mirrored; return the largest.

    Several simple loops instead of one: numba vectorises each of them.
    """
    m, width = part.shape
    end = begin + m
    first = matrix.shape[1] - width
    largest = np.int32(0)
    for i in range(m):
        row = matrix[begin + i, first:]
        _round(part[i], root, one, half, row)
        total = np.int64(0)
        for j in range(width):
            total += row[j]
        for j in range(width):
            largest = max(largest, row[j])
        own = begin + i - first
        least = nearest_other[begin + i]
        for j in range(own):
            least = min(least, row[j])
        for j in range(own + 1, width):
            least = min(least, row[j])
        row_sums[begin + i] += total
        nearest_other[begin + i] = least
    if not mirrored:
        return largest
    for j in range(end, matrix.shape[1]):
        mirror = matrix[j, begin:end]
        total, least = np.int64(0), nearest_other[j]
        for i in range(m):
            value = matrix[begin + i, j]
            mirror[i] = value
            total += value
            least = min(least, value)
        row_sums[j] += total
        nearest_other[j] = least
    return largest


@numba.njit(cache=True, nogil=True)
def _sum_gains(levels: Int32Array, coverage: Int32Array, gains: Int64Array) -> None:
    for j in range(levels.shape[0]):
        row = levels[j]
        total = np.int64(0)
        for i in range(row.shape[0]):
            total += np.int64(max(coverage[i] - row[i], np.int32(0)))
        gains[j] = total


def marginal_gains(levels: Int32Array, coverage: Int32Array) -> Int64Array:
    r"""Return the gain in facility-location value from adding each candidate, in levels.

    .. math:: \Delta(j \mid S) = \sum_i \max(0,\, c_i - d_{ji})

    Args:
        levels: Row = candidate.
        coverage: Level of each example to its representative; the uncovered level if it has none.

    Shape:
        levels ``(m, n)``; coverage ``(n,)``; returns ``(m,)`` int64.

    Cost:
        O(m n) time on one core, no temporaries.
    """
    gains = np.empty(len(levels), np.int64)
    _sum_gains(levels, coverage, gains)
    return gains


@numba.njit(cache=True, nogil=True)
def find_nearest_picks(levels: Int32Array, order: Int64Array, coverage: Int32Array) -> Int64Array:
    """Return each example's nearest pick; a pick's own is itself, ties go to the lowest position.

    Args:
        levels: Of the whole class. ``(n, n)``
        order: Picked positions.
        coverage: Overwritten with the level of each example to its nearest pick.
    """
    n = coverage.shape[0]
    nearest = np.full(n, n, np.int64)
    coverage[:] = np.iinfo(np.int32).max
    for t in range(order.shape[0]):
        pick = order[t]
        row = levels[pick]
        for i in range(n):
            if row[i] < coverage[i] or (row[i] == coverage[i] and pick < nearest[i]):
                coverage[i] = row[i]
                nearest[i] = pick
    for t in range(order.shape[0]):
        nearest[order[t]] = order[t]
    return nearest


def find_nearest_other(levels: Tensor, order: Tensor) -> Tensor:
    """Return the level of each pick to the nearest other example of its class, on the device."""
    rows = levels[order]
    return rows.scatter_(1, order[:, None], UNIT).amin(1).long()


def compute_cost_lower_bound(
    cost: int, remaining_gains: Int64Array, nearest_other: npt.NDArray[Any]
) -> int:
    r"""Return a lower bound on the cost of any subset of the same size, in levels.

    For any multipliers v >= 0 and any S of size k,

    .. math:: \sum_i \min_{j \in S} d_{ij}
        \ge \sum_i v_i - \sum_{j \in S} \sum_i \max(0, v_i - d_{ij})

    and the last sum is at most that of the k candidates for which it is largest. With v_i the
    distance of i to its representative, the bound is the cost minus the k largest remaining
    gains. But then v is 0 for the picks, and the bound approaches 0 as k grows. So for a pick, v
    is the distance to its nearest other example instead. This is never worse: it adds that
    distance to the first sum and makes it the pick's own gain, and changes no other gain, since
    no other example is closer than that.

    Args:
        cost: Of the picks.
        remaining_gains: Marginal gain of each candidate after the last pick, 0 for a pick. ``(n,)``
        nearest_other: Level of each pick to the nearest other example. ``(k,)``

    Cost:
        O(n) time.

    Reference:
        The Lagrangian relaxation of k-median (Cornuejols, Fisher & Nemhauser, 1977).
    """
    k = len(nearest_other)
    # A pick occurs in both, but its zero in the former is never needed among the k largest.
    gains = np.concatenate([remaining_gains, nearest_other])
    largest = np.partition(gains, len(gains) - k)[len(gains) - k :]
    return int(cost + nearest_other.sum(dtype=np.int64) - largest.sum())
