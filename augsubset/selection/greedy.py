"""Greedy maximisers of facility location over one class.

The exact ones take levels and a budget, and return the same :class:`Picks` to the last tie: the
largest gain wins, and the lowest position among equals. Greedy reaches at least (1 - 1/e) of the
best value (Nemhauser et al., 1978).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from augsubset.selection.facility_location import (
    UNIT,
    FacilityLocation,
    Int32Array,
    Int64Array,
    Levels,
    gain_of,
    marginal_gains,
    nearest_picks,
)

__all__ = [
    "Picks",
    "batched_greedy",
    "lazy_greedy",
    "naive_greedy",
    "num_candidates",
    "stochastic_greedy",
]


class Picks(NamedTuple):
    """What a maximiser found, in positions of its class.

    Args:
        order: Selected positions, in the order picked. ``(k,)``
        gains: Gain of each pick in levels; never increases for an exact maximiser. ``(k,)``
        nearest: The pick that represents each position: the nearest one, the lowest position among
            equals, itself if selected. ``(n,)``
    """

    order: Int64Array
    gains: Int64Array
    nearest: Int64Array


def naive_greedy(levels: Levels, budget: int) -> Picks:
    """Evaluate every candidate at every step: O(n^2 k) time, the reference for the others."""
    n = len(levels.lost)
    coverage = np.full(n, levels.start, np.int32)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    for step in range(budget):
        candidates = marginal_gains(levels.lost, coverage)
        candidates[order[:step]] = -1
        pick = candidates.argmax()
        order[step], gains[step] = pick, candidates[pick]
        np.minimum(coverage, levels.lost[pick], out=coverage)
    return Picks(order, gains, nearest_picks(levels.lost, order, coverage))


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
def _lazy_greedy(
    lost: Int32Array,
    bounds: Int64Array,
    coverage: Int32Array,
    nearest: Int32Array,
    evaluated: Int64Array,
    heap: Int64Array,
    order: Int64Array,
    gains: Int64Array,
    cost: int,
    enough: int,
) -> int:
    """Fill order and gains; return the number of picks.

    Arrays come from outside: numba takes seconds to compile the making of one.
    """
    # A gain computed earlier bounds today's from above. The root of the heap is re-evaluated until
    # it stays on top: then no bound beats it, and no equal bound has a lower position.
    size = heap.shape[0]
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(heap, bounds, root, size)
    num_picks = 0
    while num_picks < order.shape[0] and (num_picks == 0 or cost > enough):
        while evaluated[heap[0]] < num_picks:
            top = heap[0]
            bounds[top] = gain_of(lost[top], coverage)
            evaluated[top] = num_picks
            _sift_down(heap, bounds, 0, size)
        pick = heap[0]
        order[num_picks], gains[num_picks] = pick, bounds[pick]
        num_picks += 1
        cost -= bounds[pick]
        row, mine = lost[pick], np.int32(pick)
        for i in range(row.shape[0]):
            closer = row[i] < coverage[i] or (row[i] == coverage[i] and mine < nearest[i])
            coverage[i] = row[i] if closer else coverage[i]
            nearest[i] = mine if closer else nearest[i]
        size -= 1
        heap[0] = heap[size]
        _sift_down(heap, bounds, 0, size)
    return num_picks


def lazy_greedy(levels: Levels, budget: int, enough: int = -1) -> Picks:
    """Re-evaluate only candidates whose old gain still leads (Minoux, 1978).

    Compiled, one core, releases the interpreter lock: classes run side by side in threads.

    Args:
        levels: Of the class.
        budget: Picks at most.
        enough: Stop once the cost is at most this, in levels, with one pick or more; by default
            never.

    Cost:
        O(n) an evaluation; on residuals of real networks 6 to 9 evaluations an example in all.
        O(n) memory beside the levels.
    """
    n = len(levels.lost)
    nearest = np.full(n, n, np.int32)
    order, gains = np.empty(budget, np.int64), np.empty(budget, np.int64)
    num_picks = _lazy_greedy(
        levels.lost,
        n * levels.start - levels.sums,
        np.full(n, levels.start, np.int32),
        nearest,
        np.zeros(n, np.int64),
        np.arange(n),
        order,
        gains,
        n * levels.start,
        enough,
    )
    order, gains = order[:num_picks], gains[:num_picks]
    representatives = nearest.astype(np.int64)
    representatives[order] = order
    return Picks(order, gains, representatives)


def num_candidates(n: int, budget: int, epsilon: float) -> int:
    """Return how many candidates stochastic greedy looks at a step."""
    return min(n, math.ceil(n / budget * math.log(1 / epsilon)))


def stochastic_greedy(
    objective: FacilityLocation, budget: int, *, epsilon: float, seed: int
) -> Picks:
    """Evaluate a few random candidates a step: (1 - 1/e - epsilon) of the best in expectation.

    Holds no matrix: the levels of a step's candidates are computed from the rows and dropped.

    Args:
        objective: Of the class.
        budget: Picks.
        epsilon: In (0, 1): smaller is better and slower.
        seed: Decides the candidates.

    Cost:
        n ln(1 / epsilon) evaluations in all, each O(n features) on one core, whatever the budget.

    Reference:
        Mirzasoleiman et al., *Lazier Than Lazy Greedy*, 2015.
    """
    n = objective.num_examples
    rng = np.random.default_rng(seed)
    candidates_a_step = num_candidates(n, budget, epsilon)
    rest = np.arange(n)
    coverage = np.full(n, UNIT, np.int32)
    nearest = np.full(n, n, np.int64)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    for step in range(budget):
        drawn = rng.choice(len(rest), min(candidates_a_step, len(rest)), replace=False)
        drawn = drawn[np.argsort(rest[drawn])]
        rows = objective.rows(rest[drawn])
        candidates = marginal_gains(rows, coverage)
        best = int(candidates.argmax())
        pick = order[step] = rest[drawn[best]]
        gains[step] = candidates[best]
        row = rows[best]
        closer = (row < coverage) | ((row == coverage) & (pick < nearest))
        coverage[closer] = row[closer]
        nearest[closer] = pick
        rest[drawn[best]] = rest[-1]
        rest = rest[:-1]
    nearest[order] = order
    return Picks(order, gains, nearest)


def batched_greedy(
    lost: Tensor, start: Tensor, budgets: list[int], sizes: list[int]
) -> list[Picks]:
    """Run exact greedy on several classes at once, in a few kernels a step: for a GPU.

    All gains are kept up to date: a pick changes those of a few examples' neighbourhoods, and only
    these examples' rows are read.

    Args:
        lost: Levels of each class, padded to the largest. ``(classes, n, n)`` int32
        start: Level of an unrepresented example, a class. ``(classes,)`` int32
        budgets: Picks, a class.
        sizes: Examples, a class.

    Cost:
        A pass over the levels for the first gains and one for the first pick; then O(n) for each
        example that a pick comes closer to. One synchronisation a step.
    """
    num_classes, n, _ = lost.shape
    device = lost.device
    positions = torch.arange(n, device=device)
    real = positions < torch.tensor(sizes, device=device)[:, None]
    coverage = torch.where(real, start[:, None], 0)
    nearest = torch.full((num_classes, n), n, dtype=torch.int64, device=device)
    gains = torch.full((num_classes, n), -1, dtype=torch.int64, device=device)
    for at, size in enumerate(sizes):
        rows = lost[at, :size, :size]
        gains[at, :size] = size * start[at].long() - rows.sum(1, dtype=torch.int64)
    steps = max(budgets)
    order = torch.empty(num_classes, steps, dtype=torch.int64, device=device)
    won = torch.empty(num_classes, steps, dtype=torch.int64, device=device)
    active = torch.tensor(budgets, device=device)
    every = torch.arange(num_classes, device=device)
    for step in range(steps):
        best = gains.amax(1)
        # argmax may return any of several equal ones; the lowest position is asked for.
        pick = torch.where(gains == best[:, None], positions, n).amin(1)
        order[:, step], won[:, step] = pick, best
        row = lost[every, pick]
        going = (step < active)[:, None] & real
        ties = going & (row == coverage) & (pick[:, None] < nearest)
        closer = going & (row < coverage)
        nearest = torch.where(ties | closer, pick[:, None], nearest)
        before, coverage = coverage, torch.where(closer, row, coverage)
        changed, example = closer.nonzero(as_tuple=True)
        chunk = max(1, (1 << 26) // n)
        for c, i in zip(torch.split(changed, chunk), torch.split(example, chunk), strict=True):
            mine = lost[c, i]
            less = (coverage[c, i, None] - mine).clamp_(min=0)
            less -= (before[c, i, None] - mine).clamp_(min=0)
            gains.index_add_(0, c, less.long())
        gains.scatter_(1, pick[:, None], -1)
        gains.masked_fill_(~real, -1)
    orders, wins, nearests = order.cpu().numpy(), won.cpu().numpy(), nearest.cpu().numpy()
    found = []
    for at, (budget, size) in enumerate(zip(budgets, sizes, strict=True)):
        picks = orders[at, :budget]
        nearests[at, picks] = picks
        found.append(Picks(picks, wins[at, :budget], nearests[at, :size]))
    return found
