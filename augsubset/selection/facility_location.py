r"""The objective: how well a subset represents its class, in exact integers.

.. math:: F(S) = \sum_i \max_{j \in S} s(d_{ij}), \qquad F(\emptyset) = 0

with s = C - d and C the largest distance within the class (paper, eq. 11, in the sum form of its
appendix A.6; the Frobenius norm printed there bounds nothing). Maximising it minimises the cost
:math:`\xi = \sum_i \min_{j \in S} d_{ij}`.

Note: why integers. Greedy compares sums of thousands of similarities, and a floating-point sum
depends on its order, hence on the maximiser, the chunk size and the device. What is lost against
the greatest similarity, s(0) - s(d), is therefore rounded once to an integer *level*. Integer sums
have no order, so every exact maximiser returns the same picks, ties included. One level of
"shifted" is 2**-30 of a power of two that is a few times C at most; float32 carries 24 bits.
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
    SquaredDistances,
    absolute_error,
    relative_error,
    squares_on,
)
from augsubset.utils.checks import check_choice

__all__ = [
    "UNIT",
    "FacilityLocation",
    "Levels",
    "Similarity",
    "apart_on",
    "check_similarity",
    "cost_lower_bound",
    "levels_on",
    "marginal_gains",
    "nearest_picks",
]

UNIT = 1 << 30

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]
Similarity = Literal["shifted", "shifted_sq", "exp"] | Callable[[Tensor], Tensor]

_BLOCK = 16  # rows a pass: their mirror image is then written by whole cache lines
_MIRRORED = 32  # features from which computing a square costs more than copying it across


def check_similarity(similarity: Any) -> None:
    """Refuse a similarity that is neither a known name nor a decreasing function of distance."""
    if not callable(similarity):
        check_choice(
            "similarity", similarity, ("shifted", "shifted_sq", "exp"), "Or pass a callable."
        )
        return
    probe = similarity(torch.tensor([[0.0, 0.5, 1.0]]))
    if not isinstance(probe, Tensor) or probe.shape != (1, 3):
        raise TypeError(
            "similarity must return one value a distance as a tensor of the same shape, got "
            f"{type(probe).__name__}"
            f"{f' of shape {tuple(probe.shape)}' if isinstance(probe, Tensor) else ''}."
        )
    if not float(probe[0, 0]) > 0:
        raise ValueError(
            f"similarity must be positive at distance 0, got {float(probe[0, 0])}. Shift it up."
        )


@dataclass(frozen=True, eq=False)
class Levels:
    """What each candidate lacks in similarity to each example of its class, as integers.

    Args:
        lost: ``(n, n)`` int32 from 0, zero on the diagonal, symmetric; row = candidate.
        sums: Sums of its rows. ``(n,)``
        apart: Level of each example from the nearest other one. ``(n,)``
        start: Level of an example that nobody represents.
        step: Similarity that one level stands for.
    """

    lost: Int32Array
    sums: Int64Array
    apart: Int32Array
    start: int
    step: float


class FacilityLocation:
    """The objective over one class: its levels all at once, or of some candidates.

    Args:
        rows: The gradients of the class.
        similarity: ``"shifted"``, C - d. ``"shifted_sq"``, C^2 - d^2. ``"exp"``, exp(-d / p) with p
            the number of features, which the paper's released code ran. Or a function of a
            distance tensor, elementwise, between 0 and its value at 0.

    Cost:
        The levels of n examples take 4 n^2 bytes, and O(n^2 features) time on one core.
    """

    def __init__(self, rows: Sequence[Factors], similarity: Similarity) -> None:
        self.num_examples = len(rows[0].left)
        self.squares = SquaredDistances(rows)
        self.precision = relative_error(rows)
        self.allowance = absolute_error(rows)
        self._similarity = similarity
        self.takes_root = similarity == "shifted"
        widths = [
            (part.left.shape[1], 0 if part.right is None else part.right.shape[1]) for part in rows
        ]
        self._width = sum(left + right for left, right in widths)
        self._num_features = sum(left * max(right, 1) for left, right in widths)
        if similarity == "shifted":
            self.step = self.squares.unit / UNIT
        elif similarity == "shifted_sq":
            self.step = self.squares.unit**2 / UNIT
        elif similarity == "exp":
            self.step = 1 / UNIT
        else:
            zero = torch.from_numpy(self.squares.block(np.zeros(1, np.int64), 0, 1) * 0)
            self.step = float(similarity(zero)) / UNIT

    @property
    def is_shifted(self) -> bool:
        """Whether the start is C, known once all distances are: "shifted" and "shifted_sq"."""
        return self._similarity in ("shifted", "shifted_sq")

    def levels(self, memory: Int32Array | None = None) -> Levels:
        """Return all levels, in ``memory`` of at least n * n elements where that is given."""
        n = self.num_examples
        if memory is None:
            memory = np.empty(n * n, np.int32)
        lost = memory[: n * n].reshape(n, n)
        sums, apart = np.zeros(n, np.int64), np.full(n, UNIT, np.int32)
        largest = 0
        mirrored = self._width >= _MIRRORED
        for begin in range(0, n, _BLOCK):
            part = self._lost(
                self.squares.block(slice(begin, begin + _BLOCK), begin if mirrored else 0)
            )
            top = _fill(
                part, self.takes_root, *_constants(part), begin, mirrored, lost, sums, apart
            )
            largest = max(largest, int(top))
        return Levels(lost, sums, apart, largest if self.is_shifted else UNIT, self.step)

    def rows(self, positions: Int64Array) -> Int32Array:
        """Return the levels of some candidates: ``(len(positions), n)``."""
        part = self._lost(self.squares.block(positions))
        out = np.empty(part.shape, np.int32)
        _round_rows(part, self.takes_root, *_constants(part), out)
        return out

    def _lost(self, squares: FloatArray) -> FloatArray:
        if self.is_shifted:
            return squares
        return self.lost_of(torch.from_numpy(squares)).numpy()

    def lost_of(self, squares: Tensor) -> Tensor:
        """Return what :meth:`levels` rounds: squares, or the share of s(0) that is lost."""
        if self.is_shifted:
            return squares
        distances = squares.sqrt() * self.squares.unit
        if self._similarity == "exp":
            return -torch.expm1(-distances / self._num_features)
        assert callable(self._similarity)
        greatest = self.step * UNIT
        lost = (greatest - self._similarity(distances).to(distances.dtype)) / greatest
        low, high = float(lost.min()), float(lost.max())
        if not -1e-6 <= low <= high <= 1 + 1e-6:  # catches NaN too
            raise ValueError(
                "similarity must be between 0 and its value at distance 0, got values from "
                f"{greatest * (1 - high):g} to {greatest * (1 - low):g} where that is "
                f"{greatest:g}."
            )
        return lost.clamp(0, 1)


def levels_on(device: torch.device, many: Sequence[FacilityLocation]) -> tuple[Tensor, Tensor]:
    """Return the levels and starts of several classes on a device, padded to the largest class.

    For "shifted" and "shifted_sq" they are those of :meth:`FacilityLocation.levels` to the bit.

    Returns:
        ``(classes, n, n)`` int32, zero outside a class's own square; ``(classes,)`` int32.
    """
    lost = squares_on(device, [one.squares for one in many])
    starts = []
    for c, one in enumerate(many):
        n = one.num_examples
        mine = lost[c, :n, :n]
        # Through float64: torch's own float32 root is not rounded correctly on every CPU.
        mine.copy_(mine.double().sqrt_() if one.takes_root else one.lost_of(mine))
        mine.mul_(UNIT).add_(0.5)
        lost[c, n:] = 0
        lost[c, :, n:] = 0
        starts.append(mine.max().to(torch.int32) if one.is_shifted else torch.tensor(UNIT))
    start = torch.stack([start.to(device, torch.int32) for start in starts])
    return lost.to(torch.int32), start


def _constants(part: FloatArray) -> tuple[Any, Any]:
    """Return what rounding multiplies by and adds, in the array's own precision."""
    return part.dtype.type(UNIT), part.dtype.type(0.5)


