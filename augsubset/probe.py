"""Measure every example's last-layer gradient, and leave no trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, SequentialSampler

from augsubset.batches import split_batch
from augsubset.errors import check_choice
from augsubset.gradients import LastLayerGradients
from augsubset.rng import forked_rng

__all__ = ["GradientProbe", "model_device"]

Forward = Callable[[nn.Module, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class GradientProbe:
    """Gradients of the loss with respect to the logits, for every example of a dataset.

    For cross-entropy that is softmax(z) - onehot(y): one forward pass, no backward pass. The model
    runs in evaluation mode; weights, buffers, gradients, every module's ``training`` flag and all
    random generators are bit-identical afterwards. An ``autocast`` around :meth:`scan` applies to
    the forward pass; residuals are float32.

    Args:
        model: Any module whose output is a ``(B, C)`` tensor of logits.
        layer: ``"auto"``: the output of ``forward`` is the logits, and the last Linear layer that
            runs is found by execution order, see :attr:`layer_name`. A Linear module of the model
            or its name: that layer's output is the logits, whatever the model returns.
        kind: ``"logits"``; the gradient in the last layer's weights is not implemented.
        loss: ``"cross_entropy"``, ``"mse"`` (half the squared distance to the one-hot label, of
            gradient f - y), or a callable ``(logits (B, C), labels (B,)) -> losses (B,)``.
        forward: ``(model, inputs) -> logits``, where calling the model is not enough.
        device: Where inputs go; ``None`` asks the model's first parameter at each scan.

    Raises:
        TypeError: If the model is no module, or the layer no Linear.
        ValueError: If a value is unknown, or the layer is not one of the model's; the error names
            the candidates.

    Reference:
        Liu & Mirzasoleiman, section 4; Katharopoulos & Fleuret, 2018 (arXiv:1803.00942).
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Linear = "auto",
        *,
        kind: Literal["logits"] = "logits",
        loss: Literal["cross_entropy", "mse"] | Loss = "cross_entropy",
        forward: Forward | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        check_choice("kind", kind, ("logits",))
        if not callable(loss):
            check_choice("loss", loss, ("cross_entropy", "mse"), "Or pass a callable.")
        self.model = model
        self.layer_name: str | None = None
        """Name of the last Linear layer: as given, or as the last scan found it by execution."""
        self._layer = None if layer == "auto" else self._find(layer)
        self._losses_and_residual = (
            _closed_form(loss) if isinstance(loss, str) else _by_autograd(loss)
        )
        self._forward = forward if forward is not None else _call
        self._device = None if device is None else torch.device(device)

    def _find(self, layer: str | nn.Module) -> nn.Linear:
        candidates = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        }
        for name, module in self.model.named_modules():
            if module is layer or name == layer:
                if not isinstance(module, nn.Linear):
                    raise TypeError(
                        f"layer must be a torch.nn.Linear, got {type(module).__name__} {name!r}. "
                        f"Candidates: {sorted(candidates)}."
                    )
                self.layer_name = name
                return module
        raise ValueError(
            f"layer must be a Linear layer of the model, got layer={layer!r}. "
            f"Candidates: {sorted(candidates)}."
        )

    def scan(
        self,
        data: Any,
        *,
        batch_size: int = 512,
        num_workers: int = 0,
        progress: bool = False,
        prepare: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    ) -> LastLayerGradients:
        """Probe every example once, in order.

        Args:
            data: A map-style dataset, or a DataLoader that neither shuffles nor drops.
            batch_size: Examples a forward pass, for a dataset.
            num_workers: Worker processes, for a dataset.
            progress: Not implemented; ``False``.
            prepare: Turns a collated batch into (model inputs, labels); moving to the model's
                device is done here. ``None`` takes (inputs, labels) pairs and usual dicts.

        Returns:
            One row an example, on the CPU, ``indices`` 0..n-1.

        Raises:
            TypeError: If the model's output is no ``(B, C)`` tensor, or a batch has no labels.
            ValueError: If a DataLoader shuffles, data is empty, or a residual is not finite.

        Cost:
            One forward pass over the data without autograd, one copy to the host a batch;
            4 n (C + 1) bytes.
        """
        check_choice("progress", progress, (False,))
        if isinstance(data, DataLoader):
            # A batch_sampler of one's own hides behind a SequentialSampler and batch_size=None.
            in_order = isinstance(data.sampler, SequentialSampler) and data.batch_size is not None
            if not in_order or data.drop_last or len(data.sampler) != len(data.dataset):  # type: ignore[arg-type]
                raise ValueError(
                    "data must come in order and whole, got a DataLoader that shuffles, drops or "
                    "batches in its own way. Pass the dataset, or a DataLoader with "
                    "shuffle=False, drop_last=False."
                )
            loader = data
        else:
            loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers)
        prepare = split_batch if prepare is None else prepare
        residuals, losses, labels = [], [], []
        device = self._device or model_device(self.model)
        with self._untouched(device), self._execution_order() as executed:
            for batch in loader:
                x, y = prepare(batch)
                residual, loss = self.measure(x.to(device), y.to(device))
                residuals.append(residual.cpu())
                losses.append(loss.cpu())
                labels.append(y.cpu())
        if executed:
            self.layer_name = executed[-1]
        if not residuals:
            raise ValueError("data must hold at least one example, got an empty dataset.")
        residual = torch.cat(residuals)
        return LastLayerGradients(
            residual=residual,
            inputs=None,
            labels=torch.cat(labels),
            indices=torch.arange(len(residual)),
            losses=torch.cat(losses),
        )

    def check(self, x: Tensor, y: Tensor) -> None:
        """Run one batch and refuse what a scan would refuse; no trace is left in the model."""
        device = self._device or model_device(self.model)
        with self._untouched(device):
            self.measure(x.to(device), y.to(device))

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (residual (B, C), losses (B,)) of one batch on the model's device, float32."""
        with ExitStack() as hooks:
            captured: list[Tensor] = []
            if self._layer is not None:
                handle = self._layer.register_forward_hook(lambda *call: captured.append(call[2]))
                hooks.callback(handle.remove)
            logits = self._forward(self.model, x)
        if self._layer is not None:
            if not captured:
                raise ValueError(
                    f"layer must run when the model does, got layer={self.layer_name!r}, "
                    "which did not."
                )
            logits = captured[-1]
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
            raise TypeError(
                f"the model's output must be a (B, C) tensor of logits for {len(x)} inputs, got "
                f"{type(logits).__name__}{shape}. Pass forward=lambda model, x: ... to a "
                "GradientProbe, and that as probe= to the loader."
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
                raise ValueError(
                    f"labels must be in 0..{logits.shape[1] - 1}, one of the model's "
                    f"{logits.shape[1]} outputs, got labels from {int(y.min())} to {int(y.max())}."
                )
            return self._losses_and_residual(logits, y)

    @contextmanager
    def _untouched(self, device: torch.device) -> Iterator[None]:
        """Evaluation mode and seeded generators inside; everything as it was outside."""
        for name, parameter in chain(self.model.named_parameters(), self.model.named_buffers()):
            if is_lazy(parameter):
                raise ValueError(
                    f"model must be initialised, got the lazy parameter {name!r}. Run one batch "
                    "through it first: the probe would draw its weights under a seed of its own."
                )
        training = {module: module.training for module in self.model.modules()}
        buffers = [
            (module, name, buffer, buffer.clone())
            for module in training
            for name, buffer in module.named_buffers(recurse=False)
        ]
        try:
            with forked_rng(0, [device]):
                # Not model.eval(): some models do work there, such as merging adapter weights.
                for module in training:
                    module.training = False
                yield
        finally:
            for module, flag in training.items():
                module.training = flag
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    setattr(module, name, buffer)
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)

    @contextmanager
    def _execution_order(self) -> Iterator[list[str]]:
        """Collect the names of Linear layers as they run; nothing where the layer is given."""
        executed: list[str] = []
        with ExitStack() as hooks:
            if self._layer is None:
                for name, module in self.model.named_modules():
                    if isinstance(module, nn.Linear):
                        handle = module.register_forward_hook(
                            lambda *_, name=name: executed.append(name)
                        )
                        hooks.callback(handle.remove)
            yield executed


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer, the CPU if it has none."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _call(model: nn.Module, inputs: Tensor) -> Tensor:
    output: Tensor = model(inputs)
    return output


def _closed_form(loss: str) -> Measure:
    """Return losses and residual for the two losses whose residual is a formula."""

    def measure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if loss == "mse":
            residual = logits - target
            return residual, 0.5 * residual.square().sum(1)
        return logits.softmax(1) - target, F.cross_entropy(logits, labels, reduction="none")

    return measure


def _by_autograd(loss: Loss) -> Measure:
    def measure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = loss(leaf, labels)
            if not isinstance(losses, Tensor) or losses.shape != (len(logits),):
                raise ValueError(
                    f"loss must return one value an example ({len(logits)},), got "
                    f"{tuple(losses.shape) if isinstance(losses, Tensor) else type(losses)}. "
                    'Pass reduction="none".'
                )
            (residual,) = torch.autograd.grad(losses.sum(), leaf)
        return residual, losses.detach()

    return measure
