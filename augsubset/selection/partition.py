"""Groups too large for n^2: parts of neighbours, solved one by one and merged by gain.

Parts come from a tree of splits across the direction of largest spread. Its thresholds are medians
of a sample drawn by hash, so that any number of processes that hold some of the rows build the same
tree and agree on every row's part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from augsubset.selection.distances import Factors, SquaredDistances
from augsubset.utils.rng import hash_integers

__all__ = [
    "LocalityTree",
    "PickIndex",
    "merge_by_gain",
    "num_rows_for",
    "part_budget",
    "sampled",
    "split_by_rank",
    "thinned",
]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_SAMPLES_PER_PART = 512  # part sizes then vary by some 4%
_FILL = 0.9  # of the part size that is aimed at, so that few parts exceed it
_ITERATIONS = 8  # of the power method: any direction of large spread does
_CHUNK = 512


class _Node(NamedTuple):
    """A split: rows at or below the threshold go left. A leaf has a part number instead."""

    direction: Float64Array
    threshold: float
    left: int
    right: int
    part: int


class LocalityTree:
    """Splits of space into parts of about equal numbers of rows.

    Args:
        sample: Rows that stand for all; :func:`sampled` draws them.
        num_rows: How many there are in all.
        part_size: Rows a part, at most but for chance; see :func:`split_by_rank`.

    Cost:
        O(sample features log parts) time.
    """

    def __init__(self, sample: Sequence[Factors], num_rows: int, part_size: int) -> None:
        self._nodes: list[_Node] = []
        self.num_parts = 0
        self._grow(_columns(sample), math.ceil(num_rows / (_FILL * part_size)))

    def _grow(self, columns: FloatArray, num_parts: int) -> int:
        """Add the subtree of these sample rows; return its place."""
        place = len(self._nodes)
        direction = _principal_direction(columns)
        along = _along(columns, direction)
        self._nodes.append(_Node(direction, 0.0, -1, -1, self.num_parts))
        values = np.sort(along)
        cut = len(values) * (num_parts // 2) // num_parts
        if num_parts == 1 or cut == 0 or values[cut - 1] == values[-1]:
            self.num_parts += 1
            return place
        below = along <= values[cut - 1]
        left = self._grow(columns[below], num_parts // 2)
        right = self._grow(columns[~below], num_parts - num_parts // 2)
        self._nodes[place] = _Node(direction, float(values[cut - 1]), left, right, -1)
        return place

    def parts_of(self, rows: Sequence[Factors]) -> Int64Array:
        """Return the part of each row."""
        columns = _columns(rows)
        parts = np.empty(len(columns), np.int64)
        pending = [(0, np.arange(len(parts)))]
        while pending:
            place, positions = pending.pop()
            node = self._nodes[place]
            if node.part >= 0:
                parts[positions] = node.part
                continue
            below = _along(columns[positions], node.direction) <= node.threshold
            pending += [(node.left, positions[below]), (node.right, positions[~below])]
        return parts


def sampled(indices: Int64Array, num_rows: int, part_size: int) -> Int64Array:
    """Return positions of the rows that the tree is built from: by hash of their dataset index.

    Args:
        indices: Dataset indices of the rows at hand.
        num_rows: How many rows there are in all, here or elsewhere.
        part_size: Rows a part.
    """
    wanted = _SAMPLES_PER_PART * math.ceil(num_rows / (_FILL * part_size))
    if wanted >= num_rows:
        return np.arange(len(indices))
    return np.flatnonzero(hash_integers(indices) < int(wanted / num_rows * 2**64))


def num_rows_for(budget: int, part_size: int) -> int:
    """Return of how many rows a budget is worth two picks a part."""
    return part_size * max(1, budget // 2)


def thinned(indices: Int64Array, budget: int | None, part_size: int) -> Int64Array | None:
    """Return positions of a sample to select from where picks are fewer than two a part.

    Greedy within parts would put one pick into each. Of a sample by hash, so small that it has no
    more parts than half the picks, each pick stands for half a part's rows or more. ``None``: all.
    """
    num_rows = len(indices)
    if budget is None or num_rows_for(budget, part_size) >= num_rows:
        return None
    wanted = num_rows_for(budget, part_size)
    few = np.flatnonzero(hash_integers(indices, 1) < int(wanted / num_rows * 2**64))
    return few if len(few) >= budget else None


def split_by_rank(rows: Sequence[Factors], part_size: int) -> list[Int64Array]:
    """Split rows that a part has too many of in halves, ties by position."""
    columns = _columns(rows)
    found, pending = [], [np.arange(len(columns))]
    while pending:
        positions = pending.pop()
        if len(positions) <= part_size:
            found.append(np.sort(positions))
            continue
        mine = columns[positions]
        along = _along(mine, _principal_direction(mine))
        order = positions[np.argsort(along, kind="stable")]
        pending += [order[len(order) // 2 :], order[: len(order) // 2]]
    return found


def part_budget(budget: int, size: int, num_rows: int) -> int:
    """Return how many picks a part offers: twice its share, since gains decide what is taken."""
    return min(size, 2 * math.ceil(budget * size / num_rows) + 1)


def merge_by_gain(
    picks: Sequence[Int64Array], gains: Sequence[Float64Array]
) -> tuple[Int64Array, Float64Array]:
    """Return all parts' picks by falling gain, the lowest number among equals.

    This is greedy on the sum of the parts' objectives, as if no example were represented from
    outside its part. A part's first pick has the gain of everything, so each part has one first.
    """
    numbers, values = np.concatenate(picks), np.concatenate(gains)
    order = np.lexsort((numbers, -values))
    return numbers[order], values[order]


class PickIndex:
    """The selected rows of a class, by part: who is nearest, without comparing with all of them.

    Args:
        picks: The rows, one entry a layer, group by group.
        numbers: What each pick is called, ascending within a group.
        sizes: How many picks each group has.
    """

    def __init__(self, picks: Sequence[Factors], numbers: Int64Array, sizes: Int64Array) -> None:
        self._picks = picks
        self._numbers = numbers
        ends = np.cumsum(sizes)
        self._groups = [(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]
        self._filled = np.flatnonzero(sizes)
        # Boxes bound distances between vectors, not between products of two.
        self._boxes: tuple[FloatArray, FloatArray] | None = None
        if len(picks) == 1 and picks[0].right is None:
            starts = (ends - sizes)[self._filled]
            self._boxes = (
                np.minimum.reduceat(picks[0].left, starts).astype(np.float64),
                np.maximum.reduceat(picks[0].left, starts).astype(np.float64),
            )

    def nearest(self, rows: Sequence[Factors], home: int) -> Int64Array:
        """Return the number of each row's nearest pick, the lowest among equals.

        Args:
            rows: Neighbours, of one part.
            home: The group that most of their nearest picks are in.

        Cost:
            O(rows picks features) where nothing can be skipped. A group is skipped whose box is
            farther from the rows' box, then from a row, than the row's nearest pick at home.
        """
        n = len(rows[0].left)
        reach = np.full(n, np.inf)
        first, last = self._groups[home]
        if self._boxes is not None and last > first:
            squares = SquaredDistances(
                rows, [part.at(np.arange(first, last)) for part in self._picks]
            )
            least = [
                squares.block(slice(begin, begin + _CHUNK), 0).min(1)
                for begin in range(0, n, _CHUNK)
            ]
            least_squares = np.concatenate(least).astype(np.float64)
            reach = np.sqrt(least_squares) * squares.unit * (1 + 1e-3)
        near, outside = self._near(rows, reach)
        members = np.concatenate([np.arange(*self._groups[group]) for group in near])
        squares = SquaredDistances(rows, [part.at(members) for part in self._picks])
        best = np.full(n, np.inf, rows[0].left.dtype)
        nearest = np.full(n, np.iinfo(np.int64).max, np.int64)
        end = 0
        for group, distances in zip(near, outside, strict=True):
            first, last = self._groups[group]
            begin, end = end, end + last - first
            reached = np.flatnonzero(distances <= reach)
            for at in range(0, len(reached), _CHUNK):
                mine = reached[at : at + _CHUNK]
                block = squares.block(mine, begin, end)
                where = block.argmin(1)
                value, found = block[np.arange(len(mine)), where], self._numbers[first + where]
                better = (value < best[mine]) | ((value == best[mine]) & (found < nearest[mine]))
                best[mine[better]] = value[better]
                nearest[mine[better]] = found[better]
        return nearest

    def _near(
        self, rows: Sequence[Factors], reach: Float64Array
    ) -> tuple[list[int], list[Float64Array]]:
        """Return groups that may hold a nearest pick, and each row's distance to their boxes."""
        if self._boxes is None:
            return self._filled.tolist(), [np.zeros(len(reach)) for _ in self._filled]
        low, high = self._boxes
        values = rows[0].left
        apart = _beyond(low - values.max(0), values.min(0) - high)
        near = np.flatnonzero(apart <= reach.max())
        outside = [_beyond(low[group] - values, values - high[group]) for group in near]
        return self._filled[near].tolist(), outside


def _beyond(below: FloatArray, above: FloatArray) -> Float64Array:
    """Return lengths of what lies outside on either side; negative means inside."""
    outside = np.maximum(np.maximum(below, above), 0).astype(np.float64)
    lengths: Float64Array = np.sqrt(np.square(outside).sum(1))
    return lengths


def _columns(rows: Sequence[Factors]) -> FloatArray:
    return np.concatenate([side for part in rows for side in part if side is not None], axis=1)


def _principal_direction(columns: FloatArray) -> Float64Array:
    """Return about the direction of largest variance, by the power method."""
    if not columns.size:
        return np.zeros(columns.shape[1])
    centred = columns - columns.mean(0, dtype=np.float64)
    direction = np.zeros(columns.shape[1])
    direction[np.square(centred).sum(0).argmax()] = 1.0
    for _ in range(_ITERATIONS):
        direction = centred.T @ (centred @ direction)
        length = np.linalg.norm(direction)
        if length == 0:
            break
        direction /= length
    return direction


def _along(columns: FloatArray, direction: Float64Array) -> Float64Array:
    """Return rows times a direction, each row's sum in one order whatever the rows beside it."""
    product: Float64Array = np.einsum("ij,j->i", columns, direction, dtype=np.float64)
    return product
