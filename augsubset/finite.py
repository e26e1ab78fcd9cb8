"""Weights that training made no numbers of, found before an epoch is trained on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from augsubset.errors import AugsubsetError

__all__ = ["check_finite"]


@torch.no_grad()
def check_finite(model: nn.Module, epoch: int) -> None:
    """Refuse to train on where training made weights that are no numbers, and name the first.

    On several ranks each looks at its own, which gradients keep the same; what is not finite on
    one alone is raised there alone. A selection that probes comes first: it names gradients, and
    on all ranks.
    """
    trained = {
        name: parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_lazy(parameter)
    }
    # Of floats of one byte, and of somebody's own kind of tensor, isfinite knows nothing.
    known = {
        name: values
        for name, values in trained.items()
        if type(values) is Tensor and not values.is_meta and values.layout == torch.strided
        if values.is_floating_point() and values.element_size() > 1 and values.numel()
    }
    if not known:
        return
    # The largest value is no number where any is none; isfinite of all would be memory as large.
    largest = [torch.linalg.vector_norm(values, torch.inf) for values in known.values()]
    are_finite = torch.stack([each.isfinite().to(largest[0].device) for each in largest])
    for (name, values), is_finite in zip(known.items(), are_finite.tolist(), strict=True):
        if not is_finite:
            number = int((~values.isfinite()).sum())
            raise AugsubsetError(
                f"the model's weights must be finite when an epoch starts, got {number} of "
                f"{values.numel()} values of {name!r} that are not, at epoch {epoch}. A loss was "
                "NaN or infinite: go back to an older checkpoint, and lower the learning rate, "
                "clip gradients or check the loss scale."
            )
