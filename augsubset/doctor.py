"""Measure a loop, and say whether subset augmentation would pay in it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from augsubset.batches import map_tensors

__all__ = [
    "Diagnosis",
    "EpochCost",
    "Measured",
    "seconds_of",
    "synchronised",
    "training_step",
]

PAYS_FROM = 1.2  # times faster than augmenting everything
CHEAP_BELOW = 1.1  # in-place augmentation of everything over none


@dataclass(frozen=True)
class EpochCost:
    """Seconds of one epoch under one plan.

    Args:
        loading: Fetching and collating, on workers or in the loop.
        augmentation: Of the rows that the plan augments.
        step: Forward and backward passes.
        selection: Probing and solving, spread over the epochs between selections.
        overlaps: Whether workers load while the rest runs.
    """

    loading: float
    augmentation: float
    step: float
    selection: float
    overlaps: bool

    @property
    def total(self) -> float:
        """The epoch's time: what overlaps counts once."""
        busy = self.augmentation + self.step
        together = max(self.loading, busy) if self.overlaps else self.loading + busy
        return together + self.selection

    @property
    def bottleneck(self) -> str:
        """The largest part."""
        parts = {
            "loading": self.loading,
            "augmentation": self.augmentation,
            "step": self.step,
            "selection": self.selection,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and what follows; ``print`` it.

    Args:
        none: An epoch without strong augmentation.
        subset: With the loader's own settings.
        full: With as many copies of every example.
        in_place: Every example augmented instead of appended.
        num_selected: k.
        effective_sample_size: Of the latest selection, or of one made of the rows measured.
        num_sampled: How many examples that one was selected from k in proportion.
        every: Epochs between selections.
    """

    none: EpochCost
    subset: EpochCost
    full: EpochCost
    in_place: EpochCost
    num_selected: int
    effective_sample_size: float
    num_sampled: int
    every: int

    @property
    def speed_up(self) -> float:
        """Time of augmenting everything over the subset's."""
        return self.full.total / self.subset.total

    @property
    def pays(self) -> bool:
        """Whether the subset saves enough, and augmenting all in place is not as good as free."""
        is_cheap = self.in_place.total <= CHEAP_BELOW * self.none.total
        return self.speed_up >= PAYS_FROM and not is_cheap

    @property
    def sentence(self) -> str:
        """The verdict."""
        over_none = self.in_place.total / self.none.total - 1
        if self.pays:
            return (
                f"Subset augmentation would save {1 - 1 / self.speed_up:.0%} of the time of "
                f"augmenting everything with as many copies ({self.speed_up:.1f}x); augmenting "
                f"every example in place instead would cost {over_none:.0%} more than nothing. "
                f"Look first at {self.advice}."
            )
        if self.speed_up < PAYS_FROM:
            return (
                f"It would not pay here: the subset takes {1 / self.speed_up:.0%} of the time of "
                f"augmenting everything. Look first at {self.advice}."
            )
        return (
            "It would not pay here: augmenting every example in place costs only "
            f"{over_none:.0%} more than no augmentation, with AllSelector(), raw='none', copies=1."
        )

    @property
    def advice(self) -> str:
        """The setting to change first."""
        return {
            "loading": "num_workers=, or layout='grouped' to fetch an example once for its copies",
            "augmentation": "fraction= and the policy's number of operations",
            "step": "copies= and fraction=, since appended rows are steps",
            "selection": "every= and recycle=, since selections cost most here",
        }[self.subset.bottleneck]

    @property
    def warning(self) -> str | None:
        """What to know of the weights, if anything."""
        if self.effective_sample_size >= self.num_sampled / 4:
            return None
        return (
            f"The weights count like {self.effective_sample_size:.0f} of {self.num_sampled} "
            "selected examples: few carry most of it. Consider max_weight= or weights='uniform'."
        )

    def __str__(self) -> str:
        rows = ["seconds an epoch   loading  augmentation     step  selection    total"]
        for name in ("none", "subset", "full", "in_place"):
            cost: EpochCost = getattr(self, name)
            rows.append(
                f"{name.replace('_', ' '):<16}{cost.loading:>10.3f}{cost.augmentation:>14.3f}"
                f"{cost.step:>9.3f}{cost.selection:>11.3f}{cost.total:>9.3f}"
            )
        return "\n".join([*rows, self.sentence, *([self.warning] if self.warning else [])])


@dataclass(frozen=True)
class Measured:
    """Seconds a row, or a selection.

    Args:
        loading: A row.
        augmentation: A copy.
        step: A row.
        probe: A row.
        solve: A selection.
        workers: Whether loading runs on workers.
    """

    loading: float
    augmentation: float
    step: float
    probe: float
    solve: float
    workers: bool

    def epoch(self, rows: int, copies: int, selections: float, probed: int) -> EpochCost:
        """Return what an epoch of so many rows and copies costs."""
        return EpochCost(
            loading=rows * self.loading,
            augmentation=copies * self.augmentation,
            step=rows * self.step,
            selection=selections * (probed * self.probe + self.solve),
            overlaps=self.workers,
        )


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the mean seconds of a call, the first left out, the device waited for."""
    call()
    with synchronised(device) as clock:
        for _ in range(repeats):
            call()
    return clock[0] / repeats


@contextmanager
def synchronised(device: torch.device) -> Iterator[list[float]]:
    """Time a block, with what the device still does of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = [0.0]
    begin = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[0] = time.perf_counter() - begin


def training_step(model: torch.nn.Module, forward: Callable[..., Any]) -> Callable[[Any], None]:
    """Return a forward and a backward pass on a copy of the model, which is left alone."""
    twin = copy.deepcopy(model).train()

    def step(x: Any) -> None:
        outputs: list[torch.Tensor] = []
        map_tensors(outputs.append, forward(twin, x))
        sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        twin.zero_grad()

    return step
