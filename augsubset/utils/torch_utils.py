"""Small helpers for tensors and modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from augsubset.utils.checks import AugsubsetError

__all__ = [
    "check_range",
    "check_weights_finite",
    "get_half_dtype",
    "get_model_device",
    "is_unit",
    "keep_if_captured",
    "map_leaves",
    "map_tensors",
    "read_options",
    "rebuild_loader",
    "to_device_async",
    "unwrap_model",
]

# A quarter of an 8-bit level: what resizing adds in rounding, or normalising and undoing it.
_ROUNDING = 1e-3
_BITS_OF_ONE = np.float32(1).view(np.uint32)

# What CUDA graphs copy to a device anew at each replay.
_captured: list[Tensor] = []

_OPTIONS = (
    *("batch_size", "num_workers", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor"),
    *("multiprocessing_context", "persistent_workers", "in_order"),  # the last since torch 2.6
)


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the device's queued work.

    A copy from pageable memory would wait, so the values are copied to pinned memory first.
    """
    is_on_cpu = values.device.type == "cpu" and values.layout == torch.strided
    if device.type != "cuda" or not is_on_cpu:
        return values.to(device)
    return keep_if_captured(values.pin_memory(), device).to(device, non_blocking=True)


def keep_if_captured(pinned: Tensor, device: torch.device) -> Tensor:
    """Return pinned values; while a CUDA graph is captured keep them, as replays copy them anew."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)
    return pinned


def check_range(rule: str, low: Tensor, high: Tensor, hint: str) -> None:
    """Raise if values leave [0, 1] by more than rounding.

    Args:
        rule: Begins the message.
        low: The least value.
        high: The largest.
        hint: Ends the message.

    Raises:
        ValueError: If they do, or are NaN.
    """
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN fails
        raise ValueError(f"{rule}, got values from {float(low):.6g} to {float(high):.6g}. {hint}")


def is_unit(x: Tensor) -> bool:
    """Return True if float32 values on the CPU are in [0, 1]; False means unknown.

    Read as integers, the bits of floats in [0, 1] are at most those of 1, and a sign or a NaN
    exceeds them: one maximum by NumPy takes half the time of torch's aminmax.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0:
        return False
    return bool(x.detach().numpy().view(np.uint32).max() <= _BITS_OF_ONE)


def map_tensors(function: Callable[[Tensor], Any], part: Any) -> Any:
    """Return a nested structure with the function applied to each tensor in it."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, part)


def map_leaves(function: Callable[[Any], Any], part: Any) -> Any:
    """Return a nested structure with the function applied to all but its containers."""
    if isinstance(part, Mapping):
        mapped = {name: map_leaves(function, value) for name, value in part.items()}
        if type(part) is dict or not isinstance(part, MutableMapping):
            return mapped
        result: Any = copy.copy(part)  # keeps a custom type and its other attributes
        for name, value in mapped.items():
            result[name] = value
        return result
    if isinstance(part, tuple) and hasattr(part, "_replace"):
        return type(part)(*(map_leaves(function, value) for value in part))
    if isinstance(part, (list, tuple)):
        return type(part)(map_leaves(function, value) for value in part)
    return function(part)


def read_options(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return a DataLoader's arguments, except dataset, order, generator and collation."""
    return {name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)}


def rebuild_loader(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return a DataLoader with the same arguments, except for order and what is passed here."""
    names = ("dataset", "drop_last", "collate_fn", "generator")
    same = {name: getattr(loader, name) for name in names}
    return DataLoader(**{**same, **read_options(loader), **changes})


def get_model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has neither."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def get_half_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a half-precision model's first floating parameter, ``None`` for others.

    Under autocast parameters are float32.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, compiled or not, or the module itself.

    The wrapper's forward pass broadcasts buffers, which would deadlock if ranks run different
    numbers of batches.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile's
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inside: nn.Module = inner.module
        return inside
    return model


@torch.no_grad()
def check_weights_finite(model: nn.Module, epoch: int) -> None:
    """Check that all trained weights are finite, and name the first parameter that is not.

    Each rank checks its own weights, which training keeps equal. A selection that probes comes
    first, and fails on all ranks together.

    Raises:
        AugsubsetError: If a trained parameter holds a NaN or infinite value.

    Cost:
        One reduction per parameter and one wait for the device.
    """
    trained = {
        name: parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_lazy(parameter)
    }
    # isfinite supports neither one-byte floats nor other libraries' tensor subclasses.
    checked = {
        name: values
        for name, values in trained.items()
        if type(values) is Tensor and not values.is_meta and values.layout == torch.strided
        if values.is_floating_point() and values.element_size() > 1 and values.numel()
    }
    if not checked:
        return
    # The maximum norm is NaN if any value is; isfinite would need a mask as large as the model.
    norms = [torch.linalg.vector_norm(values, torch.inf) for values in checked.values()]
    are_finite = torch.stack([norm.isfinite().to(norms[0].device) for norm in norms])
    for (name, values), is_finite in zip(checked.items(), are_finite.tolist(), strict=True):
        if not is_finite:
            number = int((~values.isfinite()).sum())
            raise AugsubsetError(
                f"model weights must be finite when an epoch starts, got {number} non-finite of "
                f"{values.numel()} values in {name!r} at epoch {epoch}. The loss was NaN or "
                "infinite: go back to an older checkpoint, and lower the learning rate, clip "
                "gradients or check the loss scale."
            )
