"""How well last-layer gradients stand for full ones, and a weighted subset's sum for all's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from augsubset.probe.eval_mode import untouched
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checks import check_int

__all__ = ["Alignment", "alignment", "distance_fidelity", "full_gradients", "summed_gradient"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Alignment(NamedTuple):
    """Where one gradient points beside another.

    Args:
        cosine: Of the angle between them; 0 where one is zero.
        error: Norm of the difference, by that of the other.
    """

    cosine: float
    error: float


def full_gradients(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, chunk_size: int = 16
) -> Tensor:
    """Return each example's gradient of the loss in all parameters, the model in evaluation mode.

    Args:
        model: Returns what the loss takes; batch normalisation uses its running statistics.
        x: Inputs. ``(n, ...)``
        y: Labels. ``(n, ...)``
        loss: Mean loss of a batch; of one example here.
        chunk_size: Examples at a time: bounds memory beside the result.

    Shape:
        returns ``(n, m)`` on the device of ``x``.

    Raises:
        ValueError: If there are not as many labels as inputs.

    Cost:
        A backward pass an example; 4 n m bytes.
    """
    check_int("chunk_size", chunk_size, 1)
    _check_pairs(x, y)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss_of(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(model, (weights, buffers), (one[None],)), label[None])

    parts = []
    for first in range(0, len(x), chunk_size):
        some = slice(first, first + chunk_size)
        with untouched(model, x.device), torch.enable_grad():
            found = vmap(grad(loss_of), (None, 0, 0))(weights, x[some], y[some])
        parts.append(torch.cat([each.detach().flatten(1) for each in found.values()], 1))
    return torch.cat(parts)


def summed_gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None = None,
    *,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Tensor:
    """Return the weighted sum of all examples' gradients, without holding each.

    Args:
        model: As in :func:`full_gradients`.
        x: Inputs. ``(n, ...)``
        y: Labels. ``(n, ...)``
        weights: ``(n,)``; by default 1 each.
        loss: Mean loss of a batch; of one example here.
        chunk_size: Examples at a time.

    Shape:
        returns ``(m,)`` float64.

    Raises:
        ValueError: If there are not as many labels, or weights, as inputs.

    Cost:
        One backward pass over the data.
    """
    check_int("chunk_size", chunk_size, 1)
    _check_pairs(x, y)
    weights = torch.ones(len(x), device=x.device) if weights is None else weights.to(x.device)
    if weights.shape != (len(x),):
        raise ValueError(
            f"weights must be one an example, got shape {tuple(weights.shape)} for {len(x)}."
        )
    parameters = list(model.parameters())
    total = torch.zeros(sum(each.numel() for each in parameters), dtype=torch.float64)
    for first in range(0, len(x), chunk_size):
        some = slice(first, first + chunk_size)
        with untouched(model, x.device), torch.enable_grad():
            out = model(x[some])
            losses = vmap(lambda one, label: loss(one[None], label[None]))(out, y[some])
            found = torch.autograd.grad(
                (losses * weights[some]).sum(), parameters, materialize_grads=True
            )
        total += torch.cat([each.flatten() for each in found]).double().cpu()
    return total


def distance_fidelity(gradients: LastLayerGradients, full: Tensor) -> float:
    """Return Spearman's rank correlation of two lists of distances: of probed and full gradients.

    Of pairs within a class, as selection compares no others; the mean over classes, by pairs.

    Args:
        gradients: As a probe measured them.
        full: Full gradients of the same rows, from :func:`full_gradients`. ``(n, m)``

    Raises:
        ValueError: If rows differ in number, or no class has three examples.

    Cost:
        O(n^2 m / classes), and the pairs' ranks.
    """
    if len(full) != len(gradients):
        raise ValueError(
            f"full must have {len(gradients)} rows, as gradients have, got {len(full)}."
        )
    found, pairs = [], []
    for label in torch.unique(gradients.labels):
        rows = torch.nonzero(gradients.labels == label).squeeze(1)
        if len(rows) < 3:
            continue
        upper = torch.triu_indices(len(rows), len(rows), 1)
        probed = gradients.distances(rows, rows)[upper[0], upper[1]]
        exact = torch.pdist(full[rows].double())
        found.append(float(spearmanr(probed.numpy(), exact.cpu().numpy()).statistic))
        pairs.append(upper.shape[1])
    if not found:
        raise ValueError("gradients must hold three examples of a class at least, to rank pairs.")
    return float(np.average(found, weights=pairs))


def alignment(gradient: Tensor, other: Tensor) -> Alignment:
    """Return where a gradient points beside another, both ``(m,)``."""
    left, right = gradient.double(), other.double()
    norms = float(left.norm() * right.norm())
    error = float((left - right).norm() / right.norm()) if float(right.norm()) else float("inf")
    return Alignment(float(left @ right) / norms if norms else 0.0, error)


def _check_pairs(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or not len(x):
        raise ValueError(f"y must be one label an input, got {len(y)} for {len(x)} inputs.")
