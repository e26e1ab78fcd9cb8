"""Rarely needed options of a loader, and the checks of its arguments' types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from augsubset.batch import BatchSpec
from augsubset.probe import GradientProbe
from augsubset.sampling import Layout
from augsubset.selection import Selector
from augsubset.utils.checks import check_choice, check_int

__all__ = ["LoaderOptions", "check_batches", "check_types"]


@dataclass(frozen=True)
class LoaderOptions:
    """Rarely needed options of a :class:`SubsetAugmentLoader`.

    Args:
        start_epoch: First epoch of the schedule: until then the subset is random, because the
            gradients of an untrained network say little.
        layout: ``"mixed"``: rows in any order. ``"grouped"``: an example's original and copies in
            one batch, where its item is fetched once; all batches have the same size.
        resident: Keep the images of a uint8 ``TensorDataset`` on the device: no workers, no
            collation; keys, order and augmentation stay the same.
        background: Solve in a thread while the epoch that probed continues with the old
            selection; the next epoch waits for it and uses the new one. The first selection is
            made at once. An error in the thread is raised at the end of that epoch or at the
            start of the next.
        recycle: Do not probe originals that the model saw in training at most this many epochs
            ago: reuse the logits of that pass, under base augmentation and in training mode. Each
            batch must go through the model in one pass. On several ranks an example is measured
            by the rank that saw it last. ``None``: probe everything.
        channels_last: Yield images in that memory format.
        dtype: Of the images yielded; ``None``: the model's if that is float16 or bfloat16 when the
            loader is constructed, else float32, or floats as they are.
        device: Where batches go; ``None`` asks the model at the start of each epoch.
        timeout: How long a rank waits for another before it raises.

    Raises:
        TypeError: If ``timeout`` is not a timedelta or a number is not an int.
        ValueError: If a value is unknown or out of range.
    """

    start_epoch: int = 0
    layout: Layout = "mixed"
    resident: bool = False
    background: bool = False
    recycle: int | None = None
    channels_last: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    timeout: timedelta = timedelta(minutes=30)

    def __post_init__(self) -> None:
        """Validate once."""
        check_int("start_epoch", self.start_epoch, 0)
        check_choice("layout", self.layout, ("mixed", "grouped"))
        for name in ("resident", "background", "channels_last"):
            check_choice(name, getattr(self, name), (False, True))
        floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        check_choice("dtype", self.dtype, (None, *floats))
        if self.recycle is not None:
            check_int("recycle", self.recycle, 1)
        if self.device is not None:
            object.__setattr__(self, "device", torch.device(self.device))
        if not isinstance(self.timeout, timedelta):
            raise TypeError(f"timeout must be a timedelta, got {type(self.timeout).__name__}.")


def check_types(
    model: Any,
    probe: Any,
    selector: Any,
    batch: Any,
    options: Any,
    on_event: Any,
    progress: Any,
) -> None:
    """Raise if an argument of a loader is not of the type that it must be."""
    check_choice("progress", progress, (False, True))
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be callable, got {type(on_event).__name__}.")
    for name, value, kind in (
        ("probe", probe, GradientProbe),
        ("batch", batch, BatchSpec),
        ("options", options, LoaderOptions),
    ):
        if (value is not None or name == "options") and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}.")
    if isinstance(selector, type):
        raise TypeError(f"selector must be an object, got the class {selector.__name__}. Call it.")
    if selector is not None and not isinstance(selector, Selector):
        raise TypeError(
            "selector must have .needs_gradients and .select(gradients, *, budget, seed, epoch), "
            f"got {type(selector).__name__}."
        )


def check_batches(model: nn.Module, num_rows: int, batch_size: int, drop_last: bool) -> None:
    """Raise if an epoch of so many rows per rank has no batch, or one that BatchNorm fails on.

    Raises:
        ValueError: If ``drop_last`` leaves no batch, or the last one would hold a single row, which
            BatchNorm in training cannot normalise.
    """
    if drop_last:
        if num_rows < batch_size:
            raise ValueError(
                f"drop_last must leave at least one batch, got {num_rows} rows per rank for "
                f"batch_size={batch_size}."
            )
    elif num_rows % batch_size == 1 < batch_size:
        for name, module in model.named_modules():
            is_frozen = model.training and not module.training
            is_local = isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            if is_local and not is_frozen:
                raise ValueError(
                    "the last batch must hold at least two rows for BatchNorm, which has no "
                    f"variance in a single value, got {num_rows} rows per rank for "
                    f"batch_size={batch_size} and the {type(module).__name__} {name!r}. Pass "
                    "another batch_size or drop_last=True to the DataLoader, or other copies=."
                )
