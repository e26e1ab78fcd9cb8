"""The one line of a training loop that the weights change."""

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
    """Return the loss of a batch whose rows count for different numbers of examples.

    That is ``(w_1 l_1 + ... + w_B l_B) / Z``.

    Args:
        losses: One loss a row, or more, whose trailing dimensions are averaged
            (``reduction="none"`` in torch's losses).
        weights: What multiplies each row's loss, as the loader yields it.
        reduction: ``"mean"`` divides by the number of rows, so that a row's weight means the same
            in every batch (Z = B, the paper's eq. 12 up to a constant); ``"weighted_mean"`` by the
            batch's sum of weights, which keeps the step size steady but biases small batches;
            ``"sum"`` by nothing. A batch of padding alone (all weights zero) gives zero.

    Returns:
        A scalar that carries gradients to ``losses``.

    Shape:
        losses ``(B,)`` or ``(B, ...)``; weights ``(B,)``.

    Raises:
        TypeError: If ``losses`` is a scalar: a loss that was reduced already.
        ValueError: If the shapes disagree or the batch is empty.

    Example:
        >>> weighted_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)
    """
    check_choice("reduction", reduction, ("mean", "weighted_mean", "sum"))
    if losses.ndim == 0:
        raise TypeError(
            'losses must hold one value a row, got a scalar. Pass reduction="none" to the loss.'
        )
    if weights.shape != losses.shape[:1]:
        raise ValueError(
            f"weights must be of shape {tuple(losses.shape[:1])}, one a row of losses, "
            f"got shape {tuple(weights.shape)}. Pass the loader's third value as it came."
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
