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


_GROUP = 256  # candidates whose largest gain is looked for together
_BLOCK = 128  # examples that a pick is compared with before any of them is written


class Picks(NamedTuple):
    """What a maximiser found, in positions of its class.

    Args:
        order: Selected positions, in the order picked. ``(k,)``
        gains: Gain of each pick in levels; never increases for an exact maximiser. ``(k,)``
        nearest: The pick that represents each position: the nearest one, the lowest position among
            equals, itself if selected. ``(n,)``
        left: What each candidate would still gain, zero if selected; ``None`` where a method does
            not know. ``(n,)``
    """

    order: Int64Array
    gains: Int64Array
    nearest: Int64Array
    left: Int64Array | None


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
    left = marginal_gains(levels.lost, coverage)
    return Picks(order, gains, nearest_picks(levels.lost, order, coverage), left)


@numba.njit(cache=True, nogil=True)
def _largest(gains: Int64Array, tops: Int64Array, seen: Int64Array, step: int) -> int:
    """Return the lowest position of the largest gain.

    Gains only fall, so the top of a group bounds it until it is looked at again; groups are looked
    at until the one that leads is up to date. What is below its top cannot win.
    """
    while True:
        group = 0
        for other in range(1, tops.shape[0]):
            if tops[other] > tops[group]:
                group = other
        part = gains[group * _GROUP : (group + 1) * _GROUP]
        if seen[group] == step:
            position = 0
            while part[position] != tops[group]:
                position += 1
            return group * _GROUP + position
        top = part[0]
        for i in range(part.shape[0]):
            top = max(top, part[i])
        tops[group], seen[group] = top, step


@numba.njit(cache=True, nogil=True)
def _cover(
    row: Int32Array,
    pick: np.int32,
    coverage: Int32Array,
    nearest: Int32Array,
    changed: Int32Array,
    before: Int32Array,
) -> int:
    """Let a pick represent whom it is nearest to; return how many, listed with what they had."""
    num_changed = 0
    for begin in range(0, row.shape[0], _BLOCK):
        levels, reached = row[begin : begin + _BLOCK], coverage[begin : begin + _BLOCK]
        closest = np.int32(-1)
        for i in range(levels.shape[0]):
            closest = max(closest, np.int32(reached[i] - levels[i]))
        if closest < 0:
            continue  # most blocks, once there are some picks
        for i in range(begin, begin + levels.shape[0]):
            if row[i] < coverage[i]:
                changed[num_changed], before[num_changed] = i, coverage[i]
                num_changed += 1
                coverage[i], nearest[i] = row[i], pick
            elif row[i] == coverage[i] and pick < nearest[i]:
                nearest[i] = pick
    return num_changed


@numba.njit(cache=True, nogil=True)
def _lessen(
    lost: Int32Array,
    gains: Int64Array,
    coverage: Int32Array,
    changed: Int32Array,
    before: Int32Array,
    num_changed: int,
) -> None:
    """Take from every gain what can no longer be gained on the examples that changed.

    Three of them a pass: their sum still fits 32 bits, and the gains are read and written less.
    """
    zero = np.int32(0)
    for t in range(0, num_changed - num_changed % 3, 3):
        a, b, c = changed[t], changed[t + 1], changed[t + 2]
        had_a, had_b, had_c = before[t], before[t + 1], before[t + 2]
        most_a = np.uint32(had_a - coverage[a])
        most_b = np.uint32(had_b - coverage[b])
        most_c = np.uint32(had_c - coverage[c])
        row_a, row_b, row_c = lost[a], lost[b], lost[c]
        for j in range(gains.shape[0]):
            less_a = min(np.uint32(max(np.int32(had_a - row_a[j]), zero)), most_a)
            less_b = min(np.uint32(max(np.int32(had_b - row_b[j]), zero)), most_b)
            less_c = min(np.uint32(max(np.int32(had_c - row_c[j]), zero)), most_c)
            gains[j] -= np.int64(np.uint32(np.uint32(less_a + less_b) + less_c))
    for t in range(num_changed - num_changed % 3, num_changed):
        had, row = before[t], lost[changed[t]]
        most = np.uint32(had - coverage[changed[t]])
        for j in range(gains.shape[0]):
            gains[j] -= np.int64(min(np.uint32(max(np.int32(had - row[j]), zero)), most))


@numba.njit(cache=True, nogil=True)
def _lazy_greedy(
    lost: Int32Array,
    gains: Int64Array,
    tops: Int64Array,
    seen: Int64Array,
    coverage: Int32Array,
    nearest: Int32Array,
    changed: Int32Array,
    before: Int32Array,
    order: Int64Array,
    gained: Int64Array,
    cost: int,
    enough: int,
) -> int:
    """Fill order and gained; return the number of picks.

    Arrays come from outside: numba takes seconds to compile the making of one.
    """
    num_picks = 0
    while num_picks < order.shape[0] and (num_picks == 0 or cost > enough):
        pick = _largest(gains, tops, seen, num_picks)
        order[num_picks], gained[num_picks] = pick, gains[pick]
        cost -= gains[pick]
        gains[pick] = -1
        num_picks += 1
        num_changed = _cover(lost[pick], np.int32(pick), coverage, nearest, changed, before)
        _lessen(lost, gains, coverage, changed, before, num_changed)
    return num_picks


def lazy_greedy(levels: Levels, budget: int, enough: int = -1) -> Picks:
    """Change gains only by what a pick changed, and look for the largest only where it can be.

    No gain is computed twice: an example that got a nearer representative lowers the gains of all
    candidates by a pass over its own row. On residuals of real networks that is two thirds of the
    passes of the textbook form, which re-evaluates whatever leads a heap of old gains (Minoux,
    1978), and half of its time.

    Compiled, one core, releases the interpreter lock: classes run side by side in threads.

    Args:
        levels: Of the class.
        budget: Picks at most.
        enough: Stop once the cost is at most this, in levels, with one pick or more; by default
            never.

    Cost:
        O(n) an example that changes its representative; on residuals of real networks each does 4
        to 7 times in all. O(n) memory beside the levels.
    """
    n = len(levels.lost)
    num_groups = -(-n // _GROUP)
    nearest = np.full(n, n, np.int32)
    order, gained = np.empty(budget, np.int64), np.empty(budget, np.int64)
    gains = n * levels.start - levels.sums
    num_picks = _lazy_greedy(
        levels.lost,
        gains,
        np.full(num_groups, n * UNIT),
        np.full(num_groups, -1),
        np.full(n, levels.start, np.int32),
        nearest,
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        order,
        gained,
        n * levels.start,
        enough,
    )
    order, gained = order[:num_picks], gained[:num_picks]
    representatives = nearest.astype(np.int64)
    representatives[order] = order
    gains[order] = 0
    return Picks(order, gained, representatives, gains)


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
    return Picks(order, gains, nearest, None)


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
        picked = (positions == pick[:, None]) & going
        gains.masked_fill_(picked | ~real, -1)
    orders, wins, nearests = order.cpu().numpy(), won.cpu().numpy(), nearest.cpu().numpy()
    lefts = gains.clamp_(min=0).cpu().numpy()
    found = []
    for at, (budget, size) in enumerate(zip(budgets, sizes, strict=True)):
        picks = orders[at, :budget]
        nearests[at, picks] = picks
        found.append(Picks(picks, wins[at, :budget], nearests[at, :size], lefts[at, :size]))
    return found
