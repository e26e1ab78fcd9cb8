"""Classes too large for an n x n matrix: split by locality, solve each part, merge by gain.

A tree splits along the direction of largest variance, at medians of a sample drawn by hash of the
dataset index. So any number of processes, each with some of the rows, build the same tree and
agree on every row's part.
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
    "compute_part_budget",
    "count_rows_for",
    "draw_subsample",
    "draw_tree_sample",
    "merge_by_gain",
    "split_in_halves",
]

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_SAMPLES_PER_PART = 512  # part sizes then vary by about 4%
_FILL = 0.9  # target size relative to part_size, so that few parts exceed it
_ITERATIONS = 8  # of the power method: any direction of large variance will do
_CHUNK = 512


class _Node(NamedTuple):
    """A split: rows at or below the threshold go left. A leaf only has a part number."""

    direction: Float64Array
    threshold: float
    left: int
    right: int
    part: int


class LocalityTree:
    """Recursive splits of the feature space into parts with about equal numbers of rows.

    Args:
        sample: From :func:`draw_tree_sample`.
        num_rows: Total number of rows.
        part_size: Maximum rows per part, up to chance; see :func:`split_in_halves`.

    Cost:
        O(sample features log parts) time.
    """

    def __init__(self, sample: Sequence[Factors], num_rows: int, part_size: int) -> None:
        self._nodes: list[_Node] = []
        self.num_parts = 0
        self._grow(_concatenate_features(sample), math.ceil(num_rows / (_FILL * part_size)))

    def _grow(self, columns: FloatArray, num_parts: int) -> int:
        """Add the subtree of these sample rows; return the index of its root."""
        root = len(self._nodes)
        direction = _find_principal_direction(columns)
        along = _project(columns, direction)
        self._nodes.append(_Node(direction, 0.0, -1, -1, self.num_parts))
        values = np.sort(along)
        cut = len(values) * (num_parts // 2) // num_parts
        if num_parts == 1 or cut == 0 or values[cut - 1] == values[-1]:
            self.num_parts += 1
            return root
        below = along <= values[cut - 1]
        left = self._grow(columns[below], num_parts // 2)
        right = self._grow(columns[~below], num_parts - num_parts // 2)
        self._nodes[root] = _Node(direction, float(values[cut - 1]), left, right, -1)
        return root

    def assign_parts(self, rows: Sequence[Factors]) -> Int64Array:
        """Return the part number of each row."""
        columns = _concatenate_features(rows)
        parts = np.empty(len(columns), np.int64)
        pending = [(0, np.arange(len(parts)))]
        while pending:
            root, positions = pending.pop()
            node = self._nodes[root]
            if node.part >= 0:
                parts[positions] = node.part
                continue
            below = _project(columns[positions], node.direction) <= node.threshold
            pending += [(node.left, positions[below]), (node.right, positions[~below])]
        return parts


def draw_tree_sample(indices: Int64Array, num_rows: int, part_size: int) -> Int64Array:
    """Return the positions of the rows to build the tree from, by hash of their dataset index.

    Args:
        indices: Dataset indices of the local rows.
        num_rows: Total number of rows, local or not.
        part_size: Maximum rows per part.
    """
    wanted = _SAMPLES_PER_PART * math.ceil(num_rows / (_FILL * part_size))
    if wanted >= num_rows:
        return np.arange(len(indices))
    return np.flatnonzero(hash_integers(indices) < int(wanted / num_rows * 2**64))


def count_rows_for(budget: int, part_size: int) -> int:
    """Return the number of rows for which a budget amounts to two picks per part."""
    return part_size * max(1, budget // 2)


def draw_subsample(indices: Int64Array, budget: int | None, part_size: int) -> Int64Array | None:
    """Return the positions of a subsample to select from if the budget is below two per part.

    Otherwise every part would get one pick, however dense it is. In a subsample by hash, with at
    most half as many parts as picks, greedy can choose among parts. ``None``: select from all rows.
    """
    num_rows = len(indices)
    if budget is None or count_rows_for(budget, part_size) >= num_rows:
        return None
    share = count_rows_for(budget, part_size) / num_rows
    positions = np.flatnonzero(hash_integers(indices, 1) < int(share * 2**64))
    return positions if len(positions) >= budget else None


def split_in_halves(rows: Sequence[Factors], part_size: int) -> list[Int64Array]:
    """Return positions of the rows of a part, halved until each piece fits ``part_size``.

    The tree's parts vary in size and never separate duplicates; these splits are by rank along the
    direction, ties by position.
    """
    columns = _concatenate_features(rows)
    found, pending = [], [np.arange(len(columns))]
    while pending:
        positions = pending.pop()
        if len(positions) <= part_size:
            found.append(np.sort(positions))
            continue
        own = columns[positions]
        along = _project(own, _find_principal_direction(own))
        order = positions[np.argsort(along, kind="stable")]
        pending += [order[len(order) // 2 :], order[: len(order) // 2]]
    return found


def compute_part_budget(budget: int, size: int, num_rows: int) -> int:
    """Return how many picks a part proposes: twice its share, as gains decide which are taken."""
    return min(size, 2 * math.ceil(budget * size / num_rows) + 1)


def merge_by_gain(
    picks: Sequence[Int64Array], gains: Sequence[Float64Array]
) -> tuple[Int64Array, Float64Array]:
    """Return the picks of all parts by decreasing gain, ties by number.

    This is exactly greedy on the sum of the parts' objectives: an example only counts in its own
    part, so a pick does not change gains in other parts, and within a part gains never increase.
    """
    numbers, values = np.concatenate(picks), np.concatenate(gains)
    order = np.lexsort((numbers, -values))
    return numbers[order], values[order]


class PickIndex:
    """The selected rows of a class, grouped by part, for pruned nearest-neighbour search.

    Args:
        picks: The rows, one entry per layer, group by group.
        numbers: Identifier of each pick, ascending within a group.
        sizes: Number of picks in each group; may be 0.
    """

    def __init__(self, picks: Sequence[Factors], numbers: Int64Array, sizes: Int64Array) -> None:
        self._picks = picks
        self._numbers = numbers
        ends = np.cumsum(sizes)
        self._groups = [(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]
        self._filled = np.flatnonzero(sizes)
        # Bounding boxes bound distances between vectors, but not between outer products.
        self._boxes: tuple[FloatArray, FloatArray] | None = None
        if len(picks) == 1 and picks[0].right is None:
            starts = (ends - sizes)[self._filled]
            self._boxes = (
                np.minimum.reduceat(picks[0].left, starts).astype(np.float64),
                np.maximum.reduceat(picks[0].left, starts).astype(np.float64),
            )

    def find_nearest(self, rows: Sequence[Factors], home: int) -> Int64Array:
        """Return the number of each row's nearest pick, the lowest among equally near ones.

        Args:
            rows: Rows of one part.
            home: The group of picks of the same part, which contains most of the nearest ones.

        Cost:
            O(rows picks features) in the worst case. The nearest pick at home gives each row an
            upper bound; a group is skipped if its bounding box is farther away than that, first
            from the bounding box of all rows, then from each row.
        """
        n = len(rows[0].left)
        radius = np.full(n, np.inf)
        first, last = self._groups[home]
        if self._boxes is not None and last > first:
            squares = SquaredDistances(
                rows, [part.take(np.arange(first, last)) for part in self._picks]
            )
            least = [
                squares.compute_block(slice(begin, begin + _CHUNK), 0).min(1)
                for begin in range(0, n, _CHUNK)
            ]
            least_squares = np.concatenate(least).astype(np.float64)
            # Rounding must not exclude the nearest pick, nor one at the same distance.
            radius = np.sqrt(least_squares) * squares.unit * (1 + 1e-3)
        near, outside = self._find_groups_within(rows, radius)
        members = np.concatenate([np.arange(*self._groups[group]) for group in near])
        squares = SquaredDistances(rows, [part.take(members) for part in self._picks])
        best = np.full(n, np.inf, rows[0].left.dtype)
        nearest = np.full(n, np.iinfo(np.int64).max, np.int64)
        end = 0
        for group, distances in zip(near, outside, strict=True):
            first, last = self._groups[group]
            begin, end = end, end + last - first
            candidates = np.flatnonzero(distances <= radius)
            for at in range(0, len(candidates), _CHUNK):
                some = candidates[at : at + _CHUNK]
                block = squares.compute_block(some, begin, end)
                where = block.argmin(1)  # the first of equals, which has the lowest number
                value, found = block[np.arange(len(some)), where], self._numbers[first + where]
                better = (value < best[some]) | ((value == best[some]) & (found < nearest[some]))
                best[some[better]] = value[better]
                nearest[some[better]] = found[better]
        return nearest

    def _find_groups_within(
        self, rows: Sequence[Factors], radius: Float64Array
    ) -> tuple[list[int], list[Float64Array]]:
        """Return groups that may contain a nearest pick, and each row's distance to their boxes."""
        if self._boxes is None:
            return self._filled.tolist(), [np.zeros(len(radius)) for _ in self._filled]
        low, high = self._boxes
        values = rows[0].left
        between_boxes = _distance_outside(low - values.max(0), values.min(0) - high)
        near = np.flatnonzero(between_boxes <= radius.max())
        outside = [_distance_outside(low[group] - values, values - high[group]) for group in near]
        return self._filled[near].tolist(), outside


