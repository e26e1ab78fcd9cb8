"""The rules: what an epoch's subset is, behind one protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from augsubset.selection.budget import sainte_lague_seats
from augsubset.selection.coreset import class_members, select_coreset
from augsubset.selection.distributed import select_coreset_distributed
from augsubset.selection.facility_location import Similarity
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.solver import Method, Options
from augsubset.utils.checks import check_choice, check_number
from augsubset.utils.rng import mix_seed

__all__ = ["CoresetSelector", "MaxLossSelector", "RandomSelector", "Selector"]


@runtime_checkable
class Selector(Protocol):
    """What a selection rule must offer; yours may be any object that does.

    Attributes:
        needs_gradients: Whether a probe runs before :meth:`select`. If not, the gradients that
            arrive are placeholders with n rows and no columns.
    """

    @property
    def needs_gradients(self) -> bool:
        """Whether the model is probed first."""

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return a selection of at most ``budget`` examples, a function of the arguments alone."""


class CoresetSelector:
    """The paper's selector: facility location per class, on last-layer gradients.

    Args:
        max_weight: Caps each cluster size at this multiple of their mean; ``None``: no cap. It
            matters only where weights do: ``weights="cluster"``, ``"unscaled"``, ``"resample"``.
        similarity: This and the following as in :func:`select_coreset`.
        method: Maximiser.
        device: Where distances are computed.
        max_memory: Bytes that a selection may use beside its input.
        epsilon: Of ``method="stochastic"``.
        part_size: Of ``method="partitioned"``.
        progress: Whether to show a bar.

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
        Options(**self._options, device=torch.device("cpu" if device is None else device))
        self._options["device"] = device

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the weighted coreset, with its certificate."""
        found = select_coreset(gradients, budget=budget, seed=seed, **self._options)
        return self._finish(found, epoch)

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
        """Return the same coreset on every rank, each of which probes a shard and solves a share.

        Rules without this method get all ranks' gradients on every rank.
        """
        options = {name: value for name, value in self._options.items() if name != "progress"}
        found = select_coreset_distributed(
            gradients, budget=budget, seed=seed, group=group, timeout=timeout, **options
        )
        return self._finish(found, epoch)

    def _finish(self, selection: Selection, epoch: int) -> Selection:
        """Return the selection with its epoch, and weights capped where there is a cap."""
        selection = replace(selection, epoch=epoch)
        return selection if self.max_weight is None else selection.capped(self.max_weight)


class RandomSelector:
    """A uniform subset without replacement, drawn anew for each (seed, epoch): the control."""

    needs_gradients = False

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return ``budget`` examples that weigh n / budget each."""
        rng = np.random.default_rng(mix_seed(seed, epoch))
        chosen = rng.permutation(len(gradients))[: _checked(budget, gradients)]
        return _equal(gradients, torch.from_numpy(chosen), epoch)


class MaxLossSelector:
    """The examples of highest loss (after Kuchnik & Smith, 2019), the lowest index among equals.

    Args:
        scope: ``"global"`` ranks all examples together, ``"class"`` within each class under
            Sainte-Lague budgets. The paper does not say which it used.
    """

    needs_gradients = True

    def __init__(self, scope: Literal["global", "class"] = "global") -> None:
        check_choice("scope", scope, ("global", "class"))
        self._scope = scope

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the ``budget`` hardest examples, which weigh n / budget each."""
        losses, indices = gradients.losses.numpy(), gradients.indices.numpy()
        ranked = np.lexsort((indices, -losses))
        if self._scope == "global":
            chosen = ranked[: _checked(budget, gradients)]
        else:
            _, members = class_members(gradients)
            seats = sainte_lague_seats(np.array([len(m) for m in members]), budget)
            chosen = np.empty(budget, np.int64)
            for c, positions in enumerate(members):
                hardest = positions[np.argsort(-losses[positions], kind="stable")]
                chosen[seats == c] = hardest[: int((seats == c).sum())]
        return _equal(gradients, torch.from_numpy(chosen), epoch)


def _checked(budget: int, gradients: LastLayerGradients) -> int:
    if not 1 <= budget <= len(gradients):
        raise ValueError(
            f"budget must be between 1 and the ground-set size {len(gradients)}, "
            f"got budget={budget}."
        )
    return budget


def _equal(gradients: LastLayerGradients, positions: Tensor, epoch: int) -> Selection:
    indices = gradients.indices[positions]
    return Selection.equally_weighted(indices, len(gradients), epoch=epoch)
