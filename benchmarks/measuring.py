"""Times, peak memory, figures with their targets, and the gate against regressions."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "RATIOS",
    "Figure",
    "PeakMemory",
    "in_turn",
    "regressions",
    "resident_bytes",
    "summary",
    "times",
]

RATIOS = ("x", "share")
_STATM = Path("/proc/self/statm")
_SAMPLING_SECONDS = 0.005


@dataclass(frozen=True)
class Figure:
    """One measured number, and what it is held to.

    Args:
        name: What was measured, unique within its workload.
        value: The number.
        unit: One of :data:`RATIOS` for two sides of one run: the gate compares only these.
        better: Which way is better.
        target: What it must reach; ``None`` where nothing was promised.
    """

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; ``None`` without one."""
        if self.target is None:
            return None
        if self.better == "higher":
            return self.value >= self.target
        return self.value <= self.target

    def as_record(self) -> dict[str, Any]:
        """Return what goes into JSON."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        shown = f"{self.name}: {_shown(self.value, self.unit)}"
        if self.target is None:
            return shown
        sign = ">=" if self.better == "higher" else "<="
        verdict = "met" if self.met else "MISSED"
        return f"{shown} (target {sign} {_shown(self.target, self.unit)}) {verdict}"


def _shown(value: float, unit: str) -> str:
    digits = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return digits + {"x": "x", "share": "", "": ""}.get(unit, f" {unit}")


def times(call: Callable[[], Any], repeats: int, *, warm_up: bool = True) -> list[float]:
    """Return the seconds of each call; the first, which may compile, is left out."""
    if warm_up:
        call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each of several calls made in turn, so that all see the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name] += times(call, 1, warm_up=False)
    return seconds


def summary(raw: Sequence[float]) -> dict[str, Any]:
    """Return every raw value, their median and interquartile range."""
    iqr = 0.0
    if len(raw) > 1:
        quartiles = statistics.quantiles(raw, n=4, method="inclusive")
        iqr = quartiles[2] - quartiles[0]
    return {"raw": list(raw), "median": statistics.median(raw), "iqr": iqr}


class PeakMemory:
    """Resident memory of this process inside a ``with`` block, above what it was before.

    A thread samples it every 5 ms, so a shorter peak may escape. Memory that an earlier call left
    with the allocator is reused without being seen: measure in a fresh process.

    Args:
        before: Bytes to count from; ``None``: what is resident on entry.

    Attributes:
        extra_bytes: Peak minus the value on entry, once the block is left.
    """

    def __init__(self, before: int | None = None) -> None:
        self.extra_bytes = 0
        self._before = before
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._peak = resident_bytes()
        if self._before is None:
            self._before = self._peak
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        assert self._before is not None
        self.extra_bytes = max(self._peak, resident_bytes()) - self._before

    def _sample(self) -> None:
        while not self._left.wait(_SAMPLING_SECONDS):
            self._peak = max(self._peak, resident_bytes())


def resident_bytes() -> int:
    """Return this process's resident memory (Linux)."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def regressions(
    now: Mapping[str, Sequence[Figure]], before: Mapping[str, Any], factor: float = 2.0
) -> list[str]:
    """Return a line for each ratio that is worse than on record by more than the factor.

    Args:
        now: Figures by workload.
        before: The ``workloads`` of a committed record.
        factor: How much worse a ratio may be; absolute times and sizes are not compared.

    Raises:
        KeyError: If a ratio is on one side alone: renamed or dropped figures must not pass.
    """
    recorded = {
        (workload, figure["name"]): figure["value"]
        for workload, entry in before.items()
        for figure in entry["figures"]
        if figure["unit"] in RATIOS
    }
    measured = {
        (workload, figure.name): figure
        for workload, figures in now.items()
        for figure in figures
        if figure.unit in RATIOS
    }
    if unmatched := recorded.keys() ^ measured.keys():
        raise KeyError(
            f"the record and this run must hold the same ratios, got {sorted(unmatched)} on one "
            "side alone. Write a new record with --accept."
        )
    worse = []
    for (workload, name), figure in measured.items():
        was = recorded[workload, name]
        higher = figure.better == "higher"
        if (figure.value < was / factor) if higher else (figure.value > was * factor):
            worse.append(f"{workload}, {name}: {figure.value:.4g}, on record {was:.4g}")
    return worse
