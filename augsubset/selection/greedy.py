"""Exact greedy maximisers of facility location over one class.

All take distance levels and a budget, and return the same :class:`Picks` to the last tie: the
largest gain wins, and the lowest position among equals. Greedy reaches at least (1 - 1/e) of the
best value (Nemhauser et al., 1978).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from augsubset.selection.facility_location import (
    UNIT,
    Int32Array,
    Int64Array,
    gain_of,
    marginal_gains,
)

__all__ = ["Picks", "lazy_greedy", "naive_greedy"]


class Picks(NamedTuple):
    """What a maximiser found, in positions of its class.

    Args:
        order: Selected positions, in the order picked. ``(k,)``
        gains: Gain of each pick in levels; never increases. ``(k,)``
        nearest: The pick that represents each position: the nearest one, the lowest position among
            equals, itself if selected. ``(n,)``
    """

    order: Int64Array
    gains: Int64Array
    nearest: Int64Array


@numba.njit(cache=True, nogil=True)
def _commit(row: Int32Array, pick: np.int64, coverage: Int32Array, nearest: Int64Array) -> None:
    """Add a pick: update every example's distance to the set, and who represents it."""
    for i in range(row.shape[0]):
        closer = row[i] < coverage[i] or nearest[i] < 0
        if closer or (row[i] == coverage[i] and pick < nearest[i]):
            coverage[i] = row[i]
            nearest[i] = pick


def naive_greedy(levels: Int32Array, budget: int) -> Picks:
    """Evaluate every candidate at every step: O(n^2 k) time, the reference for the others."""
    n = len(levels)
    coverage = np.full(n, UNIT, np.int32)
    nearest = np.full(n, -1, np.int64)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    for step in range(budget):
        candidates = marginal_gains(levels, coverage)
        candidates[order[:step]] = -1
        pick = candidates.argmax()
        order[step], gains[step] = pick, candidates[pick]
        _commit(levels[pick], pick, coverage, nearest)
    nearest[order] = order
    return Picks(order, gains, nearest)


@numba.njit(cache=True, nogil=True)
def _sift_down(heap: Int64Array, bounds: Int64Array, root: int, size: int) -> None:
    """Restore the heap below root: larger bound first, lower position among equals."""
    item = heap[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        left = heap[child]
        if child + 1 < size:
            right = heap[child + 1]
            if bounds[right] > bounds[left] or (bounds[right] == bounds[left] and right < left):
                child, left = child + 1, right
        if bounds[item] > bounds[left] or (bounds[item] == bounds[left] and item < left):
            break
        heap[root] = left
        root = child
    heap[root] = item


@numba.njit(cache=True, nogil=True)
def _lazy_greedy(levels: Int32Array, budget: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    n = levels.shape[0]
    coverage = np.full(n, UNIT, np.int32)
    nearest = np.full(n, -1, np.int64)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    # A gain computed earlier bounds today's from above. The root of the heap is re-evaluated until
    # it stays on top: then no bound beats it, and no equal bound has a lower position.
    bounds = marginal_gains(levels, coverage)
    evaluated = np.zeros(n, np.int64)
    heap = np.arange(n)
    size = n
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(heap, bounds, root, size)
    for step in range(budget):
        while evaluated[heap[0]] < step:
            top = heap[0]
            bounds[top] = gain_of(levels[top], coverage)
            evaluated[top] = step
            _sift_down(heap, bounds, 0, size)
        pick = heap[0]
        order[step], gains[step] = pick, bounds[pick]
        _commit(levels[pick], pick, coverage, nearest)
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, bounds, 0, size)
    for step in range(budget):
        nearest[order[step]] = order[step]
    return order, gains, nearest


def lazy_greedy(levels: Int32Array, budget: int) -> Picks:
    """Re-evaluate only candidates whose old gain still leads (Minoux, 1978).

    Compiled, one core, releases the interpreter lock: classes run side by side in threads.

    Cost:
        O(n^2) for the first gains, then O(n) an evaluation; on residuals of real networks a few
        evaluations a pick. O(n) memory beside the levels.
    """
    return Picks(*_lazy_greedy(levels, budget))
