"""What hooks see of one forward pass: the logits, the last layer's input, earlier layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Capture"]


class Capture:
    """What hooks saw of one forward pass."""

    def __init__(
        self, layer: nn.Linear | None, name: str | None, kind: str, named: dict[str, nn.Linear]
    ) -> None:
        self.inputs: Tensor | None = None
        self.outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._layer, self._name, self._kind, self._named = layer, name, kind, named
        self._last: tuple[nn.Module, Tensor, Tensor] | None = None
        self._runs: Counter[nn.Module] = Counter()

    # Whatever is remembered is a copy: an operation in place, such as an activation, would put its
    # own result there.

    def begin(self, *_: Any) -> None:
        """Forget the pass before, and what a recomputation in its backward pass added."""
        self.inputs = self._last = None
        self._runs.clear()

    def ran(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> None:
        """Remember the last Linear layer that ran, or the one that was named."""
        inputs = _input(args, kwargs).detach()
        if self._kind == "last_layer":
            inputs = inputs.clone()
        self._last = (module, inputs, output.clone() if self.outputs else output.detach().clone())
        self._runs[module] += 1

    def ran_earlier(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> Tensor:
        """Remember an earlier layer's input and output, and let gradients reach the output."""
        if not output.requires_grad:
            output.requires_grad_()
        self.outputs[name].append((_input(args, kwargs).detach().clone(), output))
        return output.clone()

    def logits(self, output: Any, *, verify: bool = True) -> Any:
        """Return the logits of the pass that ended with this output, and settle the inputs.

        Args:
            output: What the model returned.
            verify: Compare it with the last Linear layer's output, which waits for the device.
        """
        if self._layer is None and self._kind == "logits":
            return output
        if self._last is None:
            asked = f"layer={self._name!r}" if self._layer is not None else 'layer="auto"'
            raise ValueError(
                f"layer must run when the model does, got {asked}, which did not. "
                f"Candidates: {sorted(self._named)}."
            )
        module, inputs, logits = self._last
        if self._kind == "last_layer":
            if inputs.ndim != 2:
                raise ValueError(
                    "inputs of the last layer must be (B, d), got shape "
                    f"{tuple(inputs.shape)}. Its gradient is then no single outer product."
                )
            if self._runs[module] != 1:
                raise ValueError(
                    f"the last layer must run once a pass, got {self._runs[module]} runs. Its "
                    "gradient is then no single outer product."
                )
            if (
                verify
                and self._layer is None
                and not (
                    isinstance(output, Tensor)
                    and output.shape == logits.shape
                    and torch.allclose(output.float(), logits.float(), 0, 0, equal_nan=True)
                )
            ):
                raise ValueError(
                    "the model's output must be that of its last Linear layer for "
                    f'kind="last_layer", got another. Pass layer=, one of {sorted(self._named)}, '
                    "whose output is the logits."
                )
            self.inputs = inputs.float()
        return logits

    def earlier_gradients(
        self, logits: Tensor, residual: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (gradient at the output, input) of each earlier layer."""
        if not self.outputs:
            return ()
        for name, runs in self.outputs.items():
            if len(runs) != 1 or runs[0][0].ndim != 2 or len(runs[0][0]) != len(logits):
                shapes = [tuple(x.shape) for x, _ in runs]
                raise ValueError(
                    f"earlier layers must run once a pass, on (B, d) inputs, got {name!r} run on "
                    f"{shapes} for {len(logits)} examples."
                )
        found: tuple[Tensor | None, ...] = (None,) * len(self.outputs)
        if logits.requires_grad:
            with torch.autocast(logits.device.type, enabled=False):
                found = torch.autograd.grad(
                    logits,
                    [runs[0][1] for runs in self.outputs.values()],
                    residual.to(logits.dtype),
                    allow_unused=True,
                )
        for name, gradient in zip(self.outputs, found, strict=True):
            if gradient is None:
                raise ValueError(
                    "earlier layers must come before the logits, with no torch.no_grad() or "
                    f"detach() between, got {name!r}, which no gradient reaches."
                )
        inputs = [runs[0][0] for runs in self.outputs.values()]
        return tuple(
            (gradient.float(), x.float())
            for gradient, x in zip(found, inputs, strict=True)
            if gradient is not None
        )


def _input(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """Return what a Linear layer was called with, by position or by name."""
    return args[0] if args else kwargs["input"]
