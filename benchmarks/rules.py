"""Rules from elsewhere, and our own variations, behind the library's selector protocol.

Each is a small class with ``needs_gradients`` and ``select(gradients, *, budget, seed, epoch)``.
Some remember what they chose: those are of one run, and made anew for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import nnls

from augsubset import (
    CoresetSelector,
    LastLayerGradients,
    MaxLossSelector,
    RandomSelector,
    Selection,
    select_coreset,
)
from augsubset.selection.budget import sainte_lague_order
from augsubset.selection.coreset import group_by_class
from augsubset.utils.checks import check_choice, check_int
from augsubset.utils.rng import mix_seed
from benchmarks.dynamics import gradient_norms, norm_of_sum

__all__ = [
    "RULES",
    "AdaptiveBudget",
    "DriftTriggered",
    "GradientMatching",
    "InfoBatch",
    "MeanOne",
    "Rotating",
    "ScoreProportional",
    "Tempered",
    "make_rule",
]


def _weighted(
    gradients: LastLayerGradients, positions: np.ndarray, weights: np.ndarray, epoch: int
) -> Selection:
    """Return positions and weights as a selection without clusters."""
    chosen = Selection.equally_weighted(
        gradients.indices[torch.from_numpy(positions)], len(gradients), epoch=epoch
    )
    return replace(chosen, weights=torch.from_numpy(np.asarray(weights, np.float64)))


class ScoreProportional:
    """Examples drawn without replacement, in proportion to their loss.

    Reference:
        Kuchnik & Smith, *Efficient Augmentation via Data Subsampling*, 2019 (arXiv:1810.05222):
        its policies draw in proportion to a score; the loss is one of its scores.
    """

    needs_gradients = True

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return ``budget`` examples that weigh n / budget each."""
        rng = np.random.default_rng(mix_seed(seed, epoch))
        # The largest of log score + Gumbel noise are successive draws in proportion to the score.
        score = np.maximum(gradients.losses.double().numpy(), 1e-12)
        order = np.argsort(-(np.log(score) + rng.gumbel(size=len(score))), kind="stable")
        return Selection.equally_weighted(
            gradients.indices[torch.from_numpy(order[:budget])], len(gradients), epoch=epoch
        )


