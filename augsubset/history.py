"""What happened in a run: how often each example was selected, and where an epoch's time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from augsubset.selection import Selection
from augsubset.utils.checks import check_state

__all__ = ["EpochTimer", "Event", "SelectionCounts"]

Event = dict[str, Any]
"""An entry of a loader's history.

``event="selection"``: epoch (of the probe), active_from, selector, num_selected,
effective_sample_size, probe_seconds, num_recycled, solve_seconds, digest, the certificate's figures
if there is one, overlap (share of it that the previous selection had too), covered (share of all
examples selected so far) and class_counts.

``event="epoch"``: epoch, num_rows, num_copies, completed (no rows are left), and seconds of
selection, loading, augmentation, step (what remains: the caller's code) and total; strong_seconds
is the strong policy's share of the augmentation; where one launch delivers a batch, that launch.
"""


class SelectionCounts:
    """Counts how often each example was selected.

    Args:
        labels: Class of each example, negative for unlabelled ones; all zeros if there are no
            classes. ``(n,)`` int64

    Attributes:
        times: How often each was selected. ``(n,)`` int32
        mass: The sum of its weights. ``(n,)`` float64
        classes: Those that occur, ascending.
        class_sizes: Examples of each of these.
    """

    def __init__(self, labels: Tensor) -> None:
        n = len(labels)
        self.set_labels(labels)
        self.times = torch.zeros(n, dtype=torch.int32)
        self.mass = torch.zeros(n, dtype=torch.float64)
        self._previous = torch.zeros(n, dtype=torch.bool)

    def set_labels(self, labels: Tensor) -> None:
        """Count classes by these labels from now on."""
        self._labels = labels
        # Not by bincount: ids may be anything, and a history holds one list a selection.
        self._classes, sizes = torch.unique(labels[labels >= 0], return_counts=True)
        self.classes: list[int] = self._classes.tolist()
        self.class_sizes: list[int] = sizes.tolist()

    def add(self, selection: Selection) -> dict[str, Any]:
        """Count a selection, and return how it compares with earlier ones.

        Returns:
            ``overlap``: share of it that was in the previous one, ``None`` for the first;
            ``covered``: share of all examples selected at least once; ``class_counts``: selected
            examples of each of :attr:`classes`.
        """
        indices = selection.indices
        is_first = not bool(self._previous.any())
        overlap = None if is_first else float(self._previous[indices].double().mean())
        self.times[indices] += 1
        self.mass[indices] += selection.weights
        self._previous = torch.zeros_like(self._previous)
        self._previous[indices] = True
        labels = self._labels[indices]
        place = torch.searchsorted(self._classes, labels[labels >= 0])
        counts = torch.bincount(place, minlength=len(self.classes))
        return {
            "overlap": overlap,
            "covered": float((self.times > 0).double().mean()),
            "class_counts": counts.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far; the tensors are not copied."""
        return {
            "times": self.times,
            "mass": self.mass,
            "previous": self._previous,
            "classes": self.classes,
            "class_sizes": self.class_sizes,
        }

    def check_state(self, state: Any) -> dict[str, Any]:
        """Return what :meth:`restore` takes of a saved state, or raise if it does not fit."""
        check_state("counts", state, ("times", "mass", "previous", "classes", "class_sizes"))
        current = {"times": self.times, "mass": self.mass, "previous": self._previous}
        for name, mine in current.items():
            value = state[name]
            if getattr(value, "shape", None) != mine.shape or value.dtype != mine.dtype:
                raise ValueError(
                    f"counts must hold {name} of shape {tuple(mine.shape)} and dtype {mine.dtype}."
                )
        checked = {name: state[name].clone() for name in current}
        # The dataset of this run may not have been read for its classes yet.
        return checked | {name: state[name] for name in ("classes", "class_sizes")}

    def restore(self, checked: Mapping[str, Any]) -> None:
        """Restore what :meth:`check_state` returned."""
        self.times, self.mass = checked["times"], checked["mass"]
        self._previous = checked["previous"]
        self.classes, self.class_sizes = checked["classes"], checked["class_sizes"]


class EpochTimer:
    """Splits an epoch's time into selection, loading, augmentation and the rest: the steps.

    CUDA kernels run long after they were launched. Augmentation is therefore timed by events on
    the stream, which are read once, at the end of the epoch, after a single synchronisation.

    Args:
        device: Where augmentation runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = time.perf_counter()
        self._seconds = {"selection": 0.0, "loading": 0.0, "augmentation": 0.0, "strong": 0.0}
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
            "augmentation": [],
            "strong": [],
        }

    @contextmanager
    def on_cpu(self, bucket: str) -> Iterator[None]:
        """Add the block's wall-clock time to a bucket."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[bucket] += time.perf_counter() - begin

    @contextmanager
    def on_device(self, bucket: str) -> Iterator[None]:
        """Add the block's time on the device to a bucket: ``"augmentation"`` or ``"strong"``."""
        if self._device.type != "cuda":
            with self.on_cpu(bucket):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(stream)
        yield
        end.record(stream)
        self._events[bucket].append((begin, end))

    def read(self) -> dict[str, float]:
        """Stop, and return seconds as ``selection_seconds`` and so on.

        They add up to the total, except on CUDA, where augmentation may overlap with the CPU's
        work. ``strong_seconds``, the strong policy's share, is contained in the augmentation.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            for bucket, events in self._events.items():
                milliseconds = sum(begin.elapsed_time(end) for begin, end in events)
                self._seconds[bucket] = milliseconds / 1000
        total = time.perf_counter() - self._begin
        steps = max(0.0, total - sum(self._seconds.values()) + self._seconds["strong"])
        seconds = {**self._seconds, "step": steps, "total": total}
        return {f"{bucket}_seconds": value for bucket, value in seconds.items()}
