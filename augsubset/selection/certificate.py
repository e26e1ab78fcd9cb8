"""How good a coreset is: error figures in float64, from each example and its representative."""

from __future__ import annotations

import math
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
    scale: float,
    squares: Float64Array,
    gap: Float64Array,
    total: Float64Array,
) -> None:
    """Add squared distances between paired rows; add up their differences and ``values``."""
    for i in range(values.shape[0]):
        own, other = values[i], others[i]
        sum_of_squares = 0.0
        for t in range(values.shape[1]):
            difference = np.float64(own[t]) * scale - np.float64(other[t]) * scale
            sum_of_squares += difference * difference
            gap[t] += difference
            total[t] += own[t]
        squares[i] += sum_of_squares


@numba.njit(cache=True, nogil=True)
def _add_product_differences(
    left: FloatArray,
    right: FloatArray,
    other_left: FloatArray,
    other_right: FloatArray,
    scale: float,
    squares: Float64Array,
    gap: Float64Array,
) -> None:
    """Do the same between outer products, entry by entry: every shortcut may cancel."""
    for i in range(left.shape[0]):
        own, other = right[i], other_right[i]
        sum_of_squares = 0.0
        for c in range(left.shape[1]):
            a, b = np.float64(left[i, c]) * scale, np.float64(other_left[i, c]) * scale
            for t in range(right.shape[1]):
                difference = a * own[t] - b * other[t]
                sum_of_squares += difference * difference
                gap[c, t] += difference
        squares[i] += sum_of_squares


def measure_class(rows: Sequence[Factors], representatives: Sequence[Factors]) -> ClassMetrics:
    r"""Measure the error of one class, given each example's representative.

    .. math:: \xi = \sum_i \|g_i - g_{\pi(i)}\|, \qquad
        \Big\|\sum_i g_i - \sum_j \gamma_j g_j\Big\| \le \xi

    Args:
        rows: Gradients of the class, one entry per layer.
        representatives: Gradient of each example's representative, in the same form.

    Cost:
        O(n features) time and O(n) float64 memory: direct differences of n pairs, no distance
        matrix.

    Reference:
        The bound is the triangle inequality. The paper's appendix A.6 prints a Frobenius norm
        instead, which is wrong: 99 unit vectors represented by the origin have a gradient error of
        99 and a Frobenius norm of 9.95.
    """
    squares = np.zeros(len(rows[0].left))
    gaps, totals = [], []
    scale = 2.0 ** -_find_exponent(rows)  # squares neither overflow nor vanish
    for own, other in zip(rows, representatives, strict=True):
        if own.right is None or other.right is None:
            gap, total = np.zeros(own.left.shape[1]), np.zeros(own.left.shape[1])
            _add_differences(own.left, other.left, scale, squares, gap, total)
        else:
            total = own.left.T.astype(np.float64) @ own.right.astype(np.float64)
            # The difference of two such sums would lose all that is small beside the largest row.
            gap = np.zeros(total.shape)
            _add_product_differences(
                own.left, own.right, other.left, other.right, scale, squares, gap
            )
        gaps.append(gap / scale)
        totals.append(total)
    return ClassMetrics(float(np.sqrt(squares).sum() / scale), gaps, totals)


def _find_exponent(rows: Sequence[Factors]) -> int:
    """Return the binary exponent of about the largest value of any layer."""
    largest = [
        [float(np.abs(side).max(initial=0)) for side in part if side is not None] for part in rows
    ]
    exponents = [sum(math.frexp(value)[1] for value in part) for part in largest if all(part)]
    return min(max([-1000, *exponents]), 1000)


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
    gradient_error = min(_compute_norm(gaps), error)  # rounding alone can exceed the bound
    known = [bound for bound in lower_bounds if bound is not None]
    return Certificate(
        error=error,
        error_lower_bound=sum(known) if len(known) == len(lower_bounds) else None,
        gradient_error=gradient_error,
        gradient_norm=_compute_norm(totals),
        effective_sample_size=float(weights.sum() ** 2 / np.square(weights).sum()),
    )


def _compute_norm(parts: Sequence[Float64Array]) -> float:
    largest = max((float(np.abs(part).max(initial=0)) for part in parts), default=0.0)
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt(sum(np.square(part / largest).sum() for part in parts))
