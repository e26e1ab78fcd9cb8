"""How well last-layer gradients approximate full ones, and a weighted subset the whole set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from augsubset.probe.eval_mode import evaluation_mode
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checks import check_int

__all__ = ["Alignment", "alignment", "distance_fidelity", "full_gradients", "summed_gradient"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Alignment(NamedTuple):
    """Agreement of a gradient with a reference gradient.

    Args:
        cosine: Cosine similarity; 0 if either is zero.
        error: Norm of the difference relative to the norm of the reference.
    """

    cosine: float
    error: float


def full_gradients(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = cross_entropy, chunk_size: int = 16
) -> Tensor:
    """Return the per-example gradients with respect to all parameters, in evaluation mode.

    Args:
        model: Its output is the loss's first argument; batch norm uses running statistics.
        x: Inputs. ``(n, ...)``
        y: Labels. ``(n, ...)``
        loss: Mean loss of a batch, called with batches of one example.
        chunk_size: Examples per step; bounds the memory beside the result.

    Shape:
        returns ``(n, m)`` on the device of ``x``.

    Raises:
        ValueError: If the numbers of labels and inputs differ.

    Cost:
        One backward pass per example; 4 n m bytes.
    """
    check_int("chunk_size", chunk_size, 1)
    _check_pairs(x, y)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def compute_loss(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(model, (weights, buffers), (one[None],)), label[None])

    parts = []
    for first in range(0, len(x), chunk_size):
        some = slice(first, first + chunk_size)
        with evaluation_mode(model, x.device), torch.enable_grad():
            found = vmap(grad(compute_loss), (None, 0, 0))(weights, x[some], y[some])
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
    """Return the weighted sum of the per-example gradients, without storing each of them.

    Args:
        model: As in :func:`full_gradients`.
        x: Inputs. ``(n, ...)``
        y: Labels. ``(n, ...)``
        weights: ``(n,)``; ``None``: all 1.
        loss: Mean loss of a batch, called with batches of one example.
        chunk_size: Examples per step.

    Shape:
        returns ``(m,)`` float64.

    Raises:
        ValueError: If the numbers of labels, weights and inputs differ.

    Cost:
        One backward pass over the data.
    """
    check_int("chunk_size", chunk_size, 1)
    _check_pairs(x, y)
    weights = torch.ones(len(x), device=x.device) if weights is None else weights.to(x.device)
    if weights.shape != (len(x),):
        raise ValueError(
            f"weights must be of shape ({len(x)},), one per input, got {tuple(weights.shape)}."
        )
    parameters = list(model.parameters())
    total = torch.zeros(sum(each.numel() for each in parameters), dtype=torch.float64)
    for first in range(0, len(x), chunk_size):
        some = slice(first, first + chunk_size)
        with evaluation_mode(model, x.device), torch.enable_grad():
            out = model(x[some])
            losses = vmap(lambda one, label: loss(one[None], label[None]))(out, y[some])
            found = torch.autograd.grad(
                (losses * weights[some]).sum(), parameters, materialize_grads=True
            )
        total += torch.cat([each.flatten() for each in found]).double().cpu()
    return total


def distance_fidelity(gradients: LastLayerGradients, full: Tensor) -> float:
    """Return Spearman's rank correlation between distances of probed and of full gradients.

    Pairs within a class only, as in selection; the mean over classes is weighted by their pairs.

    Args:
        gradients: As measured by a probe.
        full: Full gradients of the same rows, from :func:`full_gradients`. ``(n, m)``

    Raises:
        ValueError: If the numbers of rows differ, or no class has three examples.

    Cost:
        O(n^2 m / classes), and ranking the pairs.
    """
    if len(full) != len(gradients):
        raise ValueError(f"full must have {len(gradients)} rows, like gradients, got {len(full)}.")
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
        raise ValueError(
            "gradients must contain a class of at least three examples, to rank pairs."
        )
    return float(np.average(found, weights=pairs))


def alignment(gradient: Tensor, other: Tensor) -> Alignment:
    """Compare a gradient with a reference gradient ``other``, both ``(m,)``."""
    left, right = gradient.double(), other.double()
    norms = float(left.norm() * right.norm())
    error = float((left - right).norm() / right.norm()) if float(right.norm()) else float("inf")
    return Alignment(float(left @ right) / norms if norms else 0.0, error)


def _check_pairs(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or not len(x):
        raise ValueError(f"y must have one label per input, got {len(y)} for {len(x)} inputs.")