def _distance_outside(below: FloatArray, above: FloatArray) -> Float64Array:
    """Return Euclidean distances to a box from the excess on either side; negative is inside."""
    outside = np.maximum(np.maximum(below, above), 0).astype(np.float64)
    _, exponent = np.frexp(outside.max(initial=0))  # only squares too small to count vanish
    lengths = np.sqrt(np.square(np.ldexp(outside, -exponent)).sum(1))
    scaled: Float64Array = np.ldexp(lengths, exponent)
    return scaled


def _concatenate_features(rows: Sequence[Factors]) -> FloatArray:
    return np.concatenate([side for part in rows for side in part if side is not None], axis=1)


def _find_principal_direction(columns: FloatArray) -> Float64Array:
    """Return approximately the direction of largest variance, by the power method."""
    if not columns.size:
        return np.zeros(columns.shape[1])
    centred = columns - columns.mean(0, dtype=np.float64)
    centred = np.ldexp(centred, -np.frexp(np.abs(centred).max())[1])  # squares do not overflow
    direction = np.zeros(columns.shape[1])
    direction[np.square(centred).sum(0).argmax()] = 1.0
    for _ in range(_ITERATIONS):
        direction = centred.T @ (centred @ direction)
        length = np.linalg.norm(direction)
        if length == 0:
            break
        direction /= length
    return direction


def _project(columns: FloatArray, direction: Float64Array) -> Float64Array:
    """Return rows times a direction. Not by BLAS, whose sums depend on the number of rows."""
    product: Float64Array = np.einsum("ij,j->i", columns, direction, dtype=np.float64)
    return product
