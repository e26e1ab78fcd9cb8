"""A block in which a model is evaluated, and after which nothing of it has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from augsubset.utils.rng import forked_rng

__all__ = ["untouched"]


@contextmanager
def untouched(
    model: nn.Module, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Evaluation mode and seeded generators inside; everything as it was outside.

    Args:
        model: Any.
        device: Whose generator the model may draw from.
        generator: A DataLoader's own, which each iteration draws from.
    """
    for name, parameter in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(parameter):
            raise ValueError(
                f"model must be initialised, got the lazy parameter {name!r}. Run one batch "
                "through it first: the probe would draw its weights under a seed of its own."
            )
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    drawn = None if generator is None else generator.get_state()
    try:
        # Not inference mode, the caller's perhaps: it knows no way back to a requires_grad.
        with forked_rng(0, [device]), torch.inference_mode(False), torch.no_grad():
            # Not model.eval(): some models do work there, such as merging adapter weights.
            for module in training:
                module.training = False
            yield
    finally:
        if generator is not None and drawn is not None:
            generator.set_state(drawn)
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
