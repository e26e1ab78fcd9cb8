"""The loss of a weighted batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from augsubset.utils.checks import check_choice

__all__ = ["weighted_loss"]


def weighted_loss(
    losses: Tensor,
    weights: Tensor,
    reduction: Literal["mean", "weighted_mean", "sum"] = "mean",
) -> Tensor:
    """Return the weighted loss of a batch, ``(w_1 l_1 + ... + w_B l_B) / Z``.

    Args:
        losses: Unreduced losses (``reduction="none"`` in torch's losses); trailing dimensions are
            averaged.
        weights: Weight of each row, as the loader yields it.
        reduction: ``"mean"``: Z is the number of rows, so that a weight means the same in every
            batch (the paper's eq. 12 up to a constant). ``"weighted_mean"``: Z is the sum of the
            batch's weights, which keeps the step size steady but biases small batches. ``"sum"``:
            Z = 1. A batch of padding alone, in which all weights are 0, gives 0.

    Returns:
        A scalar, differentiable with respect to ``losses``.

    Shape:
        losses ``(B,)`` or ``(B, ...)``; weights ``(B,)``.

    Raises:
        TypeError: If ``losses`` is a scalar, reduced already.
        ValueError: If the shapes disagree or the batch is empty.

    Example:
        >>> weighted_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)
    """
    check_choice("reduction", reduction, ("mean", "weighted_mean", "sum"))
    if losses.ndim == 0:
        raise TypeError(
            'losses must hold one value per row, got a scalar. Pass reduction="none" to the loss.'
        )
    if weights.shape != losses.shape[:1]:
        raise ValueError(
            f"weights must be of shape {tuple(losses.shape[:1])}, one per row of losses, "
            f"got shape {tuple(weights.shape)}. Pass the weights as the loader yields them."
        )
    if losses.shape[0] == 0:
        raise ValueError("losses must hold at least one row, got an empty batch.")
    per_row = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    total = (per_row * weights).sum()
    if reduction == "mean":
        return total / per_row.shape[0]
    if reduction == "weighted_mean":
        # The clamp keeps an all-padding batch at zero instead of 0/0, without a device sync.
        return total / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return total
