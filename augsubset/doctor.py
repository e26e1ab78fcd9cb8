"""Measure a loop, and say whether subset augmentation would pay in it."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from augsubset.batches import map_tensors
from augsubset.delivery import Delivery
from augsubset.gradients import LastLayerGradients
from augsubset.probe import GradientProbe
from augsubset.sampling import EpochPlan, pack
from augsubset.schedule import SelectionSchedule
from augsubset.selection import AllSelector
from augsubset.source import Source, opened

__all__ = ["Diagnosis", "EpochCost", "Loop", "Measured", "diagnose"]

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


class Loop(NamedTuple):
    """What a loader is made of, for the doctor to run parts of it.

    Args:
        model: In training.
        probe: What selections are made from.
        source: The data.
        delivery: What batches go through.
        schedule: When selections are made.
        plan: Of an epoch.
        history: Entries of the loader.
        seed: Of the run.
        epoch: The one to come.
    """

    model: nn.Module
    probe: GradientProbe
    source: Source
    delivery: Delivery
    schedule: SelectionSchedule
    plan: EpochPlan
    history: Sequence[dict[str, Any]]
    seed: int
    epoch: int


def diagnose(
    loop: Loop, steps: int, step: Callable[[Any, Any, Tensor], None] | None, device: torch.device
) -> Diagnosis:
    """Run the parts of a loop by themselves, and say what epochs would cost.

    Args:
        loop: Its parts.
        steps: Batches to measure, or fewer where the data has no more.
        step: A gradient step ``(x, y, w)``; ``None``: a forward and a backward pass on a copy.
        device: Where it runs.
    """
    n, plan, schedule = len(loop.source), loop.plan, loop.schedule
    loop.source.to(device)
    batches = iter(loop.source.data_loader())
    fetched = [next(batches)]  # workers have started
    begin = time.perf_counter()
    fetched += itertools.islice(batches, steps)
    seconds = time.perf_counter() - begin
    del batches
    sizes = [len(opened(each)[1]) for each in fetched]
    rows, num_timed = sum(sizes), sum(sizes[1:])
    loading = seconds / num_timed if num_timed else 0.0

    move = partial(loop.source.moved, device=device)
    batch, keys = opened(fetched[0])
    parts, b = loop.delivery.split(batch), len(keys)
    w = torch.ones(b)
    as_copies = pack(0, 1, keys)

    def delivered(keys: Tensor) -> Any:
        return loop.delivery.ready(batch, parts, keys, w, move)

    few = min(steps, 10)
    plain = _seconds_of(lambda: delivered(keys), device, few)
    augmented = _seconds_of(lambda: delivered(as_copies), device, few)
    x, y = move(loop.delivery.original(batch))
    own = _training_step(loop.model, loop.probe.forward)
    run = (lambda: own(x)) if step is None else (lambda: step(x, y, w.to(device)))
    step_seconds = _seconds_of(run, device, few)
    num_sampled = min(n, rows)
    with _synchronised(device) as clock:
        gradients = loop.probe.scan(
            loop.source.data_loader(),
            prepare=lambda each: loop.delivery.original(opened(each)[0]),
            indices=range(num_sampled),
        )
    k = max(len(torch.unique(gradients.labels)), round(plan.budget * num_sampled / n))
    solve_seconds, size, k = _solved(loop, gradients, min(k, num_sampled))
    measured = Measured(
        loading=loading,
        augmentation=max(0.0, augmented - plain) / b,
        step=(plain + step_seconds) / b,
        probe=clock[0] / num_sampled if schedule.selector.needs_gradients else 0.0,
        solve=solve_seconds,
        workers=loop.source.num_workers > 0,
    )
    full, r = plan.num_rows(plan.budget), plan.copies
    return Diagnosis(
        none=measured.epoch(n, 0, 0, 0),
        subset=measured.epoch(full, r * plan.budget, 1 / schedule.every, n),
        full=measured.epoch(n + r * n, r * n, 0, 0),
        in_place=measured.epoch(n, n, 0, 0),
        num_selected=plan.budget,
        effective_sample_size=size,
        num_sampled=k,
        every=schedule.every,
    )


def _solved(loop: Loop, gradients: LastLayerGradients, budget: int) -> tuple[float, float, int]:
    """Return seconds of a solve, an effective sample size, and of how many examples."""
    made = [entry for entry in loop.history if entry["event"] == "selection"]
    latest = loop.schedule.latest
    if made and latest is not None:
        return made[-1]["solve_seconds"], latest.effective_sample_size, len(latest)
    selector = loop.schedule.selector
    if isinstance(selector, AllSelector):
        return 0.0, float(len(gradients)), len(gradients)
    begin = time.perf_counter()
    found = selector.select(gradients, budget=budget, seed=loop.seed, epoch=loop.epoch)
    scale = (len(loop.source) / len(gradients)) ** 2
    return (time.perf_counter() - begin) * scale, found.effective_sample_size, len(found)


def _seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the mean seconds of a call, the first left out, the device waited for."""
    call()
    with _synchronised(device) as clock:
        for _ in range(repeats):
            call()
    return clock[0] / repeats


@contextmanager
def _synchronised(device: torch.device) -> Iterator[list[float]]:
    """Time a block, with what the device still does of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = [0.0]
    begin = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[0] = time.perf_counter() - begin


def _training_step(model: torch.nn.Module, forward: Callable[..., Any]) -> Callable[[Any], None]:
    """Return a forward and a backward pass on a copy of the model, which is left alone."""
    twin = copy.deepcopy(model).train()

    def step(x: Any) -> None:
        outputs: list[torch.Tensor] = []
        map_tensors(outputs.append, forward(twin, x))
        sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        twin.zero_grad()

    return step
