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
    *,
    normalizer: Tensor | None = None,
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
        normalizer: What each loss counts in Z, for losses whose own mean is not over all of them:
            ``class_weights[y]``, or ``y != ignore_index``. With all weights 1, ``"mean"`` and
            ``"weighted_mean"`` then equal the loss's own ``reduction="mean"``. ``None``: each row
            counts 1.

    Returns:
        A scalar, differentiable with respect to ``losses``.

    Shape:
        losses ``(B,)`` or ``(B, ...)``; weights ``(B,)``; normalizer like losses.

    Raises:
        TypeError: If ``losses`` is a scalar, reduced already.
        ValueError: If the shapes disagree, the batch is empty, or a sum is given a normalizer.

    Example:
        >>> weighted_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)

        Class weights: torch divides by their sum over the batch, not by the number of rows.

        >>> from torch.nn.functional import cross_entropy
        >>> logits, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> class_weights = torch.tensor([1.0, 9.0])
        >>> cross_entropy(logits, y, class_weights)
        tensor(0.2946)
        >>> losses = cross_entropy(logits, y, class_weights, reduction="none")
        >>> weighted_loss(losses, torch.ones(2), normalizer=class_weights[y])
        tensor(0.2946)
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
    counts = torch.ones(len(losses), device=losses.device)
    if normalizer is not None:
        if reduction == "sum":
            raise ValueError("normalizer must be None where reduction='sum', which divides by 1.")
        if normalizer.shape != losses.shape:
            raise ValueError(
                f"normalizer must be of shape {tuple(losses.shape)}, one value per loss, got shape "
                f"{tuple(normalizer.shape)}."
            )
        per_row = losses.unsqueeze(-1).flatten(1).sum(1)
        exact = torch.promote_types(normalizer.dtype, torch.float32)
        counts = normalizer.unsqueeze(-1).flatten(1).sum(1, dtype=exact)
    total = (per_row * weights).sum()
    if reduction == "sum":
        return total
    if reduction == "weighted_mean":
        counts = counts * weights
    # The clamp keeps an all-padding batch at zero instead of 0/0, without a device sync.
    return total / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)
