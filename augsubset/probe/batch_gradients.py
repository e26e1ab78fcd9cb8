"""Gradients of single batches, and how they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from augsubset.selection.gradients import LastLayerGradients

__all__ = ["BatchGradients", "concatenate_batches", "merge_gradients"]


class BatchGradients(NamedTuple):
    """Per-example gradients of one batch, float32.

    Args:
        residual: Gradient of the loss with respect to the logits ``(B, C)``.
        losses: Loss of each example ``(B,)``.
        inputs: Inputs of the last layer ``(B, d)``, for ``kind="last_layer"``.
        earlier: (gradient at the output, input) of each earlier layer.
    """

    residual: Tensor
    losses: Tensor
    inputs: Tensor | None = None
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()


def concatenate_batches(
    batches: Sequence[BatchGradients], labels: Tensor, indices: Tensor, ages: Tensor | None = None
) -> LastLayerGradients:
    """Return the gradients of consecutive batches as one value."""
    inputs = [batch.inputs for batch in batches if batch.inputs is not None]
    layers = zip(*(batch.earlier for batch in batches), strict=True)
    return LastLayerGradients(
        residual=torch.cat([batch.residual for batch in batches]),
        inputs=torch.cat(inputs) if inputs else None,
        labels=labels,
        indices=indices,
        losses=torch.cat([batch.losses for batch in batches]),
        earlier=tuple(
            (torch.cat([gradient for gradient, _ in layer]), torch.cat([x for _, x in layer]))
            for layer in layers
        ),
        ages=ages,
    )


def merge_gradients(
    reused: LastLayerGradients, probed: LastLayerGradients, is_reused: Tensor
) -> LastLayerGradients:
    """Interleave reused and newly probed rows; the mask says where the reused ones go."""

    def merge(name: str) -> Tensor | None:
        value = getattr(probed, name)
        if value is None:
            return None
        merged: Tensor = value.new_empty(len(is_reused), *value.shape[1:])
        merged[is_reused], merged[~is_reused] = getattr(reused, name), value
        return merged

    names = ("residual", "inputs", "labels", "indices", "losses", "ages")
    return LastLayerGradients(**{name: merge(name) for name in names})  # type: ignore[arg-type]
