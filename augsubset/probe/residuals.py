"""Residuals: per-example gradients of the loss with respect to the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from augsubset.batch import is_classes

__all__ = ["Loss", "check_logits", "compute_residual"]

Loss = Callable[[Tensor, Any], Tensor]


def compute_residual(logits: Tensor, labels: Any, loss: str | Loss) -> tuple[Tensor, Tensor]:
    """Return residual ``(B, C)`` and losses ``(B,)``.

    They have the dtype of the logits, even under the caller's autocast.

    Args:
        logits: ``(B, C)``, on any device.
        labels: As they are in the batch, on the same device. Negative class indices mark
            unlabelled examples; closed forms give them zeros.
        loss: ``"cross_entropy"`` and ``"mse"`` use a closed form, a callable autograd.

    Raises:
        ValueError: If labels do not fit the loss and the logits, or a callable does not return
            one value per example.
    """
    with torch.autocast(logits.device.type, enabled=False):
        if isinstance(loss, str):
            return _use_closed_form(logits, labels, loss)
        return _use_autograd(logits, labels, loss)


def _use_closed_form(logits: Tensor, labels: Any, loss: str) -> tuple[Tensor, Tensor]:
    """Residual softmax(z) - onehot(y) for cross-entropy, f - y for half the squared distance."""
    if is_classes(labels):
        num_classes = logits.shape[1]
        if len(labels) and not int(labels.max()) < num_classes:
            raise ValueError(
                f"labels must be in 0..{num_classes - 1}, one of the model's {num_classes} "
                f"outputs, got labels from {int(labels.min())} to {int(labels.max())}."
            )
        target = F.one_hot(labels.clamp(min=0), num_classes).to(logits.dtype)
    elif loss == "mse" and isinstance(labels, Tensor) and labels.is_floating_point():
        target = labels.flatten(1) if labels.ndim > 1 else labels[:, None]
        if target.shape != logits.shape:
            raise ValueError(
                f"labels must be one value per model output {tuple(logits.shape)}, got labels of "
                f"shape {tuple(labels.shape)}."
            )
    else:
        kind = (
            f"shape {tuple(labels.shape)}, dtype {labels.dtype}"
            if isinstance(labels, Tensor)
            else f"type {type(labels).__name__}"
        )
        raise ValueError(
            f"labels must be one class index per example, got labels of {kind}. MixUp and "
            "CutMix belong in the loop, after the loader. For regression "
            'on float labels probe with GradientProbe(model, loss="mse"); for anything else pass '
            "a callable as its loss=, and a forward= that returns (B, C) outputs."
        )
    if loss == "mse":
        residual = logits - target
        losses = 0.5 * residual.square().sum(1)
    else:
        residual = logits.softmax(1) - target
        losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    if is_classes(labels):  # negative: unlabelled, left out of the loss
        residual = residual.masked_fill(labels[:, None] < 0, 0)
        losses = losses.masked_fill(labels < 0, 0)
    return residual, losses


def _use_autograd(logits: Tensor, labels: Any, loss: Loss) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        losses = loss(leaf.clone(), labels)  # it may work in place
        if not isinstance(losses, Tensor) or losses.shape != (len(logits),):
            raise ValueError(
                f"loss must return one value per example ({len(logits)},), got "
                f"{tuple(losses.shape) if isinstance(losses, Tensor) else type(losses)}. "
                'Pass reduction="none".'
            )
        (residual,) = torch.autograd.grad(losses.sum(), leaf)
    return residual, losses.detach()


def check_logits(logits: Any, num_inputs: int | None, hint: str) -> None:
    """Check that a model's output is a (B, C) tensor; B is ``num_inputs`` unless that is None.

    Raises:
        TypeError: If it is not; the message ends with the hint.
    """
    is_matrix = isinstance(logits, Tensor) and logits.ndim == 2
    if is_matrix and num_inputs in (None, len(logits)):
        return
    shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
    rows = "" if num_inputs is None else f" for {num_inputs} inputs"
    raise TypeError(
        f"the model's output must be a (B, C) tensor of logits{rows}, got "
        f"{type(logits).__name__}{shape}. {hint}"
    )
