"""Evaluate a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from augsubset.utils.rng import forked_rng

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(
    model: nn.Module, device: torch.device, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Run a block in evaluation mode, without autograd and with seeded random number generators.

    Buffers, every module's ``training`` flag and the generators are restored afterwards, also
    after an error.

    Args:
        model: Any module.
        device: Device whose random number generator the model may use.
        generator: Generator of a DataLoader that the block iterates over: each iteration draws
            from it.

    Raises:
        ValueError: If a parameter or buffer is lazy, that is, not initialised yet.
    """
    for name, parameter in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(parameter):
            raise ValueError(
                f"model must be initialised, got the lazy parameter {name!r}. Run one batch "
                "through it first: otherwise the probe's own seed would determine its weights."
            )
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    generator_state = None if generator is None else generator.get_state()
    try:
        # Leaves the caller's inference mode: its tensors can never require a gradient.
        with forked_rng(0, [device]), torch.inference_mode(False), torch.no_grad():
            # Not model.eval(): some models override it, for instance to merge adapter weights.
            for module in training:
                module.training = False
            yield
    finally:
        if generator is not None and generator_state is not None:
            generator.set_state(generator_state)
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
