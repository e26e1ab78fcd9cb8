"""Measure a loop: run its parts by themselves, and have what they took judged."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from augsubset.batch import map_tensors
from augsubset.pipeline import Delivery
from augsubset.probe.probe import GradientProbe, unwrapped
from augsubset.reporting.cost_model import Diagnosis, Measured, Settings, judge
from augsubset.sampling import pack
from augsubset.sampling.source import Source, opened
from augsubset.schedule import SelectionSchedule
from augsubset.selection import Selection
from augsubset.selection.gradients import LastLayerGradients

__all__ = ["Loop", "diagnose"]

_MOST_REPEATS = 10  # of what runs on one batch


class Loop(NamedTuple):
    """What a loader is made of, for the doctor to run parts of it.

    Args:
        model: In training.
        probe: What selections are made from.
        source: The data.
        delivery: What batches go through.
        schedule: When selections are made.
        settings: What it was told.
        history: Entries of the loader.
        seed: Of the run.
        epoch: The one to come.
    """

    model: nn.Module
    probe: GradientProbe
    source: Source
    delivery: Delivery
    schedule: SelectionSchedule
    settings: Settings
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
    loop.source.to(device)
    (batch, keys), num_rows, loading = _loaded(loop.source, steps)
    parts, b = loop.delivery.split(batch), len(keys)
    move, w = partial(loop.source.moved, device=device), torch.ones(b)
    as_copies, repeats = pack(0, 1, keys), min(steps, _MOST_REPEATS)

    def seconds_of(call: Callable[[], Any]) -> float:
        return _seconds_of(call, device, repeats)

    plain = seconds_of(lambda: loop.delivery.ready(batch, parts, keys, w, move))
    augmented = seconds_of(lambda: loop.delivery.ready(batch, parts, as_copies, w, move))
    x, y = move(loop.delivery.original(batch))
    take = step or _training_step(loop.model, loop.probe.forward)
    stepped = seconds_of(lambda: take(x, y, w.to(device)))
    probe, solve, selection = _selected(loop, min(len(loop.source), num_rows), device)
    uncapped = selection
    if loop.settings.max_weight is not None:
        selection = selection.capped(loop.settings.max_weight)
    measured = Measured(
        loading=loading,
        augmentation=max(0.0, augmented - plain) / b,
        step=(plain + stepped) / b,
        probe=probe,
        solve=solve,
        effective_sample_size=selection.effective_sample_size,
        num_sampled=len(selection),
        weight_kept=float(selection.weights.sum() / uncapped.weights.sum()),
    )
    return judge(measured, loop.settings)


def _loaded(source: Source, steps: int) -> tuple[tuple[Any, Tensor], int, float]:
    """Return a batch with its keys, the rows of all fetched, and seconds a row.

    The first batch, for which workers start, is timed only where there is no other.
    """
    begin = perf_counter()
    batches = iter(source.data_loader())
    first = opened(next(batches))
    started = perf_counter()
    num_first = len(first[1])
    num_rest = sum(len(opened(each)[1]) for each in itertools.islice(batches, steps))
    end = perf_counter()
    if num_rest == 0:
        return first, num_first, (started - begin) / num_first
    return first, num_first + num_rest, (end - started) / num_rest


def _selected(loop: Loop, num_rows: int, device: torch.device) -> tuple[float, float, Selection]:
    """Return seconds of a selection's probe and solve, and the weights they lead to.

    The loop's own, if its rule has selected already; else of so many rows.
    """
    selector, latest, n = loop.schedule.selector, loop.schedule.latest, len(loop.source)
    name = type(selector).__name__
    made = [e for e in loop.history if e["event"] == "selection" and e["selector"] == name]
    if made and latest is not None:
        return made[-1]["probe_seconds"], made[-1]["solve_seconds"], latest
    gradients, probe = LastLayerGradients.unprobed(n), 0.0
    if selector.needs_gradients:
        gradients, probe = _probed(loop, num_rows, device)
    share = len(gradients) / n
    least = len(torch.unique(gradients.labels))
    budget = min(len(gradients), max(least, round(loop.settings.plan.budget * share)))
    begin = perf_counter()
    selection = selector.select(gradients, budget=budget, seed=loop.seed, epoch=loop.epoch)
    return probe, (perf_counter() - begin) / share**2, selection


def _probed(loop: Loop, num_rows: int, device: torch.device) -> tuple[LastLayerGradients, float]:
    """Return gradients of so many rows, and seconds of a probe of all that there are.

    Workers start once, however many rows are probed.
    """
    arrived = []

    def prepare(fetched: Any) -> tuple[Any, Any]:
        arrived.append(perf_counter())
        return loop.delivery.original(opened(fetched)[0])

    with _synchronised(device) as clock:
        begin = perf_counter()
        gradients = loop.probe.scan(
            loop.source.data_loader(), prepare=prepare, indices=range(num_rows)
        )
    starting = arrived[0] - begin if loop.source.num_workers else 0.0
    share = num_rows * loop.settings.world_size / len(loop.source)
    return gradients, starting + (clock[0] - starting) / share


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
    begin = perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[0] = perf_counter() - begin


def _training_step(
    model: nn.Module, forward: Callable[..., Any]
) -> Callable[[Any, Any, Tensor], None]:
    """Return a forward and a backward pass on a copy of the model, which is left alone.

    The copy is of the module inside DistributedDataParallel, whose passes wait for other ranks, as
    SyncBatchNorm in training does.
    """
    twin = copy.deepcopy(unwrapped(model)).train()
    for module in twin.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()

    def step(x: Any, y: Any, w: Tensor) -> None:
        outputs: list[Tensor] = []
        map_tensors(outputs.append, forward(twin, x))
        sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        twin.zero_grad()

    return step
