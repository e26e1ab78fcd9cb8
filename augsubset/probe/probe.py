"""Compute the last-layer gradient of every example, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from augsubset.batch import class_labels, num_rows, split_batch
from augsubset.probe.batch_gradients import BatchGradients, concatenate_batches, merge_gradients
from augsubset.probe.eval_mode import evaluation_mode
from augsubset.probe.hooks import Capture, find_linear_layer, force_eager, track_execution
from augsubset.probe.loading import check_indices, make_ordered_loader, restrict_loader
from augsubset.probe.logit_cache import LogitCache
from augsubset.probe.residuals import Loss, check_logits, compute_residual
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checks import AugsubsetError, check_choice, check_int
from augsubset.utils.progress import progress_bar
from augsubset.utils.torch_utils import (
    get_half_dtype,
    get_model_device,
    map_tensors,
    unwrap_model,
)

__all__ = ["GradientProbe"]

Forward = Callable[[nn.Module, Any], Tensor]
Prepare = Callable[[Any], tuple[Any, Any]]

_recorded_models: WeakSet[nn.Module] = WeakSet()  # those that attached() records at the moment
_CACHE_CHUNK = 1 << 14  # cached rows turned into residuals at once, which bounds memory

_SPLIT_MODEL = (
    "model must be whole on each rank to be probed, got one {}: its forward pass would wait for "
    "other ranks. Use a selector that needs no gradients, such as RandomSelector(), or probe a "
    "model that is not split over ranks."
)


class GradientProbe:
    """Computes the last-layer gradient of the loss for every example of a dataset.

    For cross-entropy, the gradient with respect to the logits is softmax(z) - onehot(y): one
    forward pass, no backward pass. Labels other than one class index per example (floats for
    regression, several per row, a list) put all examples in one group.

    The model runs in evaluation mode. Weights, buffers, gradients, every module's ``training``
    flag and all random number generators are bit-identical afterwards. An ``autocast`` around
    :meth:`scan` applies to the forward pass; residuals are float32. An averaged copy of the model
    (``torch.optim.swa_utils.AveragedModel``) can be probed instead. A compiled model runs
    compiled from the second batch on; with ``layer`` or ``kind="last_layer"``, which need hooks
    inside the model, it runs eagerly.

    Args:
        model: Any module whose output is a ``(B, C)`` tensor of logits. Inside
            ``DistributedDataParallel`` the wrapped module is probed, as the wrapper's forward
            pass waits for other ranks.
        layer: ``"auto"``: the output of ``forward`` is the logits, and the last layer is the
            Linear layer that runs last, see :attr:`layer_name`. A Linear module of the model or
            its name: the output of that layer is the logits, whatever the model returns. A list,
            for ``kind="last_layer"`` only: the output of the last one is the logits, and gradients
            with respect to the others' weights are added (the paper's "earlier layers").
        kind: ``"logits"``: the gradient with respect to the logits. ``"last_layer"``: with
            respect to the last layer's weights, residual ⊗ input, stored as these two factors.
        loss: ``"cross_entropy"``; ``"mse"``, half the squared distance to the one-hot label or to
            float labels, with residual f - y; or a callable
            ``(logits (B, C), labels) -> losses (B,)``, which gets labels as they are in the batch.
        forward: ``(model, inputs) -> logits``, if ``model(inputs)`` is not enough; that call casts
            inputs to the dtype of a half-precision model.
        device: Device to move inputs to; ``None``: that of the model's first parameter.

    Raises:
        TypeError: If the model is not a module, or the layer not a Linear.
        ValueError: If an option is unknown, or the layer is not one of the model's; the error
            lists the candidates.

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
        self.model = unwrap_model(model)
        self.layer_name: str | None = None
        """Name of the last layer: as given, or the Linear layer that ran last in the last scan."""
        self._kind = kind
        self._loss = loss
        self._layer: tuple[str, nn.Linear] | None = None
        self._earlier: list[tuple[str, nn.Linear]] = []
        if isinstance(layer, (list, tuple)):
            if kind != "last_layer" or not layer:
                raise ValueError(
                    'layer must be one layer for kind="logits", and a list of at least one for '
                    f'kind="last_layer", got a list of {len(layer)} for kind={kind!r}.'
                )
            *self._earlier, self._layer = (find_linear_layer(self.model, each) for each in layer)
            if len({name for name, _ in (*self._earlier, self._layer)}) < len(layer):
                raise ValueError("layer must name distinct layers, got one of them twice.")
        elif not (isinstance(layer, str) and layer == "auto"):
            self._layer = find_linear_layer(self.model, layer)  # type: ignore[arg-type]
        if self._layer is not None:
            self.layer_name = self._layer[0]
        self.forward = forward if forward is not None else _call_model
        self.has_own_forward = forward is not None
        self._device = None if device is None else torch.device(device)

    def check_alone(self) -> None:
        """Check that a rank can run the model without the others.

        Each rank probes its own examples, in its own number of batches. The forward pass of a
        model that is split over ranks would hang, or mix the examples of several ranks.

        Raises:
            AugsubsetError: If a parameter is a DTensor, as FSDP2 and tensor parallelism make
                them, or a module is a FullyShardedDataParallel.
        """
        for name, parameter in self.model.named_parameters():
            if hasattr(parameter, "to_local"):
                raise AugsubsetError(_SPLIT_MODEL.format(f"of which {name!r} is a DTensor"))
        for module in self.model.modules():
            if type(module).__name__ == "FullyShardedDataParallel":
                raise AugsubsetError(_SPLIT_MODEL.format("with FullyShardedDataParallel in it"))

    def scan(
        self,
        data: Any,
        *,
        batch_size: int = 512,
        num_workers: int = 0,
        progress: bool = False,
        prepare: Prepare | None = None,
        indices: Sequence[int] | Tensor | None = None,
        reuse: LogitCache | None = None,
        max_age: int = 0,
    ) -> LastLayerGradients:
        """Return the gradients of all examples in dataset order, or of those given by index.

        Args:
            data: A map-style dataset, or a DataLoader that neither shuffles nor drops examples.
            batch_size: Examples per forward pass, if data is a dataset.
            num_workers: Worker processes, if data is a dataset.
            progress: Show a progress bar over batches (needs tqdm).
            prepare: Turns a collated batch into (model inputs, labels), which are then moved to
                the model's device. ``None`` accepts pairs, and dicts with the usual names.
            indices: Distinct dataset indices to probe, such as a rank's shard. ``None``: all.
            reuse: Cache filled under :meth:`attached`: examples recorded at most ``max_age``
                training passes ago are taken from it, and only the others are probed.
            max_age: In training passes.

        Returns:
            One row per example, on the CPU; ``indices`` as given, or 0..n-1; with ``ages`` if
            ``reuse`` is given.

        Raises:
            TypeError: If the model's output is not a ``(B, C)`` tensor, or a batch has no labels.
            ValueError: If a DataLoader shuffles, data is empty, an index is out of range or
                repeated, or a residual is not finite.

        Cost:
            One forward pass over the data without autograd, and one copy to the CPU per batch;
            4 n (C + d + 1) bytes, where d is 0 for ``kind="logits"``. Earlier layers: also a
            backward pass down to the first of them.
        """
        check_choice("progress", progress, (False, True))
        loader = make_ordered_loader(data, batch_size, num_workers)
        n = len(loader.dataset)  # type: ignore[arg-type]
        chosen = torch.arange(n) if indices is None else check_indices(indices, n)
        prepare = split_batch if prepare is None else prepare
        probe = partial(self._probe_examples, loader, prepare, progress)
        if reuse is None:
            return probe(chosen)
        check_int("max_age", max_age, 0)
        self._check_cache(reuse, n)
        ages = reuse.ages[chosen]
        is_fresh = (ages >= 0) & (ages <= max_age)
        if not bool(is_fresh.any()):
            return probe(chosen, torch.zeros_like(ages))
        reused = self._read_cache(reuse, chosen[is_fresh], ages[is_fresh])
        if bool(is_fresh.all()):
            return reused
        rest = chosen[~is_fresh]
        return merge_gradients(reused, probe(rest, torch.zeros_like(rest)), is_fresh)

    def _probe_examples(
        self,
        loader: DataLoader[Any],
        prepare: Prepare,
        progress: bool,
        chosen: Tensor,
        ages: Tensor | None = None,
    ) -> LastLayerGradients:
        """Return the gradients of some examples, by forward passes."""
        if len(chosen) < len(loader.dataset):  # type: ignore[arg-type]
            loader = restrict_loader(loader, chosen)
        batches: list[BatchGradients] = []
        labels = []
        device = self._device or get_model_device(self.model)
        with (
            evaluation_mode(self.model, device, loader.generator),
            progress_bar(progress, len(loader), "probing", "batch") as bar,
        ):
            for batch in loader:
                x, y = prepare(batch)
                x, target = map_tensors(lambda part: part.to(device), (x, y))
                with nullcontext() if batches else self._find_last_layer():
                    batches.append(map_tensors(Tensor.cpu, self.measure(x, target)))
                labels.append(class_labels(y))
                if bar is not None:
                    bar.update()
        if not batches:
            raise ValueError("data must hold at least one example, got an empty dataset.")
        return concatenate_batches(batches, torch.cat(labels), chosen, ages)

    @contextmanager
    def _find_last_layer(self) -> Iterator[None]:
        """Set :attr:`layer_name` to the Linear layer that runs last in the block."""
        if self._layer is not None:
            yield
            return
        with track_execution(self.model) as executed:
            yield
        if executed:
            self.layer_name = executed[-1]

    # Reuse of logits from training.

    @contextmanager
    def attached(
        self, num_examples: int | None = None, *, into: LogitCache | None = None
    ) -> Iterator[LogitCache]:
        """Record logits of ordinary training passes while the block runs.

        These are the model's output, or that of the layer that was named; ``forward`` is not
        called. Code that ``torch.compile`` compiled earlier can skip hooks on layers and on the
        module inside: for a compiled model, attach to the compiled module itself, with
        ``kind="logits"`` and ``layer="auto"``.

        With ``kind="last_layer"`` and ``layer="auto"`` the first pass is compared with the output
        of the last layer, as in a scan, which synchronises the device; later passes do not. A
        pass with another number of rows than announced raises ``AugsubsetError``, one that
        returns no logits ``TypeError``.

        Args:
            num_examples: Size of the dataset, for a new cache.
            into: A cache to continue. Pass one of the two.

        Yields:
            The :class:`LogitCache`: call its ``expect`` before each pass, then pass it to
            ``scan(data, reuse=cache, max_age=...)``.

        Raises:
            ValueError: If earlier layers are probed: their gradients need a backward pass.
            AugsubsetError: If this model, or one that contains it or is part of it, is being
                recorded already: an announcement could belong to either.
        """
        if self._earlier:
            raise ValueError(
                "layer must be one layer to be recorded during training, got earlier layers too, "
                "whose gradients need a separate backward pass."
            )
        if (num_examples is None) == (into is None):
            raise ValueError("exactly one of num_examples and into must be given.")
        cache = LogitCache(num_examples) if num_examples is not None else into
        assert cache is not None
        for other in _recorded_models:
            if self.model in set(other.modules()) or other in set(self.model.modules()):
                raise AugsubsetError(
                    "training passes of this model are recorded already, by another loader with "
                    "recycle= in the middle of an epoch or another attached(). Close that first."
                )

        def record_pass(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self.model.training and cache.is_expecting((args, kwargs)):
                logits = captured.get_logits(output, verify=cache.passes == 0)
                check_logits(logits, None, "Pass as layer= the Linear layer that outputs them.")
                cache.record([logits] if captured.inputs is None else [logits, captured.inputs])

        with self._capture() as captured, ExitStack() as hooks:
            hooks.callback(cache.cancel)
            _recorded_models.add(self.model)
            hooks.callback(_recorded_models.discard, self.model)
            hooks.callback(self.model.register_forward_pre_hook(captured.reset).remove)
            hook = self.model.register_forward_hook(record_pass, with_kwargs=True)
            hooks.callback(hook.remove)
            yield cache

    def _check_cache(self, cache: LogitCache, n: int) -> None:
        """Check that a cache belongs to the dataset and has what this probe needs."""
        if not isinstance(cache, LogitCache):
            raise TypeError(f"reuse must be a LogitCache, got {type(cache).__name__}.")
        if len(cache) != n:
            raise ValueError(f"reuse must hold the dataset's {n} examples, got {len(cache)}.")
        if self._earlier:
            raise ValueError(
                "reuse must be None if earlier layers are probed, got a LogitCache, which does "
                "not record them."
            )
        if self._kind == "last_layer" and cache.passes and not cache.has_inputs:
            raise ValueError(
                'reuse must hold inputs of the last layer for kind="last_layer", got a LogitCache '
                'filled with kind="logits".'
            )

    def _read_cache(self, cache: LogitCache, chosen: Tensor, ages: Tensor) -> LastLayerGradients:
        """Return the gradients of some examples, from their cached logits."""
        batches: list[BatchGradients] = []
        labels = []
        # For a callable loss: it may draw random numbers, and inference mode has no autograd.
        with evaluation_mode(self.model, cache.device):
            for part in torch.split(chosen, _CACHE_CHUNK):
                (logits, *inputs), y = cache.rows(part)
                residual, losses = compute_residual(logits, y.to(logits.device), self._loss)
                kept = inputs[0] if self._kind == "last_layer" else None
                batches.append(map_tensors(Tensor.cpu, BatchGradients(residual, losses, kept)))
                labels.append(y)
        return concatenate_batches(batches, torch.cat(labels), chosen, ages)

    # One batch.

    def check(self, x: Any, y: Any) -> int | None:
        """Run one batch, and raise what a scan would raise; the model is left as it was.

        Returns:
            The number of outputs, which no number of classes exceeds; ``None`` for a loss that is a
            function, whose outputs need not be classes.
        """
        device = self._device or get_model_device(self.model)
        with evaluation_mode(self.model, device):
            measured = self.measure(*map_tensors(lambda part: part.to(device), (x, y)))
        return measured.residual.shape[1] if isinstance(self._loss, str) else None

    @torch.no_grad()
    def measure(self, x: Any, y: Any) -> BatchGradients:
        """Return the gradients of one batch, in whatever mode the model is in."""
        needs_hooks = self._layer is not None or self._kind == "last_layer"
        with (
            self._capture() as captured,
            torch.set_grad_enabled(bool(self._earlier)),
            force_eager() if needs_hooks else nullcontext(),
        ):
            half = None if self.has_own_forward else get_half_dtype(self.model)
            if half is not None:
                x = map_tensors(lambda part: part.to(half) if part.is_floating_point() else part, x)
            try:
                output = self.forward(self.model, x)
            except Exception as error:
                error.add_note(
                    f"Raised by the model, called on {_describe(x)}, only the inputs of a batch. "
                    "If it takes something else, pass probe=GradientProbe(model, "
                    "forward=lambda model, x: ...), which returns logits."
                )
                raise
            logits = captured.get_logits(output)
        if self._loss == "mse" and isinstance(logits, Tensor) and logits.ndim == 1:
            logits = logits[:, None]
        check_logits(
            logits,
            num_rows(x),
            "Pass forward=lambda model, x: ... to a GradientProbe, and that as probe= to the "
            "loader.",
        )
        residual, losses = compute_residual(logits.detach().float(), y, self._loss)
        return BatchGradients(
            residual, losses, captured.inputs, captured.compute_earlier_gradients(logits, residual)
        )

    def _capture(self) -> AbstractContextManager[Capture]:
        return Capture(self.model, self._kind, self._layer, self._earlier).register_hooks()


def _call_model(model: nn.Module, inputs: Any) -> Tensor:
    output: Tensor = model(inputs)
    return output


def _describe(x: Any) -> str:
    """Return a short description of model inputs, for an error message."""
    if isinstance(x, Tensor):
        return f"a tensor {tuple(x.shape)} {x.dtype}"
    if isinstance(x, Mapping):
        return f"a {type(x).__name__} of {', '.join(map(repr, x))}"
    return f"a {type(x).__name__}"