class InfoBatch:
    """All examples of high loss, and a random part of the others, which stands for all of these.

    InfoBatch prunes half of what is below the mean loss and weighs the rest of it double. Here the
    budget says how much is pruned: examples above the threshold weigh 1, those kept below it
    1 / (share kept). The threshold is the mean, or where a budget has no room for so many, the loss
    that half of it is above.

    Reference:
        Qin et al., *InfoBatch*, 2024 (arXiv:2303.04947), section 3.
    """

    needs_gradients = True

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return ``budget`` examples whose weights add up to n."""
        losses, n = gradients.losses.double().numpy(), len(gradients)
        ranked = np.lexsort((gradients.indices.numpy(), -losses))
        high = int((losses >= losses.mean()).sum())
        if high >= budget:
            high = budget // 2
        if budget == n:
            return _weighted(gradients, ranked, np.ones(n), epoch)
        rng = np.random.default_rng(mix_seed(seed, epoch))
        kept = rng.permutation(ranked[high:])[: budget - high]
        weights = np.concatenate([np.ones(high), np.full(len(kept), (n - high) / len(kept))])
        return _weighted(gradients, np.concatenate([ranked[:high], kept]), weights, epoch)


class GradientMatching:
    """Per class, examples whose weighted gradients add up to the class's: GRAD-MATCH.

    Orthogonal matching pursuit with weights of at least zero. A sum of n gradients in few
    dimensions is matched by few examples; what is left of the budget is filled with random ones
    that weigh as little as the lightest, as the published code fills it.

    Args:
        ridge: Penalty on squared weights, relative to the mean squared gradient: keeps weights from
            growing on few examples.

    Reference:
        Killamsetty et al., *GRAD-MATCH*, 2021 (arXiv:2103.00123), algorithm 2.
    """

    needs_gradients = True

    def __init__(self, ridge: float = 0.5) -> None:
        if not ridge >= 0:
            raise ValueError(f"ridge must be 0 or more, got ridge={ridge}.")
        self._ridge = ridge

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return ``budget`` examples."""
        _, members = group_by_class(gradients)
        sizes = np.array([len(m) for m in members])
        quotas = np.bincount(sainte_lague_order(sizes, budget), minlength=len(sizes))
        rng = np.random.default_rng(mix_seed(seed, epoch))
        positions, weights = [], []
        for own, count in zip(members, quotas, strict=True):
            found, found_weights = self._matched(_rows(gradients, own), int(count))
            rest = rng.permutation(np.setdiff1d(np.arange(len(own)), found))[: count - len(found)]
            lightest = found_weights.min() if len(found) else len(own) / count
            positions += [own[found], own[rest]]
            weights += [found_weights, np.full(len(rest), lightest)]
        return _weighted(gradients, np.concatenate(positions), np.concatenate(weights), epoch)

    def _matched(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        target = rows.sum(0)
        ridge = np.sqrt(self._ridge * np.square(rows).sum(1).mean())
        chosen: list[int] = []
        weights = np.zeros(0)
        residual, is_free = target.copy(), np.ones(len(rows), bool)
        while len(chosen) < count:
            gain = np.where(is_free, rows @ residual, -np.inf)
            best = int(gain.argmax())
            if not gain[best] > 1e-9 * np.linalg.norm(target):
                break
            chosen.append(best)
            is_free[best] = False
            matrix = np.concatenate([rows[chosen].T, ridge * np.eye(len(chosen))])
            weights, _ = nnls(matrix, np.concatenate([target, np.zeros(len(chosen))]))
            residual = target - weights @ rows[chosen]
        kept = weights > 0
        return np.array(chosen, np.int64)[kept], weights[kept]


def _rows(gradients: LastLayerGradients, positions: np.ndarray) -> np.ndarray:
    """Return gradients of some rows; of the last layer as outer products, of a class at a time."""
    at = torch.from_numpy(positions)
    residual = gradients.residual[at].double()
    if gradients.inputs is None:
        return residual.numpy()
    return torch.einsum("nc,nd->ncd", residual, gradients.inputs[at].double()).flatten(1).numpy()


class MeanOne:
    """A coreset whose weights are divided by their mean: the other reading of the cluster sizes.

    The paper's sizes add up to n, so that a tenth of the data weighs as much as all originals; the
    released code, which makes one copy, divides them by their mean. Give the loader
    ``weights="unscaled"``, which shares an example's weight among its copies.

    Args:
        copies: The loader's: each copy then weighs 1 on average, as an original does.
    """

    needs_gradients = True

    def __init__(self, copies: int = 1) -> None:
        self._copies = check_int("copies", copies, 1)

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return a coreset whose weights add up to ``budget * copies``."""
        found = CoresetSelector().select(gradients, budget=budget, seed=seed, epoch=epoch)
        scale = self._copies / found.weights.mean()
        return replace(found, weights=found.weights * scale, certificate=None)


class Tempered:
    """A coreset whose weights are cluster sizes to a power below 1, capped, and of mean 1.

    Give the loader ``weights="unscaled"``, which shares an example's weight among its copies.

    Args:
        power: 0 for uniform weights, 1 for cluster sizes.
        cap: Largest weight, in means.
        copies: The loader's: each copy then weighs 1 on average.
    """

    needs_gradients = True

    def __init__(self, power: float = 0.5, cap: float = 4.0, copies: int = 1) -> None:
        if not 0 <= power <= 1 or not cap >= 1:
            raise ValueError(
                f"power must be in [0, 1] and cap 1 or more, got power={power}, cap={cap}."
            )
        self._power, self._cap = power, cap
        self._copies = check_int("copies", copies, 1)

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return a coreset whose weights add up to ``budget * copies``."""
        found = CoresetSelector().select(gradients, budget=budget, seed=seed, epoch=epoch)
        weights = found.weights**self._power
        weights = (weights / weights.mean()).clamp(max=self._cap)
        scale = self._copies / weights.mean()
        return replace(found, weights=weights * scale, certificate=None)


class Rotating:
    """A coreset's clusters for ``every`` epochs, and of each a fresh random member every epoch.

    Stratified sampling in the space of gradients. Give the loader ``every=1``.

    Args:
        every: Epochs for which clusters are kept.
        weights: A member weighs its cluster's size, or all weigh n / k.
    """

    def __init__(
        self, every: int = 10, weights: Literal["clusters", "uniform"] = "uniform"
    ) -> None:
        self._every = check_int("every", every, 1)
        check_choice("weights", weights, ("clusters", "uniform"))
        self._is_uniform = weights == "uniform"
        self._coreset: Selection | None = None
        self._until = 0

    @property
    def needs_gradients(self) -> bool:
        """Whether clusters are due: asked before the epoch to come is known, so one ahead."""
        return self._coreset is None or self._until <= 0

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return one member of each cluster."""
        if self.needs_gradients:
            self._coreset = select_coreset(gradients, budget=budget, seed=seed)
            self._until = self._every
        self._until -= 1
        coreset = self._coreset
        assert coreset is not None
        rng = np.random.default_rng(mix_seed(seed, epoch))
        # The first of each cluster in a random order of all examples.
        order = rng.permutation(len(coreset.clusters))
        _, first = np.unique(coreset.clusters.numpy()[order], return_index=True)
        member = {int(coreset.clusters[i]): int(i) for i in order[first]}
        indices = torch.tensor([member[int(j)] for j in coreset.indices])
        if self._is_uniform:
            return Selection.equally_weighted(indices, len(coreset.clusters), epoch=epoch)
        return replace(coreset, indices=indices, certificate=None, epoch=epoch)


class DriftTriggered:
    """A coreset that is kept until it stands for the gradients much worse than when it was made.

    Each epoch the data is probed, and the old coreset's gradient error compared, relative to the
    norm of the full gradient. Give the loader ``every=1``.

    Args:
        tolerance: Factor that the relative error may grow by.

    Reference:
        After Yang, Kang & Mirzasoleiman, *CREST*, 2023 (arXiv:2306.01244), which checks the loss
        against a quadratic model; this one checks what the certificate is about.
    """

    needs_gradients = True

    def __init__(self, tolerance: float = 2.0) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got tolerance={tolerance}.")
        self._tolerance = tolerance
        self._kept: Selection | None = None
        self._allowed = 0.0

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the old coreset, or a new one."""
        if self._kept is None or _relative_error(gradients, self._kept) > self._allowed:
            self._kept = CoresetSelector().select(gradients, budget=budget, seed=seed, epoch=epoch)
            self._allowed = self._tolerance * _relative_error(gradients, self._kept)
        return self._kept


def _relative_error(gradients: LastLayerGradients, selection: Selection) -> float:
    """Return the gradient error of a selection over the summed norms of the gradients.

    The norm of the full gradient would be the natural scale, but nears zero in training.
    """
    missed = torch.ones(len(gradients), dtype=torch.float64)
    missed.index_add_(0, selection.indices, -selection.weights.double())
    return norm_of_sum(gradients, missed) / float(gradient_norms(gradients).sum())


class AdaptiveBudget:
    """The smallest coreset of a given quality, at most the budget.

    Args:
        error: What the cost may be, as a share of the summed norms of the gradients.
    """

    needs_gradients = True

    def __init__(self, error: float = 0.1) -> None:
        if not error > 0:
            raise ValueError(f"error must be positive, got error={error}.")
        self._error = error

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return a coreset of at most ``budget`` examples."""
        tolerance = self._error * float(gradient_norms(gradients).sum())
        found = select_coreset(gradients, tolerance=tolerance, seed=seed)
        if len(found) > budget:
            found = select_coreset(gradients, budget=budget, seed=seed)
        return replace(found, epoch=epoch)


RULES: dict[str, Callable[..., Any]] = {
    "random": RandomSelector,
    "max-loss": MaxLossSelector,
    "coreset": CoresetSelector,
    "score-proportional": ScoreProportional,
    "infobatch": InfoBatch,
    "gradient-matching": GradientMatching,
    "mean-one": MeanOne,
    "tempered": Tempered,
    "rotating": Rotating,
    "drift": DriftTriggered,
    "adaptive": AdaptiveBudget,
}


def make_rule(name: str, options: dict[str, Any]) -> Any:
    """Return a rule by its name, or a user's own by ``package.module:Class``."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        found: Any = getattr(importlib.import_module(module), attribute)
        return found(**options)
    check_choice("rule", name, tuple(RULES), "Or name your own as package.module:Class.")
    return RULES[name](**options)
