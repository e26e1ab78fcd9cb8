"""The rows of an epoch and their order, as a function of (seed, epoch, selection)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from augsubset.sampling.keys import MAX_COPIES, PADDING, pack, unpack
from augsubset.utils.rng import mix_seed

__all__ = ["EpochPlan", "Layout", "Mode", "Raw"]

Raw = Literal["all", "unselected", "selected", "none"]
Mode = Literal["weight", "sample"]
Layout = Literal["mixed", "grouped"]
Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_DRAWS, _GROUPS, _FILLERS = 1, 2, 3  # streams of random numbers beside the order's own


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch has room for, whatever is selected: fixed at construction.

    Args:
        num_examples: n.
        budget: Selected examples there is room for, k.
        copies: r.
        raw: Which originals take part.
        mode: Whether copies are weighted or drawn.
        layout: Whether rows of one example share a batch.
        batch_size: For ``layout="grouped"``, whose order is made of whole batches.
        shuffle: Whether the order changes from epoch to epoch.
        seed: Distinguishes runs.
    """

    num_examples: int
    budget: int
    copies: int
    raw: Raw
    mode: Mode
    layout: Layout
    batch_size: int | None
    shuffle: bool
    seed: int

    def num_rows(self, num_selected: int) -> int:
        """Return how many rows there are, fillers left out."""
        originals = {
            "all": self.num_examples,
            "unselected": self.num_examples - num_selected,
            "selected": num_selected,
            "none": 0,
        }
        return originals[self.raw] + self.copies * num_selected

    def __len__(self) -> int:
        """Return how many keys an epoch has in one process, fillers included."""
        most = self.num_rows(self.budget)
        if self.layout == "mixed":
            return most
        assert self.batch_size is not None
        per_batch = self.batch_size // self._rows_per_group
        num_batches = max(-(-most // self.batch_size), -(-self._most_groups // per_batch))
        return num_batches * self.batch_size

    @property
    def _rows_per_group(self) -> int:
        return self.copies + (self.raw in ("all", "selected"))

    @property
    def _most_groups(self) -> int:
        if self.mode == "weight":
            return self.budget
        # Drawn rows come in any numbers t_i; at most this many groups hold them: sum of ceil(t_i/g)
        g = self._rows_per_group
        return self.budget + (g * self.budget - self.budget) // g

    def keys(self, epoch: int, selected: Keys, sizes: Floats) -> Keys:
        """Return an epoch's keys in order.

        Args:
            epoch: 0..8191.
            selected: Selected indices, ascending.
            sizes: Cluster size of each.

        Cost:
            For ``layout="mixed"`` the keys themselves, 8 bytes each, and as much again for the
            originals while they are made; grouped four times that.
        """
        keys = np.empty(len(self), np.int64)
        num_rows = self._fill(keys, epoch, selected, sizes)
        keys[num_rows:] = self.fillers(epoch, selected, sizes, 0, len(keys) - num_rows)
        if self.layout == "grouped":
            return self._grouped(keys, num_rows, epoch, selected)
        if self.shuffle:
            np.random.default_rng(mix_seed(self.seed, epoch)).shuffle(keys)
        return keys

    def fillers(self, epoch: int, selected: Keys, sizes: Floats, first: int, count: int) -> Keys:
        """Return keys that fill an epoch up: rows of weight zero, or further draws.

        Without weights a filler cannot weigh nothing. It is a draw like others, and its copy
        number, counted down from the top, makes it a copy that nobody else is.

        Args:
            epoch: 0..8191.
            selected: As for :meth:`keys`.
            sizes: As there.
            first: Number of the first filler in the epoch.
            count: How many.
        """
        numbers = np.arange(first, first + count)
        if self.mode == "weight":
            return pack(epoch, PADDING, numbers % self.num_examples)
        if not count:
            return numbers
        seed = mix_seed(self.seed, epoch, _FILLERS, first)
        drawn = np.random.default_rng(seed).choice(len(selected), count, p=sizes / sizes.sum())
        return pack(epoch, MAX_COPIES - numbers % (MAX_COPIES // 2), selected[drawn])

    def _fill(self, keys: Keys, epoch: int, selected: Keys, sizes: Floats) -> int:
        """Write originals by index, then copies; return how many rows that were."""
        base = pack(epoch, 0, 0)
        if self.raw in ("all", "unselected"):
            originals = np.arange(base, base + self.num_examples)
            if self.raw == "unselected":
                originals = np.delete(originals, selected)
        elif self.raw == "selected":
            originals = base + np.repeat(selected, self._drawn(epoch, sizes, 1))
        else:
            originals = keys[:0]
        begin = len(originals)
        keys[:begin] = originals
        del originals  # as large as the keys
        end = begin + self.copies * len(selected)
        if self.mode == "weight":
            copies = np.repeat(np.arange(1, self.copies + 1), len(selected))
            keys[begin:end] = pack(epoch, copies, np.tile(selected, self.copies))
        else:
            counts = self._drawn(epoch, sizes, self.copies)
            before = np.repeat(np.cumsum(counts) - counts, counts)
            copies = 1 + (np.arange(end - begin) - before) % (MAX_COPIES // 2)
            keys[begin:end] = pack(epoch, copies, np.repeat(selected, counts))
        return end

    def _drawn(self, epoch: int, sizes: Floats, per_example: int) -> Keys:
        """Return how many rows each selected example gets.

        Drawn ones by systematic sampling. One uniform number shifts a comb of equal steps over the
        cumulated sizes; each example is hit by its share of the comb, rounded up or down, and its
        expected number is its share exactly.
        """
        k = len(sizes)
        if self.mode == "weight":
            return np.full(k, per_example, np.int64)
        total = per_example * k
        offset = np.random.default_rng(mix_seed(self.seed, epoch, _DRAWS, per_example)).random()
        edges: Keys = np.floor(np.cumsum(sizes) / sizes.sum() * total + offset).astype(np.int64)
        edges[-1] = total  # whatever rounding made of the last sum
        counts: Keys = np.diff(edges, prepend=0)
        return counts

    def _grouped(self, rows: Keys, num_rows: int, epoch: int, selected: Keys) -> Keys:
        """Return whole batches in which the rows of one example stand together.

        Groups (an example's original and copies, at most 1 + r rows) are dealt evenly to the
        batches; rows that stand alone fill them up.
        """
        assert self.batch_size is not None
        indices = unpack(rows)[2]
        at = np.searchsorted(selected, indices)
        is_grouped = selected[at % len(selected)] == indices
        is_grouped[num_rows:] = False
        alone, together = rows[~is_grouped], rows[is_grouped]
        owner = at[is_grouped]
        by_owner = np.argsort(owner, kind="stable")  # originals come before copies
        together, owner = together[by_owner], owner[by_owner]
        begins = np.searchsorted(owner, owner)
        turn = (np.arange(len(owner)) - begins) // self._rows_per_group
        new = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(turn, prepend=0))
        group = np.cumsum(np.bincount(new, minlength=len(owner))) - 1
        num_groups, num_batches = len(new), len(rows) // self.batch_size
        rank = np.arange(num_groups)
        if self.shuffle:
            rng = np.random.default_rng(mix_seed(self.seed, epoch, _GROUPS))
            rank = rng.permutation(num_groups)
            rng.shuffle(alone)
        batch = rank % num_batches
        # Within a batch one group after another, by rank; singles take what is left, in order.
        order = np.lexsort((rank[group], batch[group]))
        batch_of_row = batch[group][order]
        within = np.arange(len(order)) - np.searchsorted(batch_of_row, batch_of_row)
        slots = batch_of_row * self.batch_size + within
        keys = np.empty(len(rows), np.int64)
        keys[slots] = together[order]
        is_free = np.ones(len(rows), bool)
        is_free[slots] = False
        keys[is_free] = alone
        return keys
