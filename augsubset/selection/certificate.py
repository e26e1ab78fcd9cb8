"""How good a coreset is: figures in float64, from the pairs of example and representative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.selection.distances import Factors

__all__ = ["Certificate", "ClassMeasure", "combine", "measure"]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Certificate:
    """How well a weighted subset stands for the whole set, in float64.

    Args:
        error: The cost xi: the sum over examples of the distance to their representative.
        error_lower_bound: What no subset with the same class budgets can go below; ``None`` where
            a method has not seen all distances, or for another similarity than "shifted".
        gradient_error: Norm of (sum of all gradients - weighted sum of the selected ones); at most
            ``error`` by the triangle inequality.
        gradient_norm: Norm of the sum of all gradients, to compare the former with.
        effective_sample_size: (sum of weights)^2 / sum of squared weights: equal weights give the
            number selected, one giant cluster gives 1.
    """

    error: float
    error_lower_bound: float | None
    gradient_error: float
    gradient_norm: float
    effective_sample_size: float

    @property
    def error_ratio(self) -> float | None:
        """The error is within this factor of the best possible; ``None`` without a bound.

        1 where the error is zero; infinite where the bound says nothing.
        """
        if self.error_lower_bound is None:
            return None
        if self.error == 0:
            return 1.0
        return self.error / self.error_lower_bound if self.error_lower_bound > 0 else float("inf")


class ClassMeasure(NamedTuple):
    """One class's part of a certificate; the sums have one entry a layer."""

    error: float
    gap: list[Float64Array]
    total: list[Float64Array]


@numba.njit(cache=True, nogil=True)
def _pairs(
    values: FloatArray,
    others: FloatArray,
    squares: Float64Array,
    gap: Float64Array,
    total: Float64Array,
) -> None:
    """Add up, over rows and features, what separates each row from its representative."""
    for i in range(values.shape[0]):
        own, other = values[i], others[i]
        sum_of_squares = 0.0
        for t in range(values.shape[1]):
            difference = np.float64(own[t]) - np.float64(other[t])
            sum_of_squares += difference * difference
            gap[t] += difference
            total[t] += own[t]
        squares[i] = sum_of_squares


@numba.njit(cache=True, nogil=True)
def _product_pairs(
    left: FloatArray,
    right: FloatArray,
    other_left: FloatArray,
    other_right: FloatArray,
    squares: Float64Array,
) -> None:
    """Write squared distances of outer products, entry by entry: no form of it may cancel."""
    for i in range(left.shape[0]):
        own, other = right[i], other_right[i]
        sum_of_squares = 0.0
        for c in range(left.shape[1]):
            a, b = np.float64(left[i, c]), np.float64(other_left[i, c])
            for t in range(right.shape[1]):
                difference = a * own[t] - b * other[t]
                sum_of_squares += difference * difference
        squares[i] = sum_of_squares


def measure(rows: Sequence[Factors], representatives: Sequence[Factors]) -> ClassMeasure:
    r"""Measure one class against its representatives.

    .. math:: \xi = \sum_i \|g_i - g_{\pi(i)}\|, \qquad
        \Big\|\sum_i g_i - \sum_j \gamma_j g_j\Big\| \le \xi

    Args:
        rows: Gradients of the class, one entry a layer.
        representatives: The gradient that stands for each of them, likewise.

    Cost:
        O(n features) time, O(n) float64 memory: direct differences of the n pairs, no distance
        matrix. Where there are inputs, O(n C d) for the two sums.

    Reference:
        The bound is the triangle inequality. The paper's appendix A.6 prints a Frobenius norm in
        its place, which is false: 99 unit vectors represented by the origin have error 99 and a
        Frobenius norm of 9.95.
    """
    n = len(rows[0].left)
    squares = np.zeros(n)
    gaps, totals = [], []
    for own, other in zip(rows, representatives, strict=True):
        part, gap, total = np.empty(n), np.zeros(own.left.shape[1]), np.zeros(own.left.shape[1])
        _pairs(own.left, other.left, part, gap, total)
        if own.right is not None and other.right is not None:
            _product_pairs(own.left, own.right, other.left, other.right, part)
            total = _sum_of_products(own)
            gap = total - _sum_of_products(other)
        squares += part
        gaps.append(gap)
        totals.append(total)
    return ClassMeasure(float(np.sqrt(squares).sum()), gaps, totals)


def _sum_of_products(rows: Factors) -> Float64Array:
    assert rows.right is not None
    total: Float64Array = rows.left.T.astype(np.float64) @ rows.right.astype(np.float64)
    return total


def combine(
    measures: Iterable[ClassMeasure], bounds: Sequence[float | None], weights: Float64Array
) -> Certificate:
    """Return the certificate of all classes together; one bound each, in the same order."""
    error = 0.0
    gaps: list[Float64Array] = []
    totals: list[Float64Array] = []
    for one in measures:
        error += one.error
        for sums, mine in ((gaps, one.gap), (totals, one.total)):
            for layer, part in enumerate(mine):
                if layer == len(sums):
                    sums.append(np.zeros(part.shape))
                sums[layer] += part
    known = [bound for bound in bounds if bound is not None]
    return Certificate(
        error=error,
        error_lower_bound=sum(known) if len(known) == len(bounds) else None,
        gradient_error=_norm(gaps),
        gradient_norm=_norm(totals),
        effective_sample_size=float(weights.sum() ** 2 / np.square(weights).sum()),
    )


def _norm(parts: Sequence[Float64Array]) -> float:
    return float(np.sqrt(sum(np.square(part).sum() for part in parts)))
