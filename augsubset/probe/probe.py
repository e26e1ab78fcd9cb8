"""Measure every example's last-layer gradient, and leave no trace in the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, Subset

from augsubset.batch import class_labels, is_classes, map_tensors, num_rows, split_batch
from augsubset.probe.eval_mode import untouched
from augsubset.probe.hooks import Capture
from augsubset.probe.logit_cache import Harvest
from augsubset.probe.residuals import Loss, by_autograd, check_logits, closed_form
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checks import AugsubsetError, check_choice, check_int
from augsubset.utils.progress import progress_bar

__all__ = ["GradientProbe", "model_device", "unwrapped"]

Forward = Callable[[nn.Module, Any], Tensor]

_recorded: WeakSet[nn.Module] = WeakSet()  # models whose training passes are, now
_HARVEST_CHUNK = 1 << 14  # recorded rows turned into residuals at once

_SPREAD = (
    "model must be whole on each rank to be probed, got one {}: a forward pass would wait for "
    "other ranks. Take a selector without gradients, such as RandomSelector(), or a probe of a "
    "model that is whole."
)


class Measured(NamedTuple):
    """One batch's gradients, on the model's device, float32.

    Args:
        residual: Gradient at the logits. ``(B, C)``
        losses: ``(B,)``
        inputs: Inputs of the last layer ``(B, d)``, for ``kind="last_layer"``.
        earlier: (gradient at the output, input) of each earlier layer.
    """

    residual: Tensor
    losses: Tensor
    inputs: Tensor | None = None
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()

    def cpu(self) -> Measured:
        return Measured(
            self.residual.cpu(),
            self.losses.cpu(),
            None if self.inputs is None else self.inputs.cpu(),
            tuple((gradient.cpu(), x.cpu()) for gradient, x in self.earlier),
        )


class GradientProbe:
    """Last-layer gradients of the loss, for every example of a dataset.

    At the logits of cross-entropy that is softmax(z) - onehot(y): one forward pass, no backward
    pass. Labels that are no class index an example (floats for regression, several a row, a list)
    put all examples in one group. The model runs in evaluation mode; weights, buffers, gradients,
    every module's ``training`` flag and all random generators are bit-identical afterwards. An
    ``autocast`` around :meth:`scan` applies to the forward pass; residuals are float32. An averaged
    copy of the model (``torch.optim.swa_utils.AveragedModel``) can be probed in its place. Of a
    compiled model the logits come from the compiled code, but for the first batch; where a layer is
    looked at, it runs as it was written.

    Args:
        model: Any module whose output is a ``(B, C)`` tensor of logits. Of one wrapped in
            ``DistributedDataParallel`` the module inside is probed: the wrapper's forward pass
            waits for other ranks.
        layer: ``"auto"``: the output of ``forward`` is the logits, and the last Linear layer that
            runs is found by execution order, see :attr:`layer_name`. A Linear module of the model
            or its name: that layer's output is the logits, whatever the model returns. A list for
            ``kind="last_layer"``: the last one's output is the logits, and the gradients in the
            weights of the others are added (the paper's "earlier layers").
        kind: ``"logits"``: the gradient at the logits. ``"last_layer"``: in the last layer's
            weights, residual ⊗ input, kept as its two factors.
        loss: ``"cross_entropy"``, ``"mse"`` (half the squared distance to the one-hot label, of
            gradient f - y; float labels are taken as they are), or a callable
            ``(logits (B, C), labels) -> losses (B,)``, with labels as the batch has them.
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
        layer: str | nn.Linear | Sequence[str | nn.Linear] = "auto",
        *,
        kind: Literal["logits", "last_layer"] = "logits",
        loss: Literal["cross_entropy", "mse"] | Loss = "cross_entropy",
        forward: Forward | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        check_choice("kind", kind, ("logits", "last_layer"))
        if not callable(loss):
            check_choice("loss", loss, ("cross_entropy", "mse"), "Or pass a callable.")
        self.model = unwrapped(model)
        self.layer_name: str | None = None
        """Name of the last Linear layer: as given, or as the last scan found it by execution."""
        self._kind = kind
        self._loss = loss
        self._layer: nn.Linear | None = None
        self._earlier: list[tuple[str, nn.Linear]] = []
        if isinstance(layer, (list, tuple)):
            if kind != "last_layer" or not layer:
                raise ValueError(
                    'layer must be one layer for kind="logits", and a list of at least one for '
                    f'kind="last_layer", got a list of {len(layer)} for kind={kind!r}.'
                )
            *self._earlier, (self.layer_name, self._layer) = (self._find(each) for each in layer)
            if len({name for name, _ in self._earlier} | {self.layer_name}) < len(layer):
                raise ValueError("layer must name distinct layers, got one of them twice.")
        elif not (isinstance(layer, str) and layer == "auto"):
            self.layer_name, self._layer = self._find(layer)  # type: ignore[arg-type]
        self._residual_and_losses = (
            closed_form(loss) if isinstance(loss, str) else by_autograd(loss)
        )
        self.forward = forward if forward is not None else _call
        self._device = None if device is None else torch.device(device)

    def _find(self, layer: str | nn.Module) -> tuple[str, nn.Linear]:
        linear = self._linear_layers()
        for name, module in self.model.named_modules():
            if module is layer or name == layer:
                if not isinstance(module, nn.Linear):
                    raise TypeError(
                        f"layer must be a torch.nn.Linear, got {type(module).__name__} {name!r}. "
                        f"Candidates: {sorted(linear)}."
                    )
                return name, module
        raise ValueError(
            f"layer must be a Linear layer of the model, got layer={layer!r}. "
            f"Candidates: {sorted(linear)}."
        )

    def _linear_layers(self) -> dict[str, nn.Linear]:
        modules = self.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, nn.Linear)}

    def check_alone(self) -> None:
        """Refuse a model that a rank cannot run by itself, because others hold parts of it.

        Ranks probe examples of their own, and as many batches as these are: a forward pass that
        needs the others would wait for them in vain, or mix their examples with its own.

        Raises:
            AugsubsetError: If a parameter is a DTensor, as FSDP2 and tensor parallelism make
                them, or a module is FSDP's.
        """
        for name, parameter in self.model.named_parameters():
            if hasattr(parameter, "to_local"):
                raise AugsubsetError(_SPREAD.format(f"of which {name!r} is a DTensor"))
        for module in self.model.modules():
            if type(module).__name__ == "FullyShardedDataParallel":
                raise AugsubsetError(_SPREAD.format("with FullyShardedDataParallel in it"))

    def scan(
        self,
        data: Any,
        *,
        batch_size: int = 512,
        num_workers: int = 0,
        progress: bool = False,
        prepare: Callable[[Any], tuple[Any, Any]] | None = None,
        indices: Sequence[int] | Tensor | None = None,
        reuse: Harvest | None = None,
        max_age: int = 0,
    ) -> LastLayerGradients:
        """Probe every example once, in order, or those whose indices are given.

        Args:
            data: A map-style dataset, or a DataLoader that neither shuffles nor drops.
            batch_size: Examples a forward pass, for a dataset.
            num_workers: Worker processes, for a dataset.
            progress: Show a bar over batches (needs tqdm).
            prepare: Turns a collated batch into (model inputs, labels); moving to the model's
                device is done here. ``None`` takes (inputs, labels) pairs and usual dicts.
            indices: Dataset indices to probe, distinct: a rank's shard, say. ``None``: all.
            reuse: What :meth:`attached` recorded: rows of at most ``max_age`` training passes
                are taken from there, and only the others are probed.
            max_age: In training passes.

        Returns:
            One row an example, on the CPU; ``indices`` as given, or 0..n-1; ``ages`` with
            ``reuse``.

        Raises:
            TypeError: If the model's output is no ``(B, C)`` tensor, or a batch has no labels.
            ValueError: If a DataLoader shuffles, data is empty, an index is out of range or
                repeated, or a residual is not finite.

        Cost:
            One forward pass over the data without autograd, one copy to the host a batch;
            4 n (C + d + 1) bytes, d with ``kind="last_layer"``. Earlier layers: a backward pass
            down to the first of them.
        """
        check_choice("progress", progress, (False, True))
        loader = _in_order(data, batch_size, num_workers)
        n = len(loader.dataset)  # type: ignore[arg-type]
        chosen = torch.arange(n) if indices is None else _distinct(indices, n)
        if reuse is None:
            return self._scanned(loader, chosen, prepare, progress)
        check_int("max_age", max_age, 0)
        ages = self._reusable(reuse, n)[chosen]
        is_fresh = (ages >= 0) & (ages <= max_age)
        if not bool(is_fresh.any()):
            return self._scanned(loader, chosen, prepare, progress, torch.zeros_like(ages))
        reused = self._harvested(reuse, chosen[is_fresh], ages[is_fresh])
        if bool(is_fresh.all()):
            return reused
        rest = chosen[~is_fresh]
        probed = self._scanned(loader, rest, prepare, progress, torch.zeros_like(rest))
        return _merged(reused, probed, is_fresh)

    def _scanned(
        self,
        loader: DataLoader[Any],
        chosen: Tensor,
        prepare: Callable[[Any], tuple[Any, Any]] | None,
        progress: bool,
        ages: Tensor | None = None,
    ) -> LastLayerGradients:
        """Probe some examples by forward passes."""
        if len(chosen) < len(loader.dataset):  # type: ignore[arg-type]
            loader = _of_few(loader, chosen)
        prepare = split_batch if prepare is None else prepare
        measured: list[Measured] = []
        labels = []
        device = self._device or model_device(self.model)
        with (
            untouched(self.model, device, loader.generator),
            progress_bar(progress, len(loader), "probing", "batch") as bar,
        ):
            for batch in loader:
                x, y = prepare(batch)
                x, target = map_tensors(lambda part: part.to(device), (x, y))
                with nullcontext() if measured else self._naming():
                    measured.append(self.measure(x, target).cpu())
                labels.append(class_labels(y))
                if bar is not None:
                    bar.update()
        if not measured:
            raise ValueError("data must hold at least one example, got an empty dataset.")
        return _gathered(measured, torch.cat(labels), chosen, ages)

    # Recycled probing.

    @contextmanager
    def attached(
        self, num_examples: int | None = None, *, into: Harvest | None = None
    ) -> Iterator[Harvest]:
        """Record logits of ordinary training passes while the block runs.

        They are the model's output, or that of the layer that was named; ``forward`` is not
        called. What ``torch.compile`` has compiled may leave out hooks that come later, on its
        layers and on the module inside: attach to the compiled model, with ``kind="logits"`` and
        ``layer="auto"``.

        The first pass is compared with the last layer's output, as in a scan, and waits for the
        device; no later one does. A pass of another length than announced raises
        ``AugsubsetError``, one without logits ``TypeError``.

        Args:
            num_examples: Examples in the dataset.
            into: A harvest to go on with; one of the two.

        Yields:
            The :class:`Harvest`: announce each pass with ``expect``, then hand it to
            ``scan(data, reuse=harvest, max_age=...)``.

        Raises:
            ValueError: If earlier layers are probed: their gradients need a backward pass.
            AugsubsetError: If passes of the model, or of one that holds it, are recorded already:
                which of the two an example was announced to could not be told.
        """
        if self._earlier:
            raise ValueError(
                "layer must be one layer to be recorded while training, got earlier layers too, "
                "whose gradients need a backward pass of their own."
            )
        if (num_examples is None) == (into is None):
            raise ValueError("exactly one of num_examples and into must be given.")
        harvest = Harvest(num_examples) if num_examples is not None else into
        assert harvest is not None
        for other in _recorded:
            if self.model in set(other.modules()) or other in set(self.model.modules()):
                raise AugsubsetError(
                    "this model's training passes are recorded already, by another loader with "
                    "recycle= whose epoch runs, or another attached(). Close that first."
                )

        def finished(module: nn.Module, args: Any, output: Any) -> None:
            if self.model.training and harvest.is_expecting:
                logits = captured.logits(output, verify=harvest.passes == 0)
                check_logits(logits, None, "Name the Linear layer whose output is: layer=.")
                harvest.record([logits] if captured.inputs is None else [logits, captured.inputs])

        with self._capture() as captured, ExitStack() as hooks:
            hooks.callback(harvest.cancel)
            _recorded.add(self.model)
            hooks.callback(_recorded.discard, self.model)
            hooks.callback(self.model.register_forward_pre_hook(captured.begin).remove)
            hooks.callback(self.model.register_forward_hook(finished).remove)
            yield harvest

    def _reusable(self, harvest: Harvest, n: int) -> Tensor:
        """Return the ages of what was recorded, or refuse it."""
        if not isinstance(harvest, Harvest):
            raise TypeError(f"reuse must be a Harvest, got {type(harvest).__name__}.")
        if len(harvest) != n:
            raise ValueError(f"reuse must be of the dataset's {n} examples, got {len(harvest)}.")
        if self._earlier:
            raise ValueError(
                "reuse must be None where earlier layers are probed, got a Harvest, which holds "
                "nothing of them."
            )
        if self._kind == "last_layer" and harvest.passes and not harvest.has_inputs:
            raise ValueError(
                'reuse must hold inputs of the last layer for kind="last_layer", got a Harvest '
                'of kind="logits".'
            )
        return harvest.ages

    def _harvested(self, harvest: Harvest, chosen: Tensor, ages: Tensor) -> LastLayerGradients:
        """Return gradients of recorded rows, from their logits."""
        measured: list[Measured] = []
        labels = []
        with untouched(self.model, harvest.device):
            for part in torch.split(chosen, _HARVEST_CHUNK):
                (logits, *inputs), y = harvest.rows(part)
                residual, losses = self._at_logits(logits, y.to(logits.device))
                kept = inputs[0] if self._kind == "last_layer" else None
                measured.append(Measured(residual, losses, kept).cpu())
                labels.append(y)
        return _gathered(measured, torch.cat(labels), chosen, ages)

    # One batch.

    def check(self, x: Any, y: Any) -> None:
        """Run one batch and refuse what a scan would refuse; no trace is left in the model."""
        device = self._device or model_device(self.model)
        with untouched(self.model, device):
            self.measure(*map_tensors(lambda part: part.to(device), (x, y)))

    @torch.no_grad()
    def measure(self, x: Any, y: Any) -> Measured:
        """Return one batch's gradients; the model's modes are the caller's."""
        sees_layers = self._layer is not None or self._kind == "last_layer"
        with (
            self._capture() as captured,
            torch.set_grad_enabled(bool(self._earlier)),
            _uncompiled() if sees_layers else nullcontext(),
        ):
            try:
                output = self.forward(self.model, x)
            except Exception as error:
                error.add_note(
                    f"Raised by the model, called on {_described(x)}, the inputs of a batch alone. "
                    "Where it takes something else, pass probe=GradientProbe(model, "
                    "forward=lambda model, x: ...), which returns logits."
                )
                raise
            logits = captured.logits(output)
        if self._loss == "mse" and isinstance(logits, Tensor) and logits.ndim == 1:
            logits = logits[:, None]
        check_logits(
            logits,
            num_rows(x),
            "Pass forward=lambda model, x: ... to a GradientProbe, and that as probe= to the "
            "loader.",
        )
        residual, losses = self._at_logits(logits.detach().float(), y)
        return Measured(
            residual, losses, captured.inputs, captured.earlier_gradients(logits, residual)
        )

    def _at_logits(self, logits: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        """Return residual and losses, in float32 whatever the caller's autocast says."""
        if (
            is_classes(y)
            and len(y)
            and not callable(self._loss)
            and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]
        ):
            raise ValueError(
                f"labels must be in 0..{logits.shape[1] - 1}, one of the model's "
                f"{logits.shape[1]} outputs, got labels from {int(y.min())} to {int(y.max())}."
            )
        with torch.autocast(logits.device.type, enabled=False):
            return self._residual_and_losses(logits, y)

    @contextmanager
    def _capture(self) -> Iterator[Capture]:
        """Hook the layers whose inputs or outputs are asked for."""
        named = self._linear_layers()
        with ExitStack() as hooks:
            captured = Capture(self._layer, self.layer_name, self._kind, named)
            watched = list(named.values()) if self._layer is None else [self._layer]
            if self._layer is not None or self._kind == "last_layer":
                for module in watched:
                    hook = module.register_forward_hook(captured.ran, with_kwargs=True)
                    hooks.callback(hook.remove)
            for name, module in self._earlier:
                captured.outputs[name] = []
                hook = module.register_forward_hook(
                    partial(captured.ran_earlier, name), with_kwargs=True
                )
                hooks.callback(hook.remove)
            yield captured

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the last Linear layer that runs; nothing where the layer is given."""
        executed: list[str] = []
        with ExitStack() as hooks:
            if self._layer is None:
                hooks.enter_context(_uncompiled())
                for name, module in self._linear_layers().items():
                    handle = module.register_forward_hook(
                        lambda *_, name=name: executed.append(name)
                    )
                    hooks.callback(handle.remove)
            yield
        if executed:
            self.layer_name = executed[-1]


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled code as it was written: what was compiled before leaves out hooks."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing is compiled, and the import takes seconds
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _in_order(data: Any, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a DataLoader over everything in order, or refuse one that is not."""
    if not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    # A batch_sampler of one's own hides behind a SequentialSampler and batch_size=None.
    in_order = isinstance(data.sampler, SequentialSampler) and data.batch_size is not None
    if not in_order or data.drop_last or len(data.sampler) != len(data.dataset):  # type: ignore[arg-type]
        raise ValueError(
            "data must come in order and whole, got a DataLoader that shuffles, drops or "
            "batches in its own way. Pass the dataset, or a DataLoader with "
            "shuffle=False, drop_last=False."
        )
    return data


