"""Selectors: strategies for choosing the subset of an epoch, behind one protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from augsubset.selection.budget import sainte_lague_order
from augsubset.selection.coreset import select_coreset
from augsubset.selection.distributed import select_coreset_distributed
from augsubset.selection.facility_location import Similarity
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.solver import Method, Options
from augsubset.utils.checks import check_choice, check_number
from augsubset.utils.rng import mix_seed

__all__ = ["CoresetSelector", "MaxLossSelector", "RandomSelector", "Selector"]

Int64Array = npt.NDArray[np.int64]


@runtime_checkable
class Selector(Protocol):
    """Interface of a selector; any object with these two attributes is one.

    Attributes:
        needs_gradients: Whether the model is probed before :meth:`select`. If not, the gradients
            passed are placeholders with n rows, their labels and no columns. If an attribute
            ``needs_labels`` is False, labels that the dataset does not expose are not read.
    """

    @property
    def needs_gradients(self) -> bool:
        """Whether the model is probed first."""

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return a selection of at most ``budget`` examples, a function of the arguments alone."""


class CoresetSelector:
    """The paper's selector: per-class facility location on last-layer gradients.

    Args:
        max_weight: Caps cluster sizes at this multiple of their mean; ``None``: no cap. Matters
            only if weights are used: ``weights="cluster"``, ``"unscaled"``, ``"resample"``.
        similarity: As in :func:`select_coreset`, like all of the following.
        method: Maximiser.
        device: Where to compute distances.
        max_memory: Limit on the memory for distances, in bytes.
        epsilon: For ``method="stochastic"``.
        part_size: For ``method="partitioned"``.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range or unknown.
    """

    needs_gradients = True

    def __init__(
        self,
        *,
        max_weight: float | None = None,
        similarity: Similarity = "shifted",
        method: Method = "auto",
        device: torch.device | str | None = None,
        max_memory: int | None = None,
        epsilon: float = 0.1,
        part_size: int = 8192,
        progress: bool = False,
    ) -> None:
        if max_weight is not None:
            check_number("max_weight", max_weight)
            if not 0 < max_weight < math.inf:
                raise ValueError(f"max_weight must be positive, got max_weight={max_weight}.")
        self.max_weight = max_weight
        self._options: dict[str, Any] = {
            "similarity": similarity,
            "method": method,
            "max_memory": max_memory,
            "epsilon": epsilon,
            "part_size": part_size,
            "progress": progress,
        }
        # Only to validate: errors should not wait for the first selection.
        Options(**self._options, device=torch.device("cpu" if device is None else device))
        self._options["device"] = device

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the weighted coreset, with its certificate."""
        found = select_coreset(gradients, budget=budget, seed=seed, **self._options)
        return self._finalize(found, epoch)

    def select_on_ranks(
        self,
        gradients: Callable[[], LastLayerGradients],
        *,
        budget: int,
        seed: int,
        epoch: int,
        group: Any,
        timeout: timedelta,
    ) -> Selection:
        """Return the same coreset on all ranks; each probes a shard and solves some classes.

        For selectors without this method, every rank gathers the gradients of all ranks.
        """
        options = {name: value for name, value in self._options.items() if name != "progress"}
        found = select_coreset_distributed(
            gradients, budget=budget, seed=seed, group=group, timeout=timeout, **options
        )
        return self._finalize(found, epoch)

    def _finalize(self, selection: Selection, epoch: int) -> Selection:
        """Set the epoch and apply ``max_weight``."""
        selection = replace(selection, epoch=epoch)
        return selection if self.max_weight is None else selection.capped(self.max_weight)


class RandomSelector:
    """The baseline: a uniform subset without replacement, drawn for each (seed, epoch).

    Args:
        stratified: Whether classes get Sainte-Lague budgets, at least one example each; if not, a
            small subset may leave a class out.
    """

    needs_gradients = False

    def __init__(self, *, stratified: bool = False) -> None:
        check_choice("stratified", stratified, (False, True))
        self.needs_labels = stratified  # else a dataset that does not show them is not read

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return ``budget`` examples with a weight of n / budget each."""
        rng = np.random.default_rng(mix_seed(seed, epoch))
        _check_budget(budget, gradients)
        ranked = rng.permutation(len(gradients))
        return _select_highest(gradients, ranked, budget, epoch, per_class=self.needs_labels)


class MaxLossSelector:
    """The examples with the highest loss (after Kuchnik & Smith, 2019); ties to the lowest index.

    Args:
        scope: ``"global"`` ranks all examples together, and may leave classes out; ``"class"``
            ranks within each class, with Sainte-Lague budgets, at least one example each. The paper
            does not say which one it used.
    """

    needs_gradients = True

    def __init__(self, scope: Literal["global", "class"] = "global") -> None:
        check_choice("scope", scope, ("global", "class"))
        self._scope = scope

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the ``budget`` examples of highest loss with a weight of n / budget each."""
        _check_budget(budget, gradients)
        ranked = np.lexsort((gradients.indices.numpy(), -gradients.losses.numpy()))
        return _select_highest(gradients, ranked, budget, epoch, per_class=self._scope == "class")


def _check_budget(budget: int, gradients: LastLayerGradients) -> None:
    if not 1 <= budget <= len(gradients):
        raise ValueError(
            f"budget must be between 1 and the ground-set size {len(gradients)}, "
            f"got budget={budget}."
        )


def _select_highest(
    gradients: LastLayerGradients, ranked: Int64Array, budget: int, epoch: int, *, per_class: bool
) -> Selection:
    """Select the first of these positions, of all or of each class, with equal weights."""
    chosen = ranked[:budget]
    if per_class:
        labels = gradients.labels.numpy()[ranked]
        _, sizes = np.unique(labels, return_counts=True)
        members = np.split(ranked[np.argsort(labels, kind="stable")], np.cumsum(sizes)[:-1])
        heads = [iter(positions) for positions in members]
        class_of = sainte_lague_order(sizes, budget)
        chosen = np.fromiter((next(heads[c]) for c in class_of), np.int64, budget)
    indices = gradients.indices[torch.from_numpy(chosen)]
    return Selection.equally_weighted(indices, len(gradients), epoch=epoch)
