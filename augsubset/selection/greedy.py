"""Greedy maximisers of the facility-location objective of one class.

Given the same levels and budget, the exact ones return identical :class:`Picks`: the largest gain
wins, and the lowest position among equal gains. Greedy reaches at least (1 - 1/e) of the best value
(Nemhauser et al., 1978).
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
    find_nearest_picks,
    marginal_gains,
)

__all__ = [
    "Picks",
    "batched_greedy",
    "count_candidates",
    "lazy_greedy",
    "naive_greedy",
    "stochastic_greedy",
]

_GROUP = 256  # candidates that share one upper bound on their gains
_BLOCK = 128  # examples whose coverage is compared before any of it is written


class Picks(NamedTuple):
    """Result of a maximiser; positions are within the class.

    Args:
        order: Selected positions, in the order picked. ``(k,)``
        gains: Marginal gain of each pick, in levels; never increases with an exact method. ``(k,)``
        nearest: Position of each example's representative: the nearest pick, the lowest position
            among equally near ones, a pick itself. ``(n,)``
        remaining_gains: Marginal gain of each candidate after the last pick, 0 for a pick;
            ``None`` if the method does not track it. ``(n,)``
    """

    order: Int64Array
    gains: Int64Array
    nearest: Int64Array
    remaining_gains: Int64Array | None


def naive_greedy(levels: Levels, budget: int) -> Picks:
    """Evaluate every candidate at every step: O(n^2 k) time, the reference for the others."""
    n = len(levels.matrix)
    coverage = np.full(n, levels.uncovered, np.int32)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    for step in range(budget):
        candidates = marginal_gains(levels.matrix, coverage)
        candidates[order[:step]] = -1
        pick = candidates.argmax()
        order[step], gains[step] = pick, candidates[pick]
        np.minimum(coverage, levels.matrix[pick], out=coverage)
    remaining = marginal_gains(levels.matrix, coverage)
    return Picks(order, gains, find_nearest_picks(levels.matrix, order, coverage), remaining)


@numba.njit(cache=True, nogil=True)
def _find_best(gains: Int64Array, bounds: Int64Array, updated: Int64Array, step: int) -> int:
    """Return the lowest position of the largest gain, scanning as few groups as possible.

    Gains never increase (submodularity), so the maximum of a group at its last scan bounds it from
    above. The group with the highest bound is rescanned until the leader was scanned in this step:
    no other group can then hold a larger gain. Ties go to the lower group, hence position.
    """
    while True:
        group = 0
        for other in range(1, bounds.shape[0]):
            if bounds[other] > bounds[group]:
                group = other
        part = gains[group * _GROUP : (group + 1) * _GROUP]
        if updated[group] == step:
            position = 0
            while part[position] != bounds[group]:
                position += 1
            return group * _GROUP + position
        largest = part[0]
        for i in range(part.shape[0]):
            largest = max(largest, part[i])
        bounds[group], updated[group] = largest, step


@numba.njit(cache=True, nogil=True)
def _assign_to_pick(
    row: Int32Array,
    pick: np.int32,
    coverage: Int32Array,
    nearest: Int32Array,
    changed: Int32Array,
    before: Int32Array,
) -> int:
    """Assign a pick to every example it is nearest to.

    Return how many examples got closer; ``changed`` lists them, ``before`` their old levels.
    """
    num_changed = 0
    for begin in range(0, row.shape[0], _BLOCK):
        levels, covered = row[begin : begin + _BLOCK], coverage[begin : begin + _BLOCK]
        improvement = np.int32(-1)
        for i in range(levels.shape[0]):
            improvement = max(improvement, np.int32(covered[i] - levels[i]))
        if improvement < 0:
            continue  # the usual case after a few picks, and a vectorised test
        for i in range(begin, begin + levels.shape[0]):
            if row[i] < coverage[i]:
                changed[num_changed], before[num_changed] = i, coverage[i]
                num_changed += 1
                coverage[i], nearest[i] = row[i], pick
            elif row[i] == coverage[i] and pick < nearest[i]:
                nearest[i] = pick
    return num_changed


@numba.njit(cache=True, nogil=True)
def _reduce_gains(
    matrix: Int32Array,
    gains: Int64Array,
    coverage: Int32Array,
    changed: Int32Array,
    before: Int32Array,
    num_changed: int,
) -> None:
    """Subtract from every candidate's gain what it can no longer gain on the changed examples.

    An example whose coverage fell from b to c contributed max(0, b - d) to a candidate at level d
    and now contributes max(0, c - d): the difference is min(max(0, b - d), b - c). Its distances
    to all candidates are its own row, as the matrix is symmetric. Three examples per pass: their
    reductions still add up within 32 bits, and the 64-bit gains are loaded and stored less often.
    """
    zero = np.int32(0)
    for t in range(0, num_changed - num_changed % 3, 3):
        a, b, c = changed[t], changed[t + 1], changed[t + 2]
        old_a, old_b, old_c = before[t], before[t + 1], before[t + 2]
        most_a = np.uint32(old_a - coverage[a])
        most_b = np.uint32(old_b - coverage[b])
        most_c = np.uint32(old_c - coverage[c])
        row_a, row_b, row_c = matrix[a], matrix[b], matrix[c]
        for j in range(gains.shape[0]):
            less_a = min(np.uint32(max(np.int32(old_a - row_a[j]), zero)), most_a)
            less_b = min(np.uint32(max(np.int32(old_b - row_b[j]), zero)), most_b)
            less_c = min(np.uint32(max(np.int32(old_c - row_c[j]), zero)), most_c)
            gains[j] -= np.int64(np.uint32(np.uint32(less_a + less_b) + less_c))
    for t in range(num_changed - num_changed % 3, num_changed):
        old, row = before[t], matrix[changed[t]]
        most = np.uint32(old - coverage[changed[t]])
        for j in range(gains.shape[0]):
            gains[j] -= np.int64(min(np.uint32(max(np.int32(old - row[j]), zero)), most))


@numba.njit(cache=True, nogil=True)
def _run_lazy_greedy(
    matrix: Int32Array,
    gains: Int64Array,
    bounds: Int64Array,
    updated: Int64Array,
    coverage: Int32Array,
    nearest: Int32Array,
    changed: Int32Array,
    before: Int32Array,
    order: Int64Array,
    gained: Int64Array,
    cost: int,
    target_cost: int,
) -> int:
    """Fill ``order`` and ``gained``; return the number of picks.

    The caller allocates all arrays: numba takes seconds to compile an allocation.
    """
    num_picks = 0
    while num_picks < order.shape[0] and (num_picks == 0 or cost > target_cost):
        pick = _find_best(gains, bounds, updated, num_picks)
        order[num_picks], gained[num_picks] = pick, gains[pick]
        cost -= gains[pick]
        gains[pick] = -1  # below every candidate's: reductions only lower it further
        num_picks += 1
        num_changed = _assign_to_pick(
            matrix[pick], np.int32(pick), coverage, nearest, changed, before
        )
        _reduce_gains(matrix, gains, coverage, changed, before, num_changed)
    return num_picks


def lazy_greedy(levels: Levels, budget: int, target_cost: int = -1) -> Picks:
    """Keep all marginal gains exact with incremental updates, and search only where needed.

    No gain is ever recomputed: an example that gets a nearer representative lowers the gains of all
    candidates in one pass over its row. On residuals of real networks, that is two thirds of the
    passes of textbook lazy greedy (Minoux, 1978), which re-evaluates the top of a heap of stale
    gains, and takes half the time.

    Compiled, single-core, releases the GIL: classes run in parallel threads.

    Args:
        levels: Of the class.
        budget: Maximum number of picks.
        target_cost: Stop when the cost is at most this, in levels, after at least one pick; by
            default never.

    Cost:
        O(n) each time an example changes its representative, 4 to 7 times per example on residuals
        of real networks. O(n) memory beside the levels.
    """
    n = len(levels.matrix)
    num_groups = -(-n // _GROUP)
    nearest = np.full(n, n, np.int32)
    order, gained = np.empty(budget, np.int64), np.empty(budget, np.int64)
    gains = n * levels.uncovered - levels.row_sums
    num_picks = _run_lazy_greedy(
        levels.matrix,
        gains,
        np.full(num_groups, n * UNIT),
        np.full(num_groups, -1),
        np.full(n, levels.uncovered, np.int32),
        nearest,
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        order,
        gained,
        n * levels.uncovered,
        target_cost,
    )
    order, gained = order[:num_picks], gained[:num_picks]
    representatives = nearest.astype(np.int64)
    representatives[order] = order  # also where a duplicate at a lower position is equally near
    gains[order] = 0
    return Picks(order, gained, representatives, gains)


def count_candidates(n: int, budget: int, epsilon: float) -> int:
    """Return how many candidates stochastic greedy evaluates per step."""
    return min(n, math.ceil(n / budget * math.log(1 / epsilon)))


def stochastic_greedy(
    objective: FacilityLocation, budget: int, *, epsilon: float, seed: int
) -> Picks:
    """Evaluate a few random candidates per step: (1 - 1/e - epsilon) of the best in expectation.

    No matrix is stored: the levels of a step's candidates are computed from their gradients.

    Args:
        objective: Of the class.
        budget: Number of picks.
        epsilon: In (0, 1): smaller is better and slower.
        seed: Determines the candidates.

    Cost:
        n ln(1 / epsilon) evaluations in total, whatever the budget, each O(n features) on one core.

    Reference:
        Mirzasoleiman et al., *Lazier Than Lazy Greedy*, 2015.
    """
    n = objective.num_examples
    rng = np.random.default_rng(seed)
    num_drawn = count_candidates(n, budget, epsilon)
    rest = np.arange(n)
    coverage = np.full(n, UNIT, np.int32)
    nearest = np.full(n, n, np.int64)
    order = np.empty(budget, np.int64)
    gains = np.empty(budget, np.int64)
    for step in range(budget):
        drawn = rng.choice(len(rest), min(num_drawn, len(rest)), replace=False)
        drawn = drawn[np.argsort(rest[drawn])]  # argmax then breaks ties by position
        rows = objective.compute_rows(rest[drawn])
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
    return Picks(order, gains, nearest, None)


def batched_greedy(
    levels: Tensor, uncovered: Tensor, budgets: list[int], sizes: list[int]
) -> list[Picks]:
    """Run exact greedy on several classes at once, in a few kernels per step: for a GPU.

    All gains are kept exact: a pick changes the coverage of a few examples, and only their rows of
    levels are read.

    Args:
        levels: Padded to the largest class. ``(classes, n, n)`` int32
        uncovered: Level of an example without a representative, per class. ``(classes,)`` int32
        budgets: Number of picks per class.
        sizes: Number of examples per class.

    Cost:
        One pass over the levels for the first gains and one for the first pick; then O(n) for each
        example that gets a nearer representative. One synchronisation per step.
    """
    num_classes, n, _ = levels.shape
    device = levels.device
    positions = torch.arange(n, device=device)
    is_example = positions < torch.tensor(sizes, device=device)[:, None]
    coverage = torch.where(is_example, uncovered[:, None], 0)
    nearest = torch.full((num_classes, n), n, dtype=torch.int64, device=device)
    gains = torch.full((num_classes, n), -1, dtype=torch.int64, device=device)
    for c, size in enumerate(sizes):
        row_sums = levels[c, :size, :size].sum(1, dtype=torch.int64)
        gains[c, :size] = size * uncovered[c].long() - row_sums
    num_steps = max(budgets)
    order = torch.empty(num_classes, num_steps, dtype=torch.int64, device=device)
    gained = torch.empty(num_classes, num_steps, dtype=torch.int64, device=device)
    budget = torch.tensor(budgets, device=device)
    every_class = torch.arange(num_classes, device=device)
    for step in range(num_steps):
        best = gains.amax(1)
        # Trap: argmax may return any of several equal gains; the lowest position must win.
        pick = torch.where(gains == best[:, None], positions, n).amin(1)
        order[:, step], gained[:, step] = pick, best
        row = levels[every_class, pick]
        # A class whose budget is used up still picks, but is no longer updated.
        is_active = (step < budget)[:, None] & is_example
        ties = is_active & (row == coverage) & (pick[:, None] < nearest)
        closer = is_active & (row < coverage)
        nearest = torch.where(ties | closer, pick[:, None], nearest)
        before, coverage = coverage, torch.where(closer, row, coverage)
        changed, example = closer.nonzero(as_tuple=True)  # the synchronisation
        chunk = max(1, (1 << 26) // n)  # the first pick changes every example of every class
        for at, i in zip(torch.split(changed, chunk), torch.split(example, chunk), strict=True):
            own = levels[at, i]
            less = (coverage[at, i, None] - own).clamp_(min=0)
            less -= (before[at, i, None] - own).clamp_(min=0)
            gains.index_add_(0, at, less.long())
        is_picked = (positions == pick[:, None]) & is_active
        gains.masked_fill_(is_picked | ~is_example, -1)
    orders, all_gained, nearests = order.cpu().numpy(), gained.cpu().numpy(), nearest.cpu().numpy()
    remaining = gains.clamp_(min=0).cpu().numpy()
    found = []
    for c, (k, size) in enumerate(zip(budgets, sizes, strict=True)):
        picks = orders[c, :k]
        nearests[c, picks] = picks
        found.append(Picks(picks, all_gained[c, :k], nearests[c, :size], remaining[c, :size]))
    return found
