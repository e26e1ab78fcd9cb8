"""Which rows an epoch has, in what order, and what each one weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from augsubset.errors import AugsubsetError, check_choice, check_int
from augsubset.rng import MAX_SEED, mix_seed
from augsubset.sampling.dataset import SubsetAugmentDataset, check_map_style
from augsubset.sampling.keys import MAX_COPIES, MAX_EPOCHS, PADDING, pack, unpack

__all__ = ["WeightedCoresetSampler"]

Raw = Literal["all", "unselected", "selected", "none"]
_RAW_MODES = ("all", "unselected", "selected", "none")
_EPOCHS_REMEMBERED = 64


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
    a larger one refused.

    Args:
        dataset: The user's dataset, or it wrapped in :class:`SubsetAugmentDataset`; only its
            length counts. The DataLoader's own dataset must be the wrapped one: keys are no
            indices. Call :meth:`set_epoch` before each pass, or all are the same epoch.
        selection: A :class:`~augsubset.Selection` to begin with.
        budget: Selected examples that an epoch has room for; the selection's size if ``None``.
        copies: Augmented copies of each selected example, r.
        raw: Which originals take part.
        mode: ``"weight"``: each row once, weighted.
        shuffle: Whether the rows are permuted afresh each epoch.
        seed: Distinguishes runs.
        num_replicas: Only one so far.
        rank: Likewise.
        drop_last: Only ``False`` so far; the DataLoader's own ``drop_last`` is another matter.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If a value is out of range, or neither selection nor budget is given.

    Cost:
        O(n + r k) time and 8 bytes a row when an epoch starts; 16 bytes a selected example for
        each of the last 64 epochs.
    """

    def __init__(
        self,
        dataset: Any,
        selection: Any | None = None,
        *,
        budget: int | None = None,
        copies: int = 1,
        raw: Raw = "all",
        mode: Literal["weight"] = "weight",
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        check_choice("raw", raw, _RAW_MODES)
        check_choice("mode", mode, ("weight",))
        check_choice("num_replicas", num_replicas, (None, 1), "Sharding is not implemented.")
        check_choice("rank", rank, (None, 0), "Sharding is not implemented.")
        check_choice("drop_last", drop_last, (False,), "Sharding is not implemented.")
        copies = check_int("copies", copies, 1, MAX_COPIES)
        if isinstance(dataset, SubsetAugmentDataset):
            self._num_examples = len(dataset)
        else:
            self._num_examples = check_map_style(dataset)
        if budget is None:
            if selection is None:
                raise ValueError(
                    "budget must be given when there is no selection yet, got budget=None. "
                    "The length of an epoch follows from it."
                )
            budget = len(selection.indices)
        self.budget = check_int("budget", budget, 1, self._num_examples)
        self.copies = copies
        self.raw = raw
        self.shuffle = shuffle
        self.seed = check_int("seed", seed, 0, MAX_SEED)
        self._epoch = 0
        self._selection: Any | None = None
        self._started: dict[int, _EpochWeights] = {}
        if selection is not None:
            self.set_selection(selection)

    def __len__(self) -> int:
        """Return how many keys an epoch yields, padding included: the same every epoch."""
        n, k, r = self._num_examples, self.budget, self.copies
        lengths = {"all": n + r * k, "unselected": n + (r - 1) * k, "selected": k + r * k}
        return lengths.get(self.raw, r * k)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is: 0..8191."""
        self._epoch = check_int("epoch", epoch, 0, MAX_EPOCHS - 1)

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
        if len(selection.clusters) != self._num_examples or top >= self._num_examples:
            raise ValueError(
                f"selection must be of this dataset of {self._num_examples} examples, got one of "
                f"{len(selection.clusters)} rows and indices up to {top}."
            )
        self._selection = selection

    def __iter__(self) -> Iterator[int]:
        """Start the epoch: its selection is the one set now, whatever is set while it runs."""
        if self._selection is None:
            raise AugsubsetError("no selection is set. Call set_selection before iterating.")
        epoch = self._epoch
        keys = self._rows(epoch)
        self._start(epoch, len(keys))
        padding = len(self) - len(keys)
        if padding:
            filler = np.arange(padding, dtype=np.int64) % self._num_examples
            keys = np.concatenate([keys, pack(epoch, PADDING, filler)])
        if self.shuffle:
            keys = keys[np.random.default_rng(mix_seed(self.seed, epoch)).permutation(len(keys))]
        return iter(keys.tolist())

    def _rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the epoch's keys unpadded: originals by index, then copies 1..r by index."""
        assert self._selection is not None
        selected = np.sort(self._selection.indices.numpy())
        everything = np.arange(self._num_examples, dtype=np.int64)
        if self.raw == "all":
            originals = everything
        elif self.raw == "unselected":
            originals = np.delete(everything, selected)
        elif self.raw == "selected":
            originals = selected
        else:
            originals = everything[:0]
        copies = np.repeat(np.arange(1, self.copies + 1), len(selected))
        return np.concatenate(
            [pack(epoch, 0, originals), pack(epoch, copies, np.tile(selected, self.copies))]
        )

    def _start(self, epoch: int, num_rows: int) -> None:
        """Remember how to weigh the epoch's rows, and forget the oldest epoch beyond the limit."""
        assert self._selection is not None
        order = np.argsort(self._selection.indices.numpy())
        indices = self._selection.indices.numpy()[order]
        sizes = self._selection.weights.numpy()[order]
        of_copies = float(sizes.sum())
        n = self._num_examples
        of_originals = {"all": n, "unselected": n - len(sizes), "selected": of_copies, "none": 0}
        mean = (of_originals[self.raw] + of_copies) / num_rows
        self._started.pop(epoch, None)
        self._started[epoch] = _EpochWeights(indices, sizes, mean)
        while len(self._started) > _EPOCHS_REMEMBERED:
            del self._started[next(iter(self._started))]

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
        for epoch in np.unique(epochs):
            at = self._of(int(epoch))
            counted = (epochs == epoch) & (copies != PADDING)
            if self.raw != "selected":
                counted &= copies > 0
            seats = np.searchsorted(at.indices, indices[counted])
            if not np.array_equal(at.indices[seats % len(at.indices)], indices[counted]):
                raise AugsubsetError(f"keys hold rows that epoch {epoch} did not select.")
            weights[counted] = at.cluster_sizes[seats]
        weights[copies > 0] /= self.copies
        weights[copies == PADDING] = 0.0
        return weights

    def _of(self, epoch: int) -> _EpochWeights:
        if epoch not in self._started:
            raise AugsubsetError(
                f"epoch {epoch} was not started by this sampler, or more than "
                f"{_EPOCHS_REMEMBERED} epochs ago: its weights are not known."
            )
        return self._started[epoch]
