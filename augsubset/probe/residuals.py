"""From logits and labels to the gradient at the logits: by a formula, or by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from augsubset.batch import is_classes

__all__ = ["Loss", "Measure", "by_autograd", "check_logits", "closed_form"]

Loss = Callable[[Tensor, Any], Tensor]
Measure = Callable[[Tensor, Any], tuple[Tensor, Tensor]]


def closed_form(loss: str) -> Measure:
    """Return residual and losses for the two losses whose residual is a formula."""

    def measure(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        if is_classes(labels):
            target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        elif loss == "mse" and isinstance(labels, Tensor) and labels.is_floating_point():
            target = labels.flatten(1) if labels.ndim > 1 else labels[:, None]
            if target.shape != logits.shape:
                raise ValueError(
                    f"labels must be one value an output {tuple(logits.shape)}, got labels of "
                    f"shape {tuple(labels.shape)}."
                )
        else:
            kind = (
                f"(shape {tuple(labels.shape)}, dtype {labels.dtype})"
                if isinstance(labels, Tensor)
                else type(labels).__name__
            )
            raise ValueError(
                f"labels must be one class index an example, got labels of {kind}. For "
                'regression probe with GradientProbe(model, loss="mse"), which takes floats; for '
                "anything else pass a callable as its loss=, and as forward= what makes (B, C) "
                "outputs of the model's."
            )
        if loss == "mse":
            residual = logits - target
            return residual, 0.5 * residual.square().sum(1)
        return logits.softmax(1) - target, F.cross_entropy(logits, labels, reduction="none")

    return measure


def by_autograd(loss: Loss) -> Measure:
    """Return residual and losses of any loss that has one value an example."""

    def measure(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = loss(leaf, labels)
            if not isinstance(losses, Tensor) or losses.shape != (len(logits),):
                raise ValueError(
                    f"loss must return one value an example ({len(logits)},), got "
                    f"{tuple(losses.shape) if isinstance(losses, Tensor) else type(losses)}. "
                    'Pass reduction="none".'
                )
            (residual,) = torch.autograd.grad(losses.sum(), leaf)
        return residual, losses.detach()

    return measure


def check_logits(logits: Any, num_inputs: int | None, hint: str) -> None:
    """Refuse what is no (B, C) tensor; B is ``num_inputs`` where that is known."""
    is_matrix = isinstance(logits, Tensor) and logits.ndim == 2
    if is_matrix and num_inputs in (None, len(logits)):
        return
    shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
    rows = "" if num_inputs is None else f" for {num_inputs} inputs"
    raise TypeError(
        f"the model's output must be a (B, C) tensor of logits{rows}, got "
        f"{type(logits).__name__}{shape}. {hint}"
    )
