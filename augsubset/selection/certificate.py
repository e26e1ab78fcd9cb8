"""How good a coreset is: error figures in float64, from each example and its representative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.selection.distances import Factors

__all__ = ["Certificate", "ClassMetrics", "build_certificate", "measure_class"]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Certificate:
    """How well a weighted subset approximates the whole set, in float64.

    Args:
        error: The cost xi: the sum over all examples of the distance to their representative.
        error_lower_bound: No subset with the same class budgets has a smaller error. ``None`` if
            the method does not see all distances, or the similarity is not "shifted".
        gradient_error: Norm of (sum of all gradients - weighted sum of the selected ones); at most
            ``error`` by the triangle inequality.
        gradient_norm: Norm of the sum of all gradients, the scale for ``gradient_error``.
        effective_sample_size: (sum of weights)^2 / sum of squared weights: the number selected if
            all weights are equal, close to 1 if one cluster dominates.
    """

    error: float
    error_lower_bound: float | None
    gradient_error: float
    gradient_norm: float
    effective_sample_size: float

    @property
    def error_ratio(self) -> float | None:
        """The error is at most this factor above the optimum; ``None`` without a lower bound.

        1 if the error is zero; infinite if the lower bound is zero and the error is not.
        """
        if self.error_lower_bound is None:
            return None
        if self.error == 0:
            return 1.0
        return self.error / self.error_lower_bound if self.error_lower_bound > 0 else float("inf")


class ClassMetrics(NamedTuple):
    """What one class contributes to the certificate; the sums have one entry per layer."""

    error: float
    gap: list[Float64Array]  # sum of all gradients minus weighted sum of the selected ones
    total: list[Float64Array]  # sum of all gradients


@numba.njit(cache=True, nogil=True)
def _add_differences(
    values: FloatArray,
    others: FloatArray,
    squares: Float64Array,
    gap: Float64Array,
    total: Float64Array,
) -> None:
    """Write squared distances between paired rows; add up their differences and ``values``."""
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
def _square_product_differences(
    left: FloatArray,
    right: FloatArray,
    other_left: FloatArray,
    other_right: FloatArray,
    squares: Float64Array,
) -> None:
    """Write squared distances between outer products, entry by entry: every shortcut may cancel."""
    for i in range(left.shape[0]):
        own, other = right[i], other_right[i]
        sum_of_squares = 0.0
        for c in range(left.shape[1]):
            a, b = np.float64(left[i, c]), np.float64(other_left[i, c])
            for t in range(right.shape[1]):
                difference = a * own[t] - b * other[t]
                sum_of_squares += difference * difference
        squares[i] = sum_of_squares


def measure_class(rows: Sequence[Factors], representatives: Sequence[Factors]) -> ClassMetrics:
    r"""Measure the error of one class, given each example's representative.

    .. math:: \xi = \sum_i \|g_i - g_{\pi(i)}\|, \qquad
        \Big\|\sum_i g_i - \sum_j \gamma_j g_j\Big\| \le \xi

    Args:
        rows: Gradients of the class, one entry per layer.
        representatives: Gradient of each example's representative, in the same form.

    Cost:
        O(n features) time and O(n) float64 memory: direct differences of n pairs, no distance
        matrix. With layer inputs, another O(n C d) for the two sums.

    Reference:
        The bound is the triangle inequality. The paper's appendix A.6 prints a Frobenius norm
        instead, which is wrong: 99 unit vectors represented by the origin have a gradient error of
        99 and a Frobenius norm of 9.95.
    """
    n = len(rows[0].left)
    squares = np.zeros(n)
    gaps, totals = [], []
    for own, other in zip(rows, representatives, strict=True):
        part, gap, total = np.empty(n), np.zeros(own.left.shape[1]), np.zeros(own.left.shape[1])
        _add_differences(own.left, other.left, part, gap, total)
        if own.right is not None and other.right is not None:
            _square_product_differences(own.left, own.right, other.left, other.right, part)
            total = _sum_outer_products(own)
            gap = total - _sum_outer_products(other)
        squares += part
        gaps.append(gap)
        totals.append(total)
    return ClassMetrics(float(np.sqrt(squares).sum()), gaps, totals)


def _sum_outer_products(rows: Factors) -> Float64Array:
    assert rows.right is not None
    total: Float64Array = rows.left.T.astype(np.float64) @ rows.right.astype(np.float64)
    return total


def build_certificate(
    metrics: Iterable[ClassMetrics], lower_bounds: Sequence[float | None], weights: Float64Array
) -> Certificate:
    """Return the certificate of all classes together, from each class's metrics and bound."""
    error = 0.0
    gaps: list[Float64Array] = []
    totals: list[Float64Array] = []
    for one in metrics:
        error += one.error
        for sums, parts in ((gaps, one.gap), (totals, one.total)):
            for layer, part in enumerate(parts):
                if layer == len(sums):
                    sums.append(np.zeros(part.shape))
                sums[layer] += part
    known = [bound for bound in lower_bounds if bound is not None]
    return Certificate(
        error=error,
        error_lower_bound=sum(known) if len(known) == len(lower_bounds) else None,
        gradient_error=_compute_norm(gaps),
        gradient_norm=_compute_norm(totals),
        effective_sample_size=float(weights.sum() ** 2 / np.square(weights).sum()),
    )


def _compute_norm(parts: Sequence[Float64Array]) -> float:
    return float(np.sqrt(sum(np.square(part).sum() for part in parts)))