@numba.njit(cache=True, nogil=True)
def _round(part: FloatArray, root: bool, one: float, half: float, out: Int32Array) -> None:
    """Round a row of squares, or their roots, to levels."""
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
def _fill(
    part: FloatArray,
    root: bool,
    one: float,
    half: float,
    begin: int,
    mirrored: bool,
    lost: Int32Array,
    sums: Int64Array,
    apart: Int32Array,
) -> np.int32:
    """Write a block of rows, whole or from the diagonal on and mirrored; return the largest."""
    m, width = part.shape
    end = begin + m
    first = lost.shape[1] - width
    largest = np.int32(0)
    for i in range(m):
        row = lost[begin + i, first:]
        _round(part[i], root, one, half, row)
        total = np.int64(0)
        for j in range(width):
            total += row[j]
        for j in range(width):
            largest = max(largest, row[j])
        own = begin + i - first
        least = apart[begin + i]
        for j in range(own):
            least = min(least, row[j])
        for j in range(own + 1, width):
            least = min(least, row[j])
        sums[begin + i] += total
        apart[begin + i] = least
    if not mirrored:
        return largest
    for j in range(end, lost.shape[1]):
        mirror = lost[j, begin:end]
        total, least = np.int64(0), apart[j]
        for i in range(m):
            value = lost[begin + i, j]
            mirror[i] = value
            total += value
            least = min(least, value)
        sums[j] += total
        apart[j] = least
    return largest


