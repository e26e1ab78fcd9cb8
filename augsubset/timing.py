"""Where an epoch's time went, without stopping the device to find out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

__all__ = ["EpochClock"]


class EpochClock:
    """Split one epoch into selection, loading, augmentation and the rest: the gradient steps.

    On CUDA, kernels run long after they were launched. Augmentation is therefore timed by events on
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
    def on_host(self, bucket: str) -> Iterator[None]:
        """Add the block's wall-clock time to a bucket."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[bucket] += time.perf_counter() - begin

    def augmentation(self) -> AbstractContextManager[None]:
        """Add the block's time on the device to the augmentation."""
        return self._on_device("augmentation")

    def strong(self) -> AbstractContextManager[None]:
        """Note the block's time on the device as the strong policy's, a part of the former."""
        return self._on_device("strong")

    @contextmanager
    def _on_device(self, bucket: str) -> Iterator[None]:
        if self._device.type != "cuda":
            with self.on_host(bucket):
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

        They add up to the total, but on CUDA, where augmentation may overlap what the host does;
        ``strong_seconds`` is a part of the augmentation.
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
