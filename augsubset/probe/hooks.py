"""Find the Linear layers of a model, and capture their inputs and outputs with forward hooks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Capture", "find_linear_layer", "force_eager", "track_execution"]


def find_linear_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of a Linear layer, given either.

    Raises:
        TypeError: If it is not a Linear.
        ValueError: If the model does not contain it.
    """
    candidates = sorted(_get_linear_layers(model))
    for name, module in model.named_modules():
        if module is layer or name == layer:
            if not isinstance(module, nn.Linear):
                raise TypeError(
                    f"layer must be a torch.nn.Linear, got {type(module).__name__} {name!r}. "
                    f"Candidates: {candidates}."
                )
            return name, module
    raise ValueError(
        f"layer must be a Linear layer of the model, got layer={layer!r}. Candidates: {candidates}."
    )


class Capture:
    """What hooks capture in one forward pass.

    Captured tensors are copies: an in-place operation after the layer, such as an activation,
    would overwrite them.

    Args:
        model: The model that is run.
        kind: ``"logits"``, or ``"last_layer"`` to capture the input of the last layer too.
        layer: Name and module of the layer whose output is the logits. ``None``: the logits are
            the model's output, and the last layer is the last Linear layer that runs.
        earlier: Names and modules of earlier layers whose gradients are wanted.

    Attributes:
        inputs: Inputs of the last layer ``(B, d)``, float32; set by :meth:`get_logits`, for
            ``kind="last_layer"`` only.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        layer: tuple[str, nn.Linear] | None,
        earlier: Sequence[tuple[str, nn.Linear]],
    ) -> None:
        self.inputs: Tensor | None = None
        self._kind, self._layer, self._earlier = kind, layer, earlier
        self._linear_layers = _get_linear_layers(model)
        self._last: tuple[nn.Module, Tensor, Tensor] | None = None
        self._num_runs: Counter[nn.Module] = Counter()
        self._earlier_runs: dict[str, list[tuple[Tensor, Tensor]]] = {
            name: [] for name, _ in earlier
        }

    @contextmanager
    def register_hooks(self) -> Iterator[Capture]:
        """Capture forward passes while the block runs."""
        candidates = self._linear_layers.values() if self._layer is None else [self._layer[1]]
        with ExitStack() as hooks:
            if self._layer is not None or self._kind == "last_layer":
                for module in candidates:
                    hook = module.register_forward_hook(self._record, with_kwargs=True)
                    hooks.callback(hook.remove)
            for name, module in self._earlier:
                record = partial(self._record_earlier, name)
                hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
            yield self

    def reset(self, *_: Any) -> None:
        """Forget the previous pass, and layers that its backward re-ran for checkpointing."""
        self.inputs = self._last = None
        self._num_runs.clear()

    def get_logits(self, output: Any, *, verify: bool = True) -> Any:
        """Return the logits of the last forward pass, and set :attr:`inputs`.

        Args:
            output: What the model returned.
            verify: Compare it with the output of the last Linear layer, which synchronises the
                device.

        Raises:
            ValueError: If the layer did not run, or its gradient is not one outer product per
                example.
        """
        if self._layer is None and self._kind == "logits":
            return output
        if self._last is None:
            layer = '"auto"' if self._layer is None else repr(self._layer[0])
            raise ValueError(
                f"layer must run in the model's forward pass, got layer={layer}, which did not. "
                f"Candidates: {sorted(self._linear_layers)}."
            )
        module, inputs, logits = self._last
        if self._kind == "last_layer":
            if inputs.ndim != 2:
                raise ValueError(
                    "inputs of the last layer must be (B, d), got shape "
                    f"{tuple(inputs.shape)}: its gradient is not one outer product per example."
                )
            if self._num_runs[module] != 1:
                raise ValueError(
                    "the last layer must run once per forward pass, got "
                    f"{self._num_runs[module]} runs: its gradient is not one outer product per "
                    "example."
                )
            if verify and self._layer is None and not _is_equal(output, logits):
                raise ValueError(
                    "the model must return the output of its last Linear layer for "
                    'kind="last_layer", got a different output. Pass as layer= the one whose '
                    f"output is the logits, one of {sorted(self._linear_layers)}."
                )
            self.inputs = inputs.float()
        return logits

    def compute_earlier_gradients(
        self, logits: Tensor, residual: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (gradient at the output, input) of each earlier layer.

        Raises:
            ValueError: If a layer did not run once on ``(B, d)`` inputs, or no gradient reaches it.
        """
        if not self._earlier_runs:
            return ()
        for name, runs in self._earlier_runs.items():
            if len(runs) != 1 or runs[0][0].ndim != 2 or len(runs[0][0]) != len(logits):
                shapes = [tuple(inputs.shape) for inputs, _ in runs]
                raise ValueError(
                    "earlier layers must run once per forward pass, on (B, d) inputs, got "
                    f"{name!r} run on {shapes} for {len(logits)} examples."
                )
        gradients: Sequence[Tensor | None] = [None] * len(self._earlier_runs)
        if logits.requires_grad:
            with torch.autocast(logits.device.type, enabled=False):
                gradients = torch.autograd.grad(
                    logits,
                    [output for [(_, output)] in self._earlier_runs.values()],
                    residual.to(logits.dtype),
                    allow_unused=True,
                )
        pairs = []
        for (name, runs), gradient in zip(self._earlier_runs.items(), gradients, strict=True):
            if gradient is None:
                raise ValueError(
                    "earlier layers must come before the logits, without torch.no_grad() or "
                    f"detach() in between, got {name!r}, which no gradient reaches."
                )
            pairs.append((gradient.float(), runs[0][0].float()))
        return tuple(pairs)

    def _record(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> None:
        inputs = _get_input(args, kwargs).detach()
        if self._kind == "last_layer":
            inputs = inputs.clone()
        logits = output.clone() if self._earlier else output.detach().clone()
        self._last = (module, inputs, logits)
        self._num_runs[module] += 1

    def _record_earlier(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> Tensor:
        if not output.requires_grad:  # the layers up to here are frozen
            output.requires_grad_()
        self._earlier_runs[name].append((_get_input(args, kwargs).detach().clone(), output))
        return output.clone()


@contextmanager
def track_execution(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list to which the name of each Linear layer is appended when it runs."""
    executed: list[str] = []
    with force_eager(), ExitStack() as hooks:
        for name, module in _get_linear_layers(model).items():
            hook = module.register_forward_hook(lambda *_, name=name: executed.append(name))
            hooks.callback(hook.remove)
        yield executed


def force_eager() -> AbstractContextManager[Any]:
    """Run compiled models eagerly: code compiled before a hook was registered skips the hook."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing has been compiled, and importing it takes seconds
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _get_linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


def _is_equal(output: Any, logits: Tensor) -> bool:
    """Return whether a model's output has the values of a layer's, in whatever dtype."""
    return (
        isinstance(output, Tensor)
        and output.shape == logits.shape
        and torch.allclose(output.float(), logits.float(), 0, 0, equal_nan=True)
    )


def _get_input(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """Return the input of a Linear layer, which may be passed by position or by name."""
    return args[0] if args else kwargs["input"]