@numba.njit(cache=True, nogil=True)
def _gain_of(row: Int32Array, coverage: Int32Array) -> np.int64:
    """Sum how much closer each example gets if the row's candidate joins; exact."""
    total = np.int64(0)
    for i in range(row.shape[0]):
        total += np.int64(max(coverage[i] - row[i], np.int32(0)))
    return total


@numba.njit(cache=True, nogil=True)
def _gains(lost: Int32Array, coverage: Int32Array, gains: Int64Array) -> None:
    for j in range(lost.shape[0]):
        gains[j] = _gain_of(lost[j], coverage)


def marginal_gains(lost: Int32Array, coverage: Int32Array) -> Int64Array:
    r"""Gain in value from adding each candidate, in levels.

    .. math:: \Delta(j \mid S) = \sum_i \max(0,\, c_i - d_{ji})

    Args:
        lost: Levels, row = candidate.
        coverage: Each example's level to the selected set; the start while that is empty.

    Shape:
        lost ``(m, n)``; coverage ``(n,)``; returns ``(m,)`` int64.

    Cost:
        O(m n) time on one core, no temporary.
    """
    gains = np.empty(len(lost), np.int64)
    _gains(lost, coverage, gains)
    return gains


@numba.njit(cache=True, nogil=True)
def nearest_picks(lost: Int32Array, order: Int64Array, coverage: Int32Array) -> Int64Array:
    """Return each example's nearest pick, the lowest position among equals, itself if picked.

    Args:
        lost: Levels; row t is ``order[t]``'s, or all rows where there are as many as examples.
        order: Picked positions.
        coverage: Overwritten with each example's level to its nearest pick.
    """
    n = coverage.shape[0]
    nearest = np.full(n, n, np.int64)
    coverage[:] = np.iinfo(np.int32).max
    for t in range(order.shape[0]):
        pick = order[t]
        row = lost[pick if lost.shape[0] == n else t]
        for i in range(n):
            if row[i] < coverage[i] or (row[i] == coverage[i] and pick < nearest[i]):
                coverage[i] = row[i]
                nearest[i] = pick
    for t in range(order.shape[0]):
        nearest[order[t]] = order[t]
    return nearest


def apart_on(lost: Tensor, order: Tensor) -> Tensor:
    """Return each pick's level from the nearest other example of its class, on a device."""
    rows = lost[order]
    return rows.scatter_(1, order[:, None], UNIT).amin(1).long()


def cost_lower_bound(cost: int, left: Int64Array, apart: npt.NDArray[Any]) -> int:
    r"""Return what no subset of as many examples can cost less than, in levels.

    For any v >= 0 and any S of size k,

    .. math:: \sum_i \min_{j \in S} d_{ij}
        \ge \sum_i v_i - \sum_{j \in S} \sum_i \max(0, v_i - d_{ij})

    and the last sum is at most that of the k largest. With v each example's distance to the picks
    this is the cost minus the k largest gains that are left. Here v is that for the others, and for
    a pick the distance to its nearest neighbour, which is never worse, and which does not fall to
    nothing as k grows. It changes the gain of that pick alone, from nothing to the distance itself:
    nobody else is near enough.

    Args:
        cost: Of the picks.
        left: What each candidate would still gain, nothing for a pick. ``(n,)``
        apart: Each pick's level from the nearest other example. ``(k,)``

    Cost:
        O(n) time.

    Reference:
        The Lagrangian relaxation of k-median (Cornuejols, Fisher & Nemhauser, 1977).
    """
    k = len(apart)
    gains = np.concatenate([left, apart])  # of the picks' two entries the zero is never among the k
    largest = np.partition(gains, len(gains) - k)[len(gains) - k :]
    return int(cost + apart.sum(dtype=np.int64) - largest.sum())
