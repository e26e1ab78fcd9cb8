"""Which rows an epoch has on this rank, and how much each one weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from operator import length_hint
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from augsubset.sampling.drawn import DrawnOrder
from augsubset.sampling.keys import MAX_COPIES, MAX_EPOCHS, PADDING, is_original, unpack
from augsubset.sampling.plan import EpochPlan, Layout, Originals, RowWeights
from augsubset.sampling.worker import SubsetAugmentDataset, check_map_style
from augsubset.utils.checks import AugsubsetError, check_choice, check_int, check_state
from augsubset.utils.rng import MAX_SEED

__all__ = ["WeightedCoresetSampler"]

_EPOCHS_REMEMBERED = 64
_CHUNK = 1 << 14  # keys turned into Python ints at once: these take four times the memory


@dataclass(frozen=True, eq=False)
class _ActiveSelection:
    """What an epoch needs of its selection, kept long after the sampler has moved on."""

    indices: npt.NDArray[np.int64]  # selected, ascending
    cluster_sizes: npt.NDArray[np.float64]
    mean_weight: float  # over the epoch's rows, padding not counted


class WeightedCoresetSampler(Sampler[int]):
    """Yield the keys of an epoch: originals, and r copies of each selected example.

    Weights multiply the loss; they are not sampling probabilities as in torch's
    ``WeightedRandomSampler``. Each row is yielded once, and :meth:`weights_for` returns its weight.
    With k selected of n examples and ``weights="cluster"``:

    ============ ======================================== ================== ===============
    originals    which take part                          length             originals weigh
    ============ ======================================== ================== ===============
    "all"        all                                      n + r k            1
    "unselected" those not selected: copies replace them  n + (r - 1) k      1
    "selected"   the selected ones                        k + r k            cluster size
    "none"       none                                     r k                --
    ============ ======================================== ================== ===============

    and each copy weighs cluster size / r. The order is a function of (seed, epoch, selection)
    alone, and the length is fixed. A selection smaller than the budget is filled up with rows of
    weight 0, a larger one raises. On several ranks each yields its share of that one order.

    With ``weights="uniform"`` the rows are the same but each weighs 1, and further copies of
    selected examples fill an epoch up: an epoch has no row of weight 0.

    ``weights="resample"`` is for losses that are not a mean over examples. All rows weigh 1, and
    copies are drawn: r k of them, each example in proportion to its cluster size, a repeated draw
    being another copy; with ``originals="selected"`` k originals are drawn as well. With
    ``originals="none"`` the expected gradient is proportional to the cluster-weighted one. With
    ``originals="all"`` every row counts once, so the objective is n L_originals + r k L_copies in
    expectation, whereas with cluster weights copies and originals count equally in total.

    Args:
        dataset: The user's dataset, plain or wrapped in :class:`SubsetAugmentDataset`; only its
            length is used. The DataLoader's own dataset must be the wrapped one, since keys are
            not indices. Call :meth:`set_epoch` before each pass, or every pass is the same epoch.
        selection: The first :class:`~augsubset.Selection`.
        budget: Largest number of selected examples; the first selection's size if ``None``.
        copies: Augmented copies of each selected example, r, up to 8191.
        originals: Which originals take part.
        weights: See above.
        shuffle: Whether the rows are permuted afresh each epoch.
        order: A :class:`~augsubset.sampling.drawn.DrawnOrder`, if a sampler of your own draws which
            originals an epoch has and their order; the copies are spread among them. For
            ``originals="all"`` and ``layout="mixed"``.
        seed: Distinguishes runs.
        num_replicas: Ranks that share the order; ``None``: 1, for frameworks that shard the
            DataLoader themselves.
        rank: This one.
        drop_last: Whether an uneven tail of the order is dropped instead of filled up. The
            DataLoader's own ``drop_last`` is independent of it.
        layout: ``"mixed"``: any order. ``"grouped"``: an example's original and copies in one
            batch, where its item is fetched once; the epoch is filled up to whole batches.
        batch_size: The DataLoader's, for ``layout="grouped"``.

    Attributes:
        selection: The selection that the next epoch will use, ``None`` before there is one.
        active: The selection of the epoch that was started or resumed last.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If a value is out of range, or neither selection nor budget is given.

    Cost:
        Starting an epoch of m rows takes O(m) time and 16 bytes per row; ``state_dict`` is O(1).

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
        originals: Originals = "all",
        weights: RowWeights = "cluster",
        shuffle: bool = True,
        order: DrawnOrder | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        layout: Layout = "mixed",
        batch_size: int | None = None,
    ) -> None:
        check_choice("originals", originals, ("all", "unselected", "selected", "none"))
        check_choice("weights", weights, ("cluster", "uniform", "resample"))
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
                    "The length of an epoch depends on it."
                )
            budget = len(selection.indices)
        if order is not None and (originals, layout) != ("all", "mixed"):
            raise ValueError(
                "originals must be 'all' and layout 'mixed' with a sampler of your own, which "
                f"decides the originals, got originals={originals!r}, layout={layout!r}. Pass "
                "shuffle=True instead, and a Subset of the dataset for fewer examples."
            )
        self._order = order
        if layout == "mixed":
            batch_size = None  # the order does not depend on it
        elif batch_size is None or check_int("batch_size", batch_size, 1) < 1 + copies:
            raise ValueError(
                f"batch_size must have room for an example and its copies, {1 + copies} rows, in "
                f'layout="grouped", got batch_size={batch_size}.'
            )
        self.plan = EpochPlan(
            num_examples=num_examples,
            budget=check_int("budget", budget, 1, num_examples),
            copies=copies,
            originals=originals,
            weights=weights,
            layout=layout,
            batch_size=batch_size,
            shuffle=shuffle and order is None,
            num_drawn=None if order is None else len(order),
            seed=check_int("seed", seed, 0, MAX_SEED),
        )
        if (num_replicas is None) != (rank is None):
            raise ValueError(
                "num_replicas and rank must both be given or neither, got "
                f"num_replicas={num_replicas}, rank={rank}."
            )
        self.num_replicas = check_int(
            "num_replicas", 1 if num_replicas is None else num_replicas, 1
        )
        self.rank = check_int("rank", 0 if rank is None else rank, 0, self.num_replicas - 1)
        self.drop_last = drop_last
        if drop_last and len(self.plan) < self._unit * self.num_replicas:
            raise ValueError(
                f"drop_last must leave at least one row per rank, got {len(self.plan)} rows for "
                f"{self.num_replicas} ranks."
            )
        self.selection: Any = None
        self.active: Any = None
        self._started: dict[int, _ActiveSelection] = {}
        self._epoch = 0
        self._begin = 0  # position at which the next iteration starts
        # Position at the start of the running iteration, keys handed to the generator's list
        # iterator, and that iterator, from which the rest is subtracted.
        self._progress: tuple[int, int, Iterator[int]] = (0, 0, iter(()))
        if selection is not None:
            self.set_selection(selection)

    @property
    def budget(self) -> int:
        """Largest number of selected examples."""
        return self.plan.budget

    @property
    def _unit(self) -> int:
        """Consecutive rows of the order that go to the same rank: a batch if grouped, else one."""
        return self.plan.batch_size or 1

    def rows_left(self, begin: int) -> int:
        """Return how many keys of an epoch each rank yields from a position on.

        On another number of ranks than before a resumed epoch may end unevenly. Then it is filled
        up like any other, or with ``drop_last`` cut off.
        """
        left = max(0, len(self.plan) - begin)
        step = self._unit * self.num_replicas
        return (left // step if self.drop_last else -(-left // step)) * self._unit

    def __len__(self) -> int:
        """Return how many keys an epoch yields on this rank: the same in every epoch.

        Only the first epoch after :meth:`load_state_dict` is shorter.
        """
        return self.rows_left(0)

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the next iteration is, 0..8191; it starts at the beginning.

        Has no effect if a loaded state is in the middle of that epoch, since loops set the epoch
        that they resume.
        """
        epoch = check_int("epoch", epoch, 0, MAX_EPOCHS - 1)
        if epoch != self._epoch:
            self.seek(epoch)

    def seek(self, epoch: int, position: int = 0) -> None:
        """Let the next iteration start at a position of an epoch.

        In the middle of an epoch it uses the selection that is set now, whatever is set before it
        starts; at the beginning the one that is set then.

        Args:
            epoch: 0..8191.
            position: Keys of the order handed out before, over all ranks.
        """
        self._epoch, self._begin = epoch, position
        self._progress = (position, 0, iter(()))
        if position:
            self.active = self.selection

    def set_seed(self, seed: int) -> None:
        """Set the seed of epochs that start from now on."""
        self.plan = replace(self.plan, seed=check_int("seed", seed, 0, MAX_SEED))

    def set_selection(self, selection: Any) -> None:
        """Set the selection for the next epoch that starts.

        Raises:
            TypeError: If it is not a selection.
            ValueError: If it is larger than the budget or was made for another dataset.
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
        largest = int(selection.indices.max())
        n = self.plan.num_examples
        if len(selection.clusters) != n or largest >= n:
            raise ValueError(
                f"selection must be of this dataset of {n} examples, got one of "
                f"{len(selection.clusters)} rows and indices up to {largest}. A selector must "
                "return gradients.indices of the rows that it chose."
            )
        self.selection = selection

    def __iter__(self) -> Iterator[int]:
        """Start the epoch with the selection that is set now; a later one is for the next."""
        if self.selection is None:
            raise AugsubsetError("no selection is set. Call set_selection before iterating.")
        epoch, begin = self._epoch, self._begin
        if not begin:
            self.active = self.selection
        keys = self._take_share(self._start_epoch(epoch), begin, self.rank)
        self._begin = 0
        self._progress = (begin, 0, iter(()))
        return self._iterate(keys, begin)

    def first_keys(self, begin: int, count: int) -> list[list[int]]:
        """Return the first keys of each rank's share of the epoch from a position on."""
        keys = self._start_epoch(self._epoch)
        return [
            self._take_share(keys, begin, rank)[:count].tolist()
            for rank in range(self.num_replicas)
        ]

    def _start_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the keys of the whole order, and remember what their weights depend on."""
        order = np.argsort(self.active.indices.numpy())
        indices = self.active.indices.numpy()[order]
        sizes = self.active.weights.numpy()[order]
        k, mean = len(sizes), 1.0
        if self.plan.weights == "cluster":
            copies_weigh = float(sizes.sum())
            originals_weigh = (
                copies_weigh
                if self.plan.originals == "selected"
                else float(self.plan.num_originals(k))
            )
            mean = (originals_weigh + copies_weigh) / self.plan.num_rows(k)
        self._started.pop(epoch, None)
        self._started[epoch] = _ActiveSelection(indices, sizes, mean)
        while len(self._started) > _EPOCHS_REMEMBERED:
            del self._started[next(iter(self._started))]
        drawn = None if self._order is None else self._order.draw(self.plan.seed, epoch)
        return self.plan.keys(epoch, indices, sizes, drawn)

    def _take_share(
        self, keys: npt.NDArray[np.int64], begin: int, rank: int
    ) -> npt.NDArray[np.int64]:
        """Return every num_replicas-th unit of the order from a position on."""
        rest = keys[begin:]
        count = self.rows_left(begin) * self.num_replicas
        if count > len(rest):
            active = self._find_epoch(self._epoch)
            # The order has used up the first fillers of the sequence.
            used = len(keys) - self.plan.num_rows(len(active.indices))
            fillers = self.plan.make_fillers(
                self._epoch, active.indices, active.cluster_sizes, used, count - len(rest)
            )
            rest = np.concatenate([rest, fillers])
        units = rest[:count].reshape(-1, self.num_replicas, self._unit)
        return units[:, rank].reshape(-1)

    def _iterate(self, keys: npt.NDArray[np.int64], begin: int) -> Iterator[int]:
        """Yield keys at the speed of a list; the position is computed only when it is asked for."""
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK].tolist()
            rest = iter(chunk)
            self._progress = (begin, start + len(chunk), rest)
            yield from rest

    @property
    def _position(self) -> int:
        """Keys handed out over all ranks: whole units, times the ranks."""
        begin, end, rest = self._progress
        handed_out = end - length_hint(rest)
        return begin + handed_out // self._unit * self._unit * self.num_replicas

    # Weights.

    def mean_weight(self, epoch: int) -> float:
        """Return the mean weight of a started epoch's rows, padding not counted."""
        return self._find_epoch(epoch).mean_weight

    def weights_for(self, keys: Tensor) -> Tensor:
        """Return the weight of each row, by the selection of the epoch in its key.

        Args:
            keys: int64 keys of started epochs; different epochs may be mixed.

        Returns:
            float32. With cluster weights: 1 or the cluster size for an original, cluster size / r
            for a copy, 0 for padding; otherwise 1.

        Raises:
            TypeError: If the keys are not int64.
            AugsubsetError: If a key's epoch was not started here, or more than 64 epochs ago.

        Shape:
            keys ``(B,)``; returns ``(B,)``.
        """
        if keys.dtype != torch.int64:
            raise TypeError(f"keys must be int64, got {keys.dtype}.")
        weights = self._compute_weights(keys.cpu().numpy()).astype(np.float32)
        return torch.from_numpy(weights).to(keys.device)

    def _compute_weights(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        epochs, copies, indices = unpack(keys)
        is_cluster = self.plan.weights == "cluster"
        weights = np.ones(len(keys))
        is_selected = copies != PADDING
        if self.plan.originals != "selected" or not is_cluster:
            is_selected &= ~is_original(copies)
        for epoch in dict.fromkeys(epochs.tolist()):
            active = self._find_epoch(epoch)
            rows = is_selected & (epochs == epoch)
            if not rows.any():
                continue
            places = np.searchsorted(active.indices, indices[rows])
            if not np.array_equal(active.indices[places % len(active.indices)], indices[rows]):
                raise AugsubsetError(f"keys hold rows that epoch {epoch} did not select.")
            if is_cluster:
                weights[rows] = active.cluster_sizes[places]
        if is_cluster:
            weights[~is_original(copies)] /= self.plan.copies
            weights[copies == PADDING] = 0.0
        return weights

    def _find_epoch(self, epoch: int) -> _ActiveSelection:
        if epoch not in self._started:
            raise AugsubsetError(
                f"epoch {epoch} was not started by this sampler, or more than "
                f"{_EPOCHS_REMEMBERED} epochs ago: its weights are not known."
            )
        return self._started[epoch]

    # Resuming.

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same rows."""
        order = None if self._order is None else self._order.digest
        plan = {field.name: getattr(self.plan, field.name) for field in fields(EpochPlan)}
        return {**plan, "order": order}

    @property
    def share(self) -> dict[str, int]:
        """Which share of the order this sampler yields."""
        return {"rank": self.rank, "num_replicas": self.num_replicas}

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the iteration: a few numbers, in O(1).

        The position counts keys of the order handed out over all ranks. It runs ahead of training
        where batches are prefetched: a stateful loader keeps the state that belongs to each batch.
        It holds only the digest of the selection; save the selection itself when it is made.
        """
        position = self._position
        selection = self.active if position else self.selection
        return {
            **self.identity,
            "epoch": self._epoch,
            "position": position if self.rows_left(position) else len(self.plan),
            "num_replicas": self.num_replicas,
            "selection": None if selection is None else selection.digest,
        }

    def check_position(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """Return the epoch and position of a saved state, or raise if they are impossible.

        A position at or beyond the end of the order means that the epoch is consumed; beyond,
        because it was filled up for some number of ranks.

        Raises:
            TypeError: If a number is not an integer.
            ValueError: If one is missing or out of range, or the position is inside a unit.
        """
        check_state("state_dict", state, ("epoch", "position", "num_replicas"))
        epoch = check_int("epoch", state["epoch"], 0, MAX_EPOCHS)  # the last: nothing is left
        num_replicas = check_int("num_replicas", state["num_replicas"], 1)
        # Filled up for those ranks, or for others before them that had one unit each.
        end = len(self.plan) + max(len(self.plan), self._unit * num_replicas)
        position = check_int("position", state["position"], 0, end)
        if position % self._unit:
            raise ValueError(f"position must be a whole number of batches, got {position} keys.")
        return epoch, position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state, on any number of ranks: the next iteration yields the rest.

        Raises:
            ValueError: If it is the state of another sampler, or made with another selection than
                the one that is set. Nothing is changed then.
        """
        check_state("state_dict", state, (*self.identity, "selection"))
        check_state("state_dict", state, (), same=self.identity)
        epoch, position = self.check_position(state)
        current = None if self.selection is None else self.selection.digest
        if position and state["selection"] != current:
            raise ValueError(
                "selection must be the one that the state was made with, got digest "
                f"{current} for {state['selection']}. Call set_selection with it first."
            )
        self.seek(epoch, position)
