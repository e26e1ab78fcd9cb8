"""The rows of an epoch and their order, as a function of (seed, epoch, selection)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from augsubset.sampling.keys import (
    FIRST_REPEAT,
    LAST_FILLER,
    MAX_COPIES,
    MAX_FILLERS,
    MAX_REPEATS,
    PADDING,
    pack,
    unpack,
)
from augsubset.utils.rng import mix_seed

__all__ = ["EpochPlan", "Layout", "Originals", "RowWeights"]

Originals = Literal["all", "unselected", "selected", "none"]
RowWeights = Literal["cluster", "uniform", "resample"]
Layout = Literal["mixed", "grouped"]
Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Random streams beside the one that shuffles.
_DRAWS, _GROUPS, _FILLERS, _SPREAD = 1, 2, 3, 4


@dataclass(frozen=True)
class EpochPlan:
    """The shape of an epoch, fixed at construction whatever is selected later.

    Args:
        num_examples: n.
        budget: Largest number of selected examples, k.
        copies: r.
        originals: Which originals take part.
        weights: Whether rows are weighted, all weigh 1, or copies are drawn by cluster size.
        layout: Whether the rows of one example share a batch.
        batch_size: For ``layout="grouped"``, whose order consists of whole batches.
        shuffle: Whether the order changes from epoch to epoch. If not, originals keep theirs, and
            copies are spread evenly among them.
        seed: Distinguishes runs.
        num_drawn: Originals of an epoch, if a sampler draws them and their order.
    """

    num_examples: int
    budget: int
    copies: int
    originals: Originals
    weights: RowWeights
    layout: Layout
    batch_size: int | None
    shuffle: bool
    seed: int
    num_drawn: int | None = None

    def num_originals(self, num_selected: int) -> int:
        """Return how many originals take part."""
        return {
            "all": self.num_examples if self.num_drawn is None else self.num_drawn,
            "unselected": self.num_examples - num_selected,
            "selected": num_selected,
            "none": 0,
        }[self.originals]

    def describe(self) -> str:
        """Return what an epoch holds, in words."""
        k = self.budget
        chosen = "all examples" if k == self.num_examples else f"{k:,} examples"
        copies = "1 copy" if self.copies == 1 else f"{self.copies} copies"
        return f"{self.num_originals(k):,} originals and {copies} of each of {chosen}"

    def num_rows(self, num_selected: int) -> int:
        """Return the number of rows without those that fill the epoch up."""
        return self.num_originals(num_selected) + self.copies * num_selected

    def __len__(self) -> int:
        """Return the number of keys of an epoch in one process, fillers included."""
        most = self.num_rows(self.budget)
        if self.layout == "mixed":
            return most
        assert self.batch_size is not None
        groups_per_batch = self.batch_size // self._rows_per_group
        num_batches = max(-(-most // self.batch_size), -(-self._max_groups // groups_per_batch))
        return num_batches * self.batch_size

    @property
    def _rows_per_group(self) -> int:
        return self.copies + (self.originals in ("all", "selected"))

    @property
    def _max_groups(self) -> int:
        if self.weights != "resample":
            return self.budget
        # An example drawn t_i times needs ceil(t_i / g) groups of g rows; this bounds their sum.
        g = self._rows_per_group
        return self.budget + (g * self.budget - self.budget) // g

    def keys(self, epoch: int, selected: Keys, sizes: Floats, drawn: Keys | None = None) -> Keys:
        """Return an epoch's keys in order.

        Args:
            epoch: 0..8191.
            selected: Selected indices, ascending.
            sizes: Cluster size of each.
            drawn: Indices of the originals, ``(num_drawn,)``, if a sampler draws them.

        Cost:
            O(rows). For ``layout="mixed"`` 8 bytes per key and as much again for the originals
            while they are made; four times that if grouped.
        """
        keys = np.empty(len(self), np.int64)
        num_rows = self._write_rows(keys, epoch, selected, sizes, drawn)
        keys[num_rows:] = self.make_fillers(epoch, selected, sizes, 0, len(keys) - num_rows)
        if self.layout == "grouped":
            return self._group(keys, num_rows, epoch, selected)
        if self.shuffle:
            np.random.default_rng(mix_seed(self.seed, epoch)).shuffle(keys)
            return keys
        num_originals = self.num_originals(len(selected))
        if drawn is None:
            return self._spread(keys, num_originals, mix_seed(self.seed, _SPREAD))
        np.random.default_rng(mix_seed(self.seed, epoch)).shuffle(keys[num_originals:])
        return self._spread(keys, num_originals, mix_seed(self.seed, epoch, _SPREAD))

    def make_fillers(
        self, epoch: int, selected: Keys, sizes: Floats, first: int, count: int
    ) -> Keys:
        """Return keys that fill an epoch up: padding of weight 0, or further copies.

        Fillers form an endless sequence, a function of (seed, epoch, selection) alone, of which an
        epoch takes as many as it needs and uneven ranks the ones after. With cluster weights they
        are padding. Without, every row weighs 1, so they are further copies: of each selected
        example in turn, or drawn by cluster size.

        Args:
            epoch: 0..8191.
            selected: As for :meth:`keys`.
            sizes: As for :meth:`keys`.
            first: Position of the first filler in that sequence.
            count: How many.
        """
        stop = first + count
        if self.weights == "cluster":
            # A sampler may leave out examples that must not even be fetched.
            pool = np.arange(self.num_examples) if self.num_drawn is None else selected
            return pack(epoch, PADDING, pool[np.arange(first, stop) % len(pool)])
        if not count:
            return np.empty(0, np.int64)
        rng = np.random.default_rng(mix_seed(self.seed, epoch, _FILLERS))
        if self.weights == "uniform":
            chosen = rng.permutation(len(selected))[np.arange(stop) % len(selected)]
        else:
            edges = np.cumsum(sizes)
            points = rng.random(stop) * edges[-1]
            chosen = np.searchsorted(edges[:-1], points, side="right")  # the last is rounded
        # Copy numbers count down from the top, one after another for each example: an epoch's
        # own copies count up from 1, so no two rows share a key.
        copies = LAST_FILLER - _count_earlier(chosen) % MAX_FILLERS
        return pack(epoch, copies[first:], selected[chosen[first:]])

    def _write_rows(
        self, keys: Keys, epoch: int, selected: Keys, sizes: Floats, drawn: Keys | None
    ) -> int:
        """Write originals by index, then copies; return the number of rows written."""
        base = pack(epoch, 0, 0)
        if drawn is not None:
            earlier = _count_earlier(drawn)
            again = FIRST_REPEAT + (earlier - 1) % MAX_REPEATS
            originals = pack(epoch, np.where(earlier == 0, 0, again), drawn)
        elif self.originals in ("all", "unselected"):
            originals = np.arange(base, base + self.num_examples)
            if self.originals == "unselected":
                originals = np.delete(originals, selected)
        elif self.originals == "selected":
            originals = base + np.repeat(selected, self._count_rows(epoch, sizes, 1))
        else:
            originals = keys[:0]
        begin = len(originals)
        keys[:begin] = originals
        del originals  # as large as the keys themselves
        end = begin + self.copies * len(selected)
        if self.weights != "resample":
            copies = np.repeat(np.arange(1, self.copies + 1), len(selected))
            keys[begin:end] = pack(epoch, copies, np.tile(selected, self.copies))
        else:
            drawn = np.repeat(selected, self._count_rows(epoch, sizes, self.copies))
            copies = 1 + _count_earlier(drawn) % MAX_COPIES
            keys[begin:end] = pack(epoch, copies, drawn)
        return end

    def _spread(self, keys: Keys, num_originals: int, seed: int) -> Keys:
        """Return originals in their order, with the copies after them spread evenly among them.

        The fewer of both get one place in each of equal stretches; a random one, since at regular
        distances a single rank might get them all.
        """
        few, many = sorted((keys[:num_originals], keys[num_originals:]), key=len)
        edges = np.arange(len(few) + 1) * len(keys) // max(1, len(few))
        rng = np.random.default_rng(seed)
        places = edges[:-1] + (rng.random(len(few)) * np.diff(edges)).astype(np.int64)
        is_few = np.zeros(len(keys), bool)
        is_few[places] = True
        spread = np.empty_like(keys)
        spread[is_few], spread[~is_few] = few, many
        return spread

    def _count_rows(self, epoch: int, sizes: Floats, per_example: int) -> Keys:
        """Return how many rows each selected example gets: equally many, or drawn by size.

        Draws are systematic: the cumulated sizes are laid out on a line of length
        ``k * per_example``, and a comb of unit spacing with one random offset is laid over it. An
        example gets as many rows as teeth fall on its stretch: its expected share exactly, and
        never more than one row away from it.
        """
        k = len(sizes)
        if self.weights != "resample":
            return np.full(k, per_example, np.int64)
        total = per_example * k
        offset = np.random.default_rng(mix_seed(self.seed, epoch, _DRAWS, per_example)).random()
        # floor(edge + offset) is the number of teeth left of an edge; differences are counts.
        edges: Keys = np.floor(np.cumsum(sizes) / sizes.sum() * total + offset).astype(np.int64)
        edges[-1] = total  # the last sum may be rounded to either side
        counts: Keys = np.diff(edges, prepend=0)
        return counts

    def _group(self, rows: Keys, num_rows: int, epoch: int, selected: Keys) -> Keys:
        """Return whole batches in which the rows of one example stand together.

        Groups (an example's original and copies, at most 1 + r rows) are spread evenly over the
        batches; single rows fill the batches up.
        """
        assert self.batch_size is not None
        indices = unpack(rows)[2]
        place = np.searchsorted(selected, indices)
        is_grouped = selected[place % len(selected)] == indices
        is_grouped[num_rows:] = False  # fillers are single rows
        singles, grouped = rows[~is_grouped], rows[is_grouped]
        owner = place[is_grouped]
        by_owner = np.argsort(owner, kind="stable")  # originals come before copies
        grouped, owner = grouped[by_owner], owner[by_owner]
        # An example that was drawn often has several groups: its rows are numbered, and every
        # _rows_per_group of them begin a new one.
        within_owner = np.arange(len(owner)) - np.searchsorted(owner, owner)
        part = within_owner // self._rows_per_group
        starts = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(part, prepend=0))
        group = np.cumsum(np.bincount(starts, minlength=len(owner))) - 1
        num_groups, num_batches = len(starts), len(rows) // self.batch_size
        rank = np.arange(num_groups)
        if self.shuffle:
            rng = np.random.default_rng(mix_seed(self.seed, epoch, _GROUPS))
            rank = rng.permutation(num_groups)
            rng.shuffle(singles)
        # Groups go to batches round-robin by rank, and stand at the front of their batch.
        batch = rank % num_batches
        order = np.lexsort((rank[group], batch[group]))
        batch_of_row = batch[group][order]
        within_batch = np.arange(len(order)) - np.searchsorted(batch_of_row, batch_of_row)
        slots = batch_of_row * self.batch_size + within_batch
        keys = np.empty(len(rows), np.int64)
        keys[slots] = grouped[order]
        is_free = np.ones(len(rows), bool)
        is_free[slots] = False
        keys[is_free] = singles
        return keys


def _count_earlier(values: Keys) -> Keys:
    """Return for each value how many equal ones come before it.

    Example:
        >>> _count_earlier(np.array([5, 7, 5, 5])).tolist()
        [0, 0, 1, 2]
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    earlier = np.empty(len(values), np.int64)
    earlier[order] = np.arange(len(values)) - np.searchsorted(ranked, ranked)
    return earlier
