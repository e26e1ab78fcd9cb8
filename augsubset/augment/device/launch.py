"""Load the compiled kernels through the CUDA driver, and launch them on torch's tensors."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment.device.compiler import find_cubin
from augsubset.augment.plan import SOURCE, count_columns, stage_ops
from augsubset.augment.random import get_quantiles
from augsubset.utils.torch_utils import to_device_async

__all__ = ["OUT_TYPES", "Arguments", "augment_rows", "deliver_rows", "find_obstacle"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

OUT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""The number in ``rows.cu`` of each dtype that images are delivered in."""

_KERNELS = ("augment_rows", "deliver_rows")
_DEVICE_TYPES = ("cuda",)
# Coordinates are float32, and positions within an image 32-bit integers.
_MAX_PIXELS, _MAX_VALUES = 1 << 23, 1 << 31


class Arguments(ctypes.Structure):
    """The one argument of every kernel, laid out as the struct in ``rows.cu``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("images", "out", "scratch", "plan")),
        *((name, ctypes.c_void_p) for name in ("statistics", "quantiles")),
        *((name, ctypes.c_int) for name in ("rows", "height", "width", "slots", "num_params")),
        *((name, ctypes.c_int) for name in ("plan_width", "out_type", "is_normalised")),
        *((name, ctypes.c_int) for name in ("is_reflected", "is_channels_last")),
    )


# Kernels, or why there are none, by process, device, whether pixels are bytes, and channels. A
# handle is of no use to another process, so none is kept on an object that could be pickled.
_loaded: dict[tuple[int, torch.device, bool, int], tuple[Any, ...] | str] = {}


def find_obstacle(x: Tensor) -> str | None:
    """Return why images cannot go through one launch, ``None`` if they can.

    Args:
        x: ``(B, C, H, W)`` uint8 or float32.

    Cost:
        The first call for a device, dtype and number of channels loads the code, which is compiled
        once per machine: about a second.
    """
    if x.device.type not in _DEVICE_TYPES or torch.version.hip is not None:
        return "it needs CUDA"
    channels, height, width = x.shape[1:]
    if height * width >= _MAX_PIXELS or channels * height * width >= _MAX_VALUES:
        return "images are too large"
    kernels = _load(x.device, x.dtype == torch.uint8, channels)
    return kernels if isinstance(kernels, str) else None


def augment_rows(x: Tensor, op: Int64Array, params: Float32Array, codes: Int64Array) -> Tensor:
    """Return the images after their rows' operations, in one launch on the current stream.

    Args:
        x: ``(B, C, H, W)`` uint8 or float32, contiguous, on a device that can.
        op: Operation of each row and slot, -1 for none. ``(B, S)``
        params: ``(B, S, P)``
        codes: Kernel code of each operation; the last entry is for op -1.
    """
    num_rows, num_slots, num_params = params.shape
    lines = np.zeros((num_rows, count_columns(num_slots, num_params)), np.int32)
    rows = np.arange(num_rows)
    lines[:, SOURCE] = rows
    stage_ops(op, params, codes, x.dtype == torch.uint8, rows, lines)
    out = torch.empty_like(x)
    scratch = torch.empty_like(x) if num_slots > 1 else out
    _launch(
        0,
        x,
        out,
        scratch=scratch,
        plan=to_device_async(torch.from_numpy(lines), x.device),
        rows=num_rows,
        slots=num_slots,
        num_params=num_params,
        plan_width=lines.shape[1],
    )
    return out


def deliver_rows(
    images: Tensor,
    out: Tensor,
    plan: Tensor,
    *,
    num_slots: int,
    num_params: int,
    has_copies: bool,
    statistics: Tensor | None,
    is_reflected: bool,
    is_channels_last: bool,
) -> None:
    """Write images as the model takes them, in one launch on the current stream.

    Args:
        images: ``(B, C, H, W)`` uint8 or float32, contiguous, on a device that can.
        out: Of the same shape, of a dtype in :data:`OUT_TYPES`.
        plan: Begins with the staged plan, ``(B, W)`` int32.
        num_slots: Operations that a line has room for.
        num_params: Parameters of each.
        has_copies: Whether a row has operations at all.
        statistics: Of bytes what scales them and is subtracted then, of floats mean and standard
            deviation, ``(2, C, 1, 1)`` float32; ``None``: bytes are divided by 255.
        is_reflected: Whether crops see the mirrored image outside, not zeros.
        is_channels_last: Whether that is the memory format of ``out``.
    """
    num_buffers = 2 if images.is_floating_point() else min(num_slots, 2)
    size = (num_buffers * len(out), *images.shape[1:]) if has_copies else (0,)
    _launch(
        1,
        images,
        out,
        scratch=torch.empty(size, dtype=images.dtype, device=images.device),
        plan=plan,
        statistics=statistics,
        rows=len(out),
        slots=num_slots,
        num_params=num_params,
        plan_width=count_columns(num_slots, num_params),
        out_type=OUT_TYPES[out.dtype],
        is_normalised=statistics is not None,
        is_reflected=is_reflected,
        is_channels_last=is_channels_last,
    )


def _launch(
    kernel: int, images: Tensor, out: Tensor, *, rows: int, **arguments: Tensor | int | None
) -> None:
    """Launch a kernel of ``_KERNELS`` with a block a row; arguments are those of the struct."""
    device, (channels, height, width) = images.device, images.shape[1:]
    arguments |= {"images": images, "out": out, "quantiles": get_quantiles(device)}
    packed = Arguments(
        rows=rows,
        height=height,
        width=width,
        **{
            name: value.data_ptr() if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        },
    )
    kernels = _load(device, images.dtype == torch.uint8, channels)
    assert not isinstance(kernels, str)
    # More lanes for large images: their rows alone do not fill a GPU. Powers of two, for the sums.
    lanes = 256 if height * width <= 64 * 64 else 1024
    _call_driver(device, kernels[kernel], rows, lanes, packed)


def _call_driver(
    device: torch.device, kernel: Any, blocks: int, lanes: int, arguments: Arguments
) -> None:
    """Launch on torch's current stream, so that memory and order are those of torch's own."""
    from cuda.bindings import driver

    # An array of pointers to arguments, which the driver copies before it returns.
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    stream = torch.cuda.current_stream(device).cuda_stream
    with torch.cuda.device(device):
        (error,) = driver.cuLaunchKernel(
            kernel, blocks, 1, 1, lanes, 1, 1, 0, stream, ctypes.addressof(pointers), 0
        )
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuLaunchKernel: {error.name} on {device}.")


def _load(device: torch.device, is_byte: bool, channels: int) -> tuple[Any, ...] | str:
    """Return the kernels on a device, or why they cannot be had there."""
    key = os.getpid(), device, is_byte, channels
    if key not in _loaded:
        try:
            _loaded[key] = _load_kernels(device, is_byte, channels)
        except (ImportError, OSError, RuntimeError) as error:
            _loaded[key] = f"{type(error).__name__}: {error}"
    return _loaded[key]


def _load_kernels(device: torch.device, is_byte: bool, channels: int) -> tuple[Any, ...]:
    from cuda.bindings import driver

    cubin = find_cubin(is_byte, channels, torch.cuda.get_device_capability(device))
    with torch.cuda.device(device):
        torch.cuda.current_stream(device).query()  # makes torch's context the current one
        error, module = driver.cuModuleLoadData(cubin)
        kernels = []
        for name in _KERNELS:
            if error == driver.CUresult.CUDA_SUCCESS:
                error, kernel = driver.cuModuleGetFunction(module, name.encode())
                kernels.append(kernel)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the driver returned {error.name}")
    get_quantiles(device)  # copied now, for the capture of a graph must not wait
    return tuple(kernels)
