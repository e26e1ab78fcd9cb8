r"""The objective: how well a subset represents its class, in exact integers.

.. math:: F(S) = \sum_i \max_{j \in S} (C - d_{ij}), \qquad F(\emptyset) = 0

with C the largest distance within the class (paper, eq. 11, in the sum form of its appendix A.6;
the Frobenius norm printed there bounds nothing). Maximising F minimises the cost
:math:`\xi = \sum_i \min_{j \in S} d_{ij}`.

Note: why integers. Greedy compares sums of thousands of distances, and a floating-point sum
depends on its order, hence on the maximiser, the chunk size and the device. Distances are
therefore rounded once to multiples of C / 2**30. Integer sums have no order, so every exact
maximiser returns the same picks, ties included. float32 distances carry 24 bits, so the rounding
costs something only where a distance is below C / 64, and there at most C / 2**31.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["UNIT", "DistanceLevels", "gain_of", "marginal_gains", "quantise"]

UNIT = 1 << 30

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DistanceLevels:
    """Distances within one class as integers.

    Args:
        levels: ``(n, n)`` int32 in 0..2**30, zero on the diagonal; row = candidate.
        step: Distance that one level stands for.
    """

    levels: Int32Array
    step: float


@numba.njit(cache=True, nogil=True)
def _round_to_levels(
    distances: npt.NDArray[np.floating],
    levels: Int32Array,
    scale: float,
) -> None:
    for i in range(distances.shape[0]):
        for j in range(distances.shape[1]):
            levels[i, j] = np.int32(distances[i, j] * scale + 0.5)


def quantise(distances: npt.NDArray[np.floating]) -> DistanceLevels:
    """Round a distance matrix to 2**30 levels of its largest entry.

    Args:
        distances: ``(n, n)``, finite, non-negative. A float32 matrix is overwritten: the levels
            take its memory, so that one matrix is held and not two.
    """
    largest = float(distances.max())
    if not np.isfinite(largest):
        raise ValueError(
            f"distances must be finite, got a largest one of {largest}. Scale the gradients down."
        )
    scale = UNIT / largest if largest > 0 else 0.0
    if distances.dtype == np.float32:
        levels = distances.view(np.int32)
    else:
        levels = np.empty(distances.shape, np.int32)
    _round_to_levels(distances, levels, scale)
    return DistanceLevels(levels, largest / UNIT)


@numba.njit(cache=True, nogil=True)
def gain_of(row: Int32Array, coverage: Int32Array) -> np.int64:
    """Sum how much closer each example gets if the row's candidate joins; exact."""
    total = np.int64(0)
    for i in range(row.shape[0]):
        total += np.int64(max(coverage[i] - row[i], np.int32(0)))
    return total


@numba.njit(cache=True, nogil=True)
def marginal_gains(levels: Int32Array, coverage: Int32Array) -> Int64Array:
    r"""Gain in value from adding each candidate, in levels.

    .. math:: \Delta(j \mid S) = \sum_i \max(0,\, c_i - d_{ji})

    Args:
        levels: Distance levels, row = candidate.
        coverage: Each example's distance to the selected set; ``UNIT`` while that is empty.

    Shape:
        levels ``(m, n)``; coverage ``(n,)``; returns ``(m,)`` int64.

    Cost:
        O(m n) time on one core, no temporary.
    """
    gains = np.empty(levels.shape[0], np.int64)
    for j in range(levels.shape[0]):
        gains[j] = gain_of(levels[j], coverage)
    return gains
