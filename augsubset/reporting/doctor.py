"""The doctor: measures the parts of a training loop one by one, and diagnoses it."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from augsubset.loader import SubsetAugmentLoader
from augsubset.pipeline import move
from augsubset.reporting.diagnosis import Diagnosis, Measured, Settings, diagnose
from augsubset.sampling import Source, pack
from augsubset.selection import LastLayerGradients, Selection, select_coreset
from augsubset.utils.checks import AugsubsetError, check_int
from augsubset.utils.rng import forked_rng
from augsubset.utils.torch_utils import map_tensors, unwrap_model

__all__ = ["doctor"]

_MAX_REPEATS = 10  # of a measurement on one batch


def doctor(
    loader: SubsetAugmentLoader, steps: int = 50, step: Callable[..., Any] | None = None
) -> Diagnosis:
    """Measure the training loop around a loader, and say whether a subset would pay off in it.

    Leaves the model, the loader and all random number generators unchanged, except for what a
    custom ``step`` does. Figures are per rank. On several ranks it may be called on a single one:
    it does not wait for the others, and communication by ``DistributedDataParallel`` is not
    counted. If a custom ``step`` communicates, call the doctor on all ranks.

    Args:
        loader: A loader between two epochs.
        steps: Number of batches to measure; fewer if the data has no more.
        step: A training step, called with the parts of a batch: ``step(x, y)``, or
            ``step(x, y, w)`` if the loader yields weights. The default is a forward and a backward
            pass on a copy of the model, without an optimizer.

    Returns:
        A table, a verdict and what to change first; ``print`` it.

    Raises:
        TypeError: If ``steps`` is not an int, or ``loader`` is not a ``SubsetAugmentLoader``.
        ValueError: If it is below 1.
        AugsubsetError: While an epoch runs.

    Cost:
        Two passes over that many batches, and up to eleven steps and twice as many augmentations
        of one batch. The times of the selector's latest selection are used; before its first, they
        are extrapolated from these batches: probing linearly, solving with the square of the
        number of examples.
    """
    steps = check_int("steps", steps, 1)
    check_loader(loader)
    if loader.is_running:
        raise AugsubsetError("the doctor cannot run during an epoch. Call loader.close() first.")
    device = loader.prober.device
    with forked_rng(loader.seed, [device]):
        return _measure(loader, steps, step, device)


def check_loader(loader: Any) -> None:
    """Raise unless something is a loader of ours."""
    if not isinstance(loader, SubsetAugmentLoader):
        raise TypeError(
            f"loader must be a SubsetAugmentLoader, got {type(loader).__name__}. Wrap it first: "
            "SubsetAugmentLoader(loader, model, augment)."
        )


def _measure(
    loader: SubsetAugmentLoader, steps: int, step: Callable[..., Any] | None, device: torch.device
) -> Diagnosis:
    source, pipeline = loader.source, loader.pipeline
    source.to(device)
    (batch, keys), num_rows, loading = _time_loading(source, steps)
    b, repeats = len(keys), min(steps, _MAX_REPEATS)
    weights = torch.ones(b) if loader.weights in ("cluster", "unscaled") else None

    def process(keys: Tensor) -> Any:
        return pipeline.process(batch, keys, weights, device).output

    train: Callable[[], Any]
    if step is None:
        x = move(pipeline.prepare_originals(batch)[0], device)
        train = partial(_make_training_step(loader.model, loader.prober.probe.forward), x)
    else:
        output = process(keys)
        train = partial(step, *(output if type(output) is tuple else (output,)))
    calls = partial(process, keys), partial(process, pack(0, 1, keys)), train
    plain, augmented, stepped = _time_calls(calls, device, repeats)
    probe, solve, selection = _time_selection(loader, min(len(source), num_rows), device)
    measured = Measured(
        loading=loading,
        augmentation=max(0.0, augmented - plain) / b,
        step=(plain + stepped) / b,
        probe=probe,
        solve=solve,
        effective_sample_size=selection.effective_sample_size,
        num_selected=len(selection),
        weight_kept=float(selection.weights.sum()) / len(selection.clusters),
    )
    options = loader.options
    settings = Settings(
        loader.plan,
        every=loader.schedule.every,
        num_workers=source.num_workers,
        batch_size=loader.batch_size,
        num_replicas=loader.num_replicas,
        is_resident=options.resident,
        background=options.background,
        recycle=options.recycle,
        max_weight=getattr(loader.schedule.selector, "max_weight", None),
    )
    return diagnose(measured, settings)


def _time_loading(source: Source, steps: int) -> tuple[tuple[Any, Tensor], int, float]:
    """Return a batch with its keys, the number of rows fetched, and seconds per row.

    The first batch includes the start of the workers, so it is timed only if it is the only one.
    """
    begin = perf_counter()
    batches = iter(source.make_loader())
    first = next(batches)
    started = perf_counter()
    num_first = len(first[1])
    num_rest = sum(len(keys) for _, keys in itertools.islice(batches, steps))
    end = perf_counter()
    if num_rest == 0:
        return first, num_first, (started - begin) / num_first
    return first, num_first + num_rest, (end - started) / num_rest


def _time_selection(
    loader: SubsetAugmentLoader, num_rows: int, device: torch.device
) -> tuple[float, float, Selection]:
    """Return seconds of probing and of solving per selection, and a selection.

    They are those of the selector's latest selection, or measured on that many rows.
    """
    schedule, latest, n = loader.schedule, loader.selection, len(loader.info.candidates)
    name, selector = schedule.selector_name, schedule.selector
    past = [e for e in loader.history if e["event"] == "selection" and e["selector"] == name]
    if past and latest is not None:
        return past[-1]["probe_seconds"], past[-1]["solve_seconds"], latest
    if selector is None:
        return 0.0, 0.0, Selection.equally_weighted(torch.arange(n), n)
    gradients, probe = LastLayerGradients.unprobed(n, loader.info.groups), 0.0
    if selector.needs_gradients:
        gradients, probe = _time_probe(loader, num_rows, device)
    share = len(gradients) / n
    num_classes = len(torch.unique(gradients.labels))
    budget = min(len(gradients), max(num_classes, round(loader.plan.budget * share)))
    select_coreset(torch.eye(8), budget=2)  # compiles the solver, which no epoch pays for
    begin = perf_counter()
    selection = selector.select(gradients, budget=budget, seed=loader.seed, epoch=loader.epoch)
    return probe, (perf_counter() - begin) / share**2, selection


def _time_probe(
    loader: SubsetAugmentLoader, num_rows: int, device: torch.device
) -> tuple[LastLayerGradients, float]:
    """Return gradients of the first rows, and the seconds that a probe of all rows would take.

    Workers start once, however many rows are probed, so their start is not extrapolated.
    """
    fetch_times, candidates = [], loader.info.candidates

    def prepare(fetched: Any) -> tuple[Any, Any]:
        fetch_times.append(perf_counter())
        return loader.pipeline.prepare_originals(fetched[0])

    with _time_block(device) as seconds:
        begin = perf_counter()
        gradients = loader.prober.probe.scan(
            loader.source.make_loader(), prepare=prepare, indices=candidates[:num_rows]
        )
    starting = fetch_times[0] - begin if loader.source.num_workers else 0.0
    share = len(gradients) * loader.world_size / len(candidates)
    return gradients, starting + (seconds[0] - starting) / share


def _time_calls(
    calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int
) -> list[float]:
    """Return the median seconds of each of several calls, made in turn, after one to warm up.

    Differences of means of one after the other are noise where the processor is shared.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, each in zip(calls, taken, strict=True):
            with _time_block(device) as seconds:
                call()
            each.append(seconds[0])
    return [statistics.median(each) for each in taken]


@contextmanager
def _time_block(device: torch.device) -> Iterator[list[float]]:
    """Time a block, including the work that it launches on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = [0.0]
    begin = perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[0] = perf_counter() - begin


def _make_training_step(model: nn.Module, forward: Callable[..., Any]) -> Callable[[Any], None]:
    """Return a forward and a backward pass on a copy of the model.

    DistributedDataParallel and SyncBatchNorm in training mode wait for other ranks: the copy is
    of the module inside the former, with layers of the latter in evaluation mode.

    Raises:
        ValueError: If the model cannot be copied.
    """
    try:
        twin = copy.deepcopy(unwrap_model(model)).train()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model must be one that copy.deepcopy() can copy, got {type(model).__name__} "
            f"({str(error).partition('. ')[0]}). Pass step=, a function that trains on a batch."
        ) from error
    for module in twin.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()

    def step(x: Any) -> None:
        outputs: list[Tensor] = []
        map_tensors(outputs.append, forward(twin, x))
        sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        twin.zero_grad()

    return step