def _of_few(loader: DataLoader[Any], chosen: Tensor) -> DataLoader[Any]:
    """Return the same loader over some of its examples."""
    return DataLoader(
        Subset(loader.dataset, chosen.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _distinct(indices: Sequence[int] | Tensor, n: int) -> Tensor:
    """Return dataset indices as int64, or refuse what is none."""
    chosen = indices.cpu() if isinstance(indices, Tensor) else torch.as_tensor(np.asarray(indices))
    if not chosen.numel():
        raise ValueError("indices must name at least one example, got none.")
    if chosen.ndim != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise TypeError(
            f"indices must be a list of ints, got shape {tuple(chosen.shape)}, {chosen.dtype}."
        )
    chosen = chosen.long()
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise ValueError(
            f"indices must be in 0..{n - 1}, got {int(chosen.min())} to {int(chosen.max())}."
        )
    if len(torch.unique(chosen)) != len(chosen):
        raise ValueError("indices must be distinct, got repeats.")
    return chosen


def _gathered(
    measured: Sequence[Measured], labels: Tensor, indices: Tensor, ages: Tensor | None = None
) -> LastLayerGradients:
    """Return batches of measurements as one value."""
    inputs = [each.inputs for each in measured if each.inputs is not None]
    layers = zip(*(each.earlier for each in measured), strict=True)
    return LastLayerGradients(
        residual=torch.cat([each.residual for each in measured]),
        inputs=torch.cat(inputs) if inputs else None,
        labels=labels,
        indices=indices,
        losses=torch.cat([each.losses for each in measured]),
        earlier=tuple(
            (torch.cat([gradient for gradient, _ in layer]), torch.cat([x for _, x in layer]))
            for layer in layers
        ),
        ages=ages,
    )


def _merged(
    reused: LastLayerGradients, probed: LastLayerGradients, is_reused: Tensor
) -> LastLayerGradients:
    """Return two parts as one; the mask says which rows are whose."""

    def rows(name: str) -> Tensor | None:
        value = getattr(probed, name)
        if value is None:
            return None
        merged: Tensor = value.new_empty(len(is_reused), *value.shape[1:])
        merged[is_reused], merged[~is_reused] = getattr(reused, name), value
        return merged

    names = ("residual", "inputs", "labels", "indices", "losses", "ages")
    return LastLayerGradients(**{name: rows(name) for name in names})  # type: ignore[arg-type]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what is inside DistributedDataParallel, compiled around it or not.

    Its forward pass sends buffers between ranks, and would wait where they probe other numbers of
    batches.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile's
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inside: nn.Module = inner.module
        return inside
    return model


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer, the CPU if it has none."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _call(model: nn.Module, inputs: Any) -> Tensor:
    output: Tensor = model(inputs)
    return output


def _described(x: Any) -> str:
    """Say what inputs are, for a message."""
    if isinstance(x, Tensor):
        return f"a tensor {tuple(x.shape)} {x.dtype}"
    if isinstance(x, Mapping):
        return f"a {type(x).__name__} of {', '.join(map(repr, x))}"
    return f"a {type(x).__name__}"
