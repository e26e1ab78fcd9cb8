"""The order of originals that a sampler of the user's own draws, as a function of (seed, epoch)."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Sized
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from augsubset.utils.rng import MAX_SEED, forked_rng, mix_seed

__all__ = ["DrawnOrder", "ShardedSampler"]

_ORDER = 5  # random stream, beside those of the plan
_TRIED = 8
_REPEATED = " Replace repeated augmentation by copies=, and a grouped order by layout='grouped'."

# Generators that a sampler may hold, and how to make one of that kind from a seed.
_GENERATORS: tuple[tuple[type, Callable[[Any, int], Any]], ...] = (
    (torch.Generator, lambda held, seed: torch.Generator(held.device).manual_seed(seed)),
    (np.random.Generator, lambda held, seed: np.random.default_rng(seed)),
    (np.random.RandomState, lambda held, seed: np.random.RandomState(seed & 0xFFFFFFFF)),
    (random.Random, lambda held, seed: random.Random(seed)),
)


class ShardedSampler(Sampler[int]):
    """Mark a sampler of the user's own as one whose order several ranks share.

    Args:
        sampler: It draws the order of all ranks, and is the same on each.
        num_replicas: Ranks that share it.
        rank: This one.
        drop_last: Whether an uneven tail is dropped.
        seed: Of the run; the same on each rank.
    """

    def __init__(
        self, sampler: Sampler[int], num_replicas: int, rank: int, drop_last: bool, seed: int
    ) -> None:
        self.sampler = sampler
        self.shard = (num_replicas, rank, drop_last)
        self.seed = seed


class DrawnOrder:
    """Draw the indices of an epoch by a sampler, with every generator it may use seeded anew.

    Each draw is made by a shallow copy of the sampler, told the epoch by ``set_epoch`` if it has
    one: the user's sampler and all global generators are left as they were.

    Args:
        sampler: Any map-style sampler of indices with a length.
        num_examples: Of the dataset.

    Attributes:
        candidates: Indices that it drew in eight trial epochs, ascending: those that may be
            selected, since copies of anything else could train on what it leaves out.
        digest: Of the trial epochs, whatever the run's seed.

    Raises:
        TypeError: If the sampler has no length or yields anything but indices.
        ValueError: If it is sharded already, indices are out of range, epochs differ in length or
            a draw cannot be repeated.

    Cost:
        Construction draws nine epochs.
    """

    def __init__(self, sampler: Sampler[int], num_examples: int) -> None:
        self._sampler, self._num_examples = sampler, num_examples
        name = type(sampler).__name__
        if getattr(sampler, "num_replicas", 1) != 1:
            raise ValueError(
                f"loader must not have a sampler that shares its order among ranks, got {name}. "
                "Pass the sampler that it draws from, or a DistributedSampler: the loader shares "
                f"the order itself.{_REPEATED}"
            )
        if not isinstance(sampler, Sized):
            raise TypeError(f"a sampler must have a length, got {name} without __len__.")
        first = self.draw(0, 0)
        if not np.array_equal(first, self.draw(0, 0)):
            raise ValueError(
                f"{name} must draw the same order twice from the same seed, or a run could not be "
                "resumed. Let it draw from the global generator of torch, numpy or random, or from "
                "a generator among its attributes."
            )
        sha, seen = hashlib.sha256(first.tobytes()), np.unique(first)
        for epoch in range(1, _TRIED):
            drawn = self.draw(0, epoch)
            sha.update(drawn.tobytes())
            seen = np.union1d(seen, drawn)
        self.candidates: Tensor = torch.from_numpy(seen)
        self.digest = sha.hexdigest()

    def __len__(self) -> int:
        """Return the number of indices that an epoch draws."""
        return len(self._sampler)  # type: ignore[arg-type]

    def draw(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return the indices of an epoch in order, ``(len(self),)``."""
        mixed = mix_seed(seed & MAX_SEED, epoch, _ORDER)
        sampler, name = copy.copy(self._sampler), type(self._sampler).__name__
        for attribute, held in vars(sampler).items():
            for kind, remake in _GENERATORS:
                if isinstance(held, kind):
                    setattr(sampler, attribute, remake(held, mixed))
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(epoch)
        with forked_rng(mixed):
            indices = np.asarray(list(islice(iter(sampler), len(self) + 1)))
        if indices.dtype.kind not in "iu" or indices.ndim != 1:
            raise TypeError(
                f"a sampler must yield at least one index, and indices only, got {indices.dtype} "
                f"of shape {indices.shape} from {name}.{_REPEATED}"
            )
        if len(indices) != len(self):
            more = "more" if len(indices) > len(self) else len(indices)
            raise ValueError(
                f"a sampler must yield as many indices as its length says, got {more} for "
                f"{len(self)} from {name}, epoch {epoch}: the length of an epoch is fixed."
            )
        if indices.min() < 0 or indices.max() >= self._num_examples:
            raise ValueError(
                f"a sampler's indices must be in [0, {self._num_examples - 1}], got "
                f"{indices.min()} to {indices.max()} from {name}."
            )
        return indices.astype(np.int64)
