"""Which rows an epoch has on this rank, and what each one weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from augsubset.sampling.dataset import SubsetAugmentDataset, check_map_style
from augsubset.sampling.keys import MAX_COPIES, MAX_EPOCHS, PADDING, unpack
from augsubset.sampling.plan import EpochPlan, Layout, Mode, Raw
from augsubset.utils.checks import AugsubsetError, check_choice, check_int, check_state
from augsubset.utils.rng import MAX_SEED

__all__ = ["WeightedCoresetSampler"]

_RAW_MODES = ("all", "unselected", "selected", "none")
_EPOCHS_REMEMBERED = 64
_YIELDED_AT_ONCE = 1 << 14  # Python ints take four times the memory of the keys


@dataclass(frozen=True, eq=False)
class _EpochWeights:
    """What one started epoch needs to weigh its rows, long after the sampler moved on."""

    indices: npt.NDArray[np.int64]  # selected, ascending
    cluster_sizes: npt.NDArray[np.float64]  # of those
    mean: float  # over the epoch's rows, padding left out


class WeightedCoresetSampler(Sampler[int]):
    """Yield the keys of an epoch: originals as ``raw`` says, and r copies of each selected example.

    The weights are factors of the loss, not sampling probabilities as in torch's
    ``WeightedRandomSampler``: every row is yielded once, and :meth:`weights_for` says what it
    weighs. With k selected of n:

    ============ ======================================== ================== ===============
    raw          originals                                length             originals weigh
    ============ ======================================== ================== ===============
    "all"        all                                      n + r k            1
    "unselected" those not selected: copies replace them  n + (r - 1) k      1
    "selected"   the selected ones                        k + r k            cluster size
    "none"       none                                     r k                --
    ============ ======================================== ================== ===============

    A copy weighs cluster size / r. The order is a function of (seed, epoch, selection) alone, and
    the length is fixed: a later selection with fewer examples is padded with rows of weight zero,
    a larger one refused. On several ranks, each yields its share of that one order.

    For losses without a per-example form ``mode="sample"`` draws instead of weighing: r k copies,
    each of an example drawn with probability cluster size / n, a repeated draw being another copy;
    with ``raw="selected"`` also k originals. All weights are 1, and there is no padding: further
    draws fill up. With ``raw="none"`` the expected gradient is proportional to the weighted one.
    With ``raw="all"`` rows count, so n L_raw + r k L_copies is optimised in expectation, where
    weights make both count the same.

    Args:
        dataset: The user's dataset, or it wrapped in :class:`SubsetAugmentDataset`; only its
            length counts. The DataLoader's own dataset must be the wrapped one: keys are no
            indices. Call :meth:`set_epoch` before each pass, or all are the same epoch.
        selection: A :class:`~augsubset.Selection` to begin with.
        budget: Selected examples that an epoch has room for; the selection's size if ``None``.
        copies: Augmented copies of each selected example, r.
        raw: Which originals take part.
        mode: ``"weight"``: each row once, weighted. ``"sample"``: see above.
        shuffle: Whether the rows are permuted afresh each epoch.
        seed: Distinguishes runs.
        num_replicas: Ranks that share the order; 1 if ``None``: a framework that shards the
            DataLoader by itself does not shard twice.
        rank: This one.
        drop_last: Whether the order's tail is dropped, instead of padded with rows of weight
            zero, to make it divide evenly; the DataLoader's own ``drop_last`` is another matter.
        layout: ``"mixed"``: any order. ``"grouped"``: an example's original and copies in one
            batch, where its item is fetched a single time; the epoch is padded to whole batches.
        batch_size: The DataLoader's, for ``layout="grouped"``.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If a value is out of range, or neither selection nor budget is given.

    Cost:
        Starting an epoch of m rows takes O(m) time and 16 bytes a row; ``state_dict`` is O(1).

    Reference:
        Liu & Mirzasoleiman, 2022 (arXiv:2210.08363), algorithm 1; systematic sampling: Madow, 1949.
    """

    def __init__(
        self,
        dataset: Any,
        selection: Any | None = None,
        *,
        budget: int | None = None,
        copies: int = 1,
        raw: Raw = "all",
        mode: Mode = "weight",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        layout: Layout = "mixed",
        batch_size: int | None = None,
    ) -> None:
        check_choice("raw", raw, _RAW_MODES)
        check_choice("mode", mode, ("weight", "sample"))
        check_choice("layout", layout, ("mixed", "grouped"))
        check_choice("shuffle", shuffle, (True, False))
        check_choice("drop_last", drop_last, (False, True))
        copies = check_int("copies", copies, 1, MAX_COPIES)
        if isinstance(dataset, SubsetAugmentDataset):
            num_examples = len(dataset)
        else:
            num_examples = check_map_style(dataset)
        if budget is None:
            if selection is None:
                raise ValueError(
                    "budget must be given when there is no selection yet, got budget=None. "
                    "The length of an epoch follows from it."
                )
            budget = len(selection.indices)
        if layout == "mixed":
            batch_size = None  # no order depends on it
        elif batch_size is None or check_int("batch_size", batch_size, 1) < 1 + copies:
            raise ValueError(
                f"batch_size must have room for an example and its copies, {1 + copies} rows, in "
                f'layout="grouped", got batch_size={batch_size}.'
            )
        if (num_replicas is None) != (rank is None):
            raise ValueError(
                f"num_replicas and rank must both be given or neither, got "
                f"num_replicas={num_replicas}, rank={rank}."
            )
        self.num_replicas = check_int(
            "num_replicas", 1 if num_replicas is None else num_replicas, 1
        )
        self.rank = check_int("rank", 0 if rank is None else rank, 0, self.num_replicas - 1)
        self.drop_last = drop_last
        self.plan = EpochPlan(
            num_examples=num_examples,
            budget=check_int("budget", budget, 1, num_examples),
            copies=copies,
            raw=raw,
            mode=mode,
            layout=layout,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=check_int("seed", seed, 0, MAX_SEED),
        )
        if drop_last and len(self.plan) < self._unit * self.num_replicas:
            raise ValueError(
                f"drop_last must leave at least one row a rank, got {len(self.plan)} rows for "
                f"{self.num_replicas} ranks."
            )
        self._epoch = 0
        self._progress: tuple[int, int, Iterator[int]] = (0, 0, iter(()))
        self._resumes = False
        self._selection: Any | None = None
        self._started: dict[int, _EpochWeights] = {}
        if selection is not None:
            self.set_selection(selection)

    @property
    def budget(self) -> int:
        """Selected examples that an epoch has room for."""
        return self.plan.budget

    @property
    def _unit(self) -> int:
        """Consecutive rows of the order that stay on one rank: a batch, where it is a unit."""
        return self.plan.batch_size or 1

    def rows_left(self, begin: int) -> int:
        """Return how many keys of an epoch each rank yields from a position on.

        A run that goes on with another number of ranks may end unevenly, as an epoch may: what is
        missing is filled up, or with ``drop_last`` what is over is dropped.
        """
        left = max(0, len(self.plan) - begin)
        step = self._unit * self.num_replicas
        return (left // step if self.drop_last else -(-left // step)) * self._unit

    def __len__(self) -> int:
        """Return how many keys an epoch yields on this rank: the same every epoch.

        Only the first epoch after :meth:`load_state_dict` is shorter.
        """
        return self.rows_left(0)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is: 0..8191; it begins at the beginning.

        Said of the very epoch that :meth:`load_state_dict` was in, as loops do, nothing changes.
        """
        epoch = check_int("epoch", epoch, 0, MAX_EPOCHS - 1)
        if epoch != self._epoch:
            self._resumes = False
        self._epoch = epoch

    def set_selection(self, selection: Any) -> None:
        """Take a selection, from the next epoch that starts.

        Raises:
            TypeError: If it is no selection.
            ValueError: If it is larger than the budget or made for another dataset.
        """
        for name in ("indices", "weights", "clusters"):
            if not isinstance(getattr(selection, name, None), Tensor):
                raise TypeError(f"selection must be a Selection, got {type(selection).__name__}.")
        k = len(selection.indices)
        if k > self.budget:
            raise ValueError(
                f"selection must hold at most budget={self.budget} examples, got {k}. "
                "The length of an epoch is fixed; construct the sampler with a larger budget."
            )
        top = int(selection.indices.max())
        n = self.plan.num_examples
        if len(selection.clusters) != n or top >= n:
            raise ValueError(
                f"selection must be of this dataset of {n} examples, got one of "
                f"{len(selection.clusters)} rows and indices up to {top}."
            )
        self._selection = selection

    def __iter__(self) -> Iterator[int]:
        """Start the epoch: its selection is the one set now, whatever is set while it runs."""
        if self._selection is None:
            raise AugsubsetError("no selection is set. Call set_selection before iterating.")
        epoch = self._epoch
        begin = self._position if self._resumes else 0
        self._resumes = False
        self._progress = (begin, 0, iter(()))
        return self._yielded(self._mine(self._started_keys(epoch), begin, self.rank), begin)

    def _started_keys(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the keys of the one order, and remember how to weigh them."""
        at = self._start(epoch)
        return self.plan.keys(epoch, at.indices, at.cluster_sizes)

    def _mine(self, keys: npt.NDArray[np.int64], begin: int, rank: int) -> npt.NDArray[np.int64]:
        """Return a rank's share of what comes from a position on: every num_replicas-th unit."""
        rest = keys[begin:]
        count = self.rows_left(begin) * self.num_replicas
        if count > len(rest):
            at = self._of(self._epoch)
            first = len(keys) - self.plan.num_rows(len(at.indices))  # after the order's own
            fillers = self.plan.fillers(
                self._epoch, at.indices, at.cluster_sizes, first, count - len(rest)
            )
            rest = np.concatenate([rest, fillers])
        units = rest[:count].reshape(-1, self.num_replicas, self._unit)
        return units[:, rank].reshape(-1)

    def first_keys(self, begin: int, count: int) -> list[list[int]]:
        """Return the first keys of each rank's share of the epoch from a position on."""
        keys = self._started_keys(self._epoch)
        return [self._mine(keys, begin, rank)[:count].tolist() for rank in range(self.num_replicas)]

    def _yielded(self, keys: npt.NDArray[np.int64], begin: int) -> Iterator[int]:
        """Yield keys at the speed of a list; where it stands is read off when somebody asks."""
        for start in range(0, len(keys), _YIELDED_AT_ONCE):
            chunk = keys[start : start + _YIELDED_AT_ONCE].tolist()
            rest = iter(chunk)
            self._progress = (begin, start + len(chunk), rest)
            yield from rest

    def _start(self, epoch: int) -> _EpochWeights:
        """Remember how to weigh the epoch's rows, and forget the oldest epoch beyond the limit."""
        assert self._selection is not None
        order = np.argsort(self._selection.indices.numpy())
        indices = self._selection.indices.numpy()[order]
        sizes = self._selection.weights.numpy()[order]
        mean = 1.0
        if self.plan.mode == "weight":
            of_copies = float(sizes.sum())
            n = self.plan.num_examples
            of_originals = {
                "all": n,
                "unselected": n - len(sizes),
                "selected": of_copies,
                "none": 0,
            }
            mean = (of_originals[self.plan.raw] + of_copies) / self.plan.num_rows(len(sizes))
        self._started.pop(epoch, None)
        self._started[epoch] = _EpochWeights(indices, sizes, mean)
        while len(self._started) > _EPOCHS_REMEMBERED:
            del self._started[next(iter(self._started))]
        return self._started[epoch]

    @property
    def _position(self) -> int:
        """Keys handed out over all ranks: whole units, times the ranks."""
        begin, end, rest = self._progress
        handed_out = end - length_hint(rest)
        return begin + handed_out // self._unit * self._unit * self.num_replicas

    def mean_weight(self, epoch: int) -> float:
        """Return the mean weight of a started epoch's rows, padding left out."""
        return self._of(epoch).mean

    def weights_for(self, keys: Tensor) -> Tensor:
        """Return what each row weighs, by the selection of the epoch in its key.

        Args:
            keys: int64 keys of started epochs; mixed epochs are fine.

        Returns:
            float32, zero for padding. Unscaled: 1 or the cluster size for an original, cluster
            size / r for a copy.

        Raises:
            TypeError: If the keys are not int64.
            AugsubsetError: If a key's epoch was not started here, or more than 64 epochs ago.

        Shape:
            keys ``(B,)``; returns ``(B,)``.
        """
        if keys.dtype != torch.int64:
            raise TypeError(f"keys must be int64, got {keys.dtype}.")
        return torch.from_numpy(self._weigh(keys.numpy()).astype(np.float32))

    def _weigh(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        epochs, copies, indices = unpack(keys)
        weights = np.ones(len(keys))
        selected = copies != PADDING
        if self.plan.raw != "selected" or self.plan.mode == "sample":
            selected &= copies > 0
        for epoch in dict.fromkeys(epochs.tolist()):
            at = self._of(epoch)
            counted = selected & (epochs == epoch)
            if not counted.any():
                continue
            seats = np.searchsorted(at.indices, indices[counted])
            if not np.array_equal(at.indices[seats % len(at.indices)], indices[counted]):
                raise AugsubsetError(f"keys hold rows that epoch {epoch} did not select.")
            if self.plan.mode == "weight":
                weights[counted] = at.cluster_sizes[seats]
        if self.plan.mode == "weight":
            weights[copies > 0] /= self.plan.copies
        weights[copies == PADDING] = 0.0
        return weights

    def _of(self, epoch: int) -> _EpochWeights:
        if epoch not in self._started:
            raise AugsubsetError(
                f"epoch {epoch} was not started by this sampler, or more than "
                f"{_EPOCHS_REMEMBERED} epochs ago: its weights are not known."
            )
        return self._started[epoch]

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands, in O(1) and with a few numbers.

        The position counts keys of the order handed out over all ranks, which runs ahead of
        training where somebody prefetches: a stateful loader keeps the state that belongs to each
        batch. The selection is not in it but by its digest: save it once, when it is made.
        """
        position = self._position
        return {
            **self.identity,
            "epoch": self._epoch,
            "position": position if self.rows_left(position) else len(self.plan),
            "num_replicas": self.num_replicas,
            "selection": None if self._selection is None else self._selection.digest,
        }

    def checked(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Return the epoch and position that a state stands at, if an iteration can stand there.

        One at the order's end or beyond says that the epoch is consumed, filled up for some number
        of ranks.

        Raises:
            TypeError: If a number is no integer.
            ValueError: If one is missing or out of range, or the position is inside a unit.
        """
        check_state("state_dict", state, ("epoch", "position", "num_replicas"))
        epoch = check_int("epoch", state["epoch"], 0, MAX_EPOCHS - 1)
        num_replicas = check_int("num_replicas", state["num_replicas"], 1)
        # Filled up for those ranks, or for others before them, of which each had a unit.
        end = len(self.plan) + max(len(self.plan), self._unit * num_replicas)
        position = check_int("position", state["position"], 0, end)
        if position % self._unit:
            raise ValueError(f"position must be a whole number of batches, got {position} keys.")
        return {"epoch": epoch, "position": position, "num_replicas": num_replicas}

    @property
    def share(self) -> dict[str, int]:
        """Return which share of the order is handed out."""
        return {"rank": self.rank, "num_replicas": self.num_replicas}

    @property
    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a position to mean the same."""
        plan = self.plan
        return {
            name: getattr(plan, name)
            for name in (
                "num_examples",
                "budget",
                "copies",
                "raw",
                "mode",
                "layout",
                "batch_size",
                "shuffle",
                "seed",
            )
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, on any number of ranks: the next iteration yields what was left.

        Raises:
            ValueError: If it is the state of another sampler, or made with another selection than
                the one that is set. Nothing is changed then.
        """
        check_state("state_dict", state, (*self.identity, "selection"))
        check_state("state_dict", state, (), same=self.identity)
        at = self.checked(state)
        current = None if self._selection is None else self._selection.digest
        if at["position"] and state["selection"] != current:
            raise ValueError(
                "selection must be the one that the state was made with, got digest "
                f"{current} for {state['selection']}. Call set_selection with it first."
            )
        self._epoch, self._resumes = at["epoch"], True
        self._progress = (at["position"], 0, iter(()))
