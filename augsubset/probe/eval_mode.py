"""Evaluate a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
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
    buffers = [_Buffers(module) for module in training]
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
        failed = [error for each in buffers for error in each.restore()]
        if failed:
            raise failed[0]


class _Buffers:
    """A module's own buffers, to be restored: which there are, and what they hold."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Not named_buffers, which leaves out those that are None until a forward pass.
        self._before = {name: _Kept(buffer) for name, buffer in module._buffers.items()}

    def restore(self) -> list[RuntimeError]:
        """Restore all of them; return what went wrong with some."""
        own, failed = self._module._buffers, []
        for name in own.keys() - self._before.keys():
            del own[name]
        for name, kept in self._before.items():
            if own.get(name) is not kept.buffer:
                own[name] = kept.buffer
            try:
                kept.restore()
            except RuntimeError as error:
                error.add_note(f"Raised while the buffer {name!r} was restored.")
                failed.append(error)
        return failed


class _Kept:
    """A buffer, ``None`` or a tensor of any layout, and its values."""

    def __init__(self, buffer: Tensor | None) -> None:
        self.buffer = buffer
        if buffer is not None:
            self._values = buffer.detach().clone()
            self._version = 0 if buffer.is_inference() else buffer._version

    @torch.no_grad()
    def restore(self) -> None:
        """Give it its old shape and values, unless it still has them."""
        buffer = self.buffer
        if buffer is None:
            return
        try:
            is_same = torch.equal(buffer, self._values)
        except (RuntimeError, AttributeError):  # sparse, nested, mkldnn, meta: no comparison
            is_same = not buffer.is_inference() and buffer._version == self._version
        if not is_same:
            if buffer.shape != self._values.shape:
                buffer.resize_(self._values.shape)
            buffer.copy_(self._values)
