"""Kill a training run at random points, start it again, and compare every row and the weights."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    BatchSpec,
    CropFlip,
    LoaderOptions,
    RandomOps,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
    weighted_loss,
)

__all__ = ["Outcome", "kill_and_resume"]

N = 96
NUM_EPOCHS = 4


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images that are darkened at each fetch by draws from the three global generators."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.targets = x, y.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
        return self.x[index] / 255 * (sum(draws) / 3), self.targets[index]


def train(
    folder: Path,
    layout: Literal["mixed", "grouped"],
    workers: int,
    *,
    save_every: int = 3,
    draws: bool = False,
    background: bool = False,
    recycle: int | None = None,
    **options: Any,
) -> None:
    """Train four epochs, from the checkpoint in the folder if there is one; log every row.

    SIGTERM, as schedulers send before they preempt a job, ends it by a ``break`` and a save.

    Args:
        folder: Of the checkpoint, the log and the final weights.
        layout: Of the loader.
        workers: Of the DataLoader.
        save_every: Batches between checkpoints.
        draws: Whether items draw random transforms.
        background: Likewise of the loader.
        recycle: Likewise.
        options: Of the loader, beside those here.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=generator)
    y = torch.arange(N) % 3
    data: Dataset[Any] = Drawn(x, y) if draws else TensorDataset(x, y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loader = DataLoader(data, 8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = SubsetAugmentLoader(
        loader,
        model,
        RandomOps.paper(),
        **{
            **{"fraction": 0.2, "copies": 3, "every": 2, "base": CropFlip(1)},
            **{"weights": "cluster", **options},
        },
        batch=BatchSpec(return_index=True),
        seed=0,
        options=LoaderOptions(layout=layout, background=background, recycle=recycle),
    )
    checkpoint = folder / "checkpoint"
    step = 0
    is_preempted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_preempted.set())

    def save() -> None:
        save_checkpoint(
            checkpoint,
            loader=loader.state_dict(),
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            step=step,
        )

    if checkpoint.exists():
        states = load_checkpoint(checkpoint)
        loader.load_state_dict(states["loader"])
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        step = states["step"]
    with (folder / "log").open("a") as log:
        log.write("\n")  # what was killed may have left half a line
        for epoch in range(loader.epoch, NUM_EPOCHS):
            for x, y, *weights, index in loader:
                w = weights[0] if weights else torch.ones(len(y))
                loss = weighted_loss(F.cross_entropy(model(x), y, reduction="none"), w)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                rows = [
                    f"{i}:{v:.9g}:{float(p):.9g}"
                    for i, v, p in zip(
                        index.tolist(), w.tolist(), x.double().flatten(1).sum(1), strict=True
                    )
                ]
                log.write(f"{step} {epoch} {loss.item()!r} {' '.join(rows)}\n")
                log.flush()
                if step % save_every == 0:
                    save()
                if is_preempted.is_set():
                    break
            if is_preempted.is_set():
                save()
                return
    partial = folder / "weights.partial"
    torch.save(model.state_dict(), partial)
    partial.replace(folder / "weights")


@dataclass(frozen=True)
class Outcome:
    """What was left of runs that were killed many times.

    Args:
        kills: How often one was killed before it had ended by itself.
        rows: Rows of as many uninterrupted runs.
        mismatched: Logged rows that differ from the uninterrupted run's at the same step, or are
            of a step that it does not have.
        lost: Rows of an example that a run, each step as it was done last, has less often in an
            epoch than the uninterrupted one.
        twice: Those that it has more often.
        same_weights: Whether the final weights are the same to the bit.
    """

    kills: int
    rows: int
    mismatched: int
    lost: int
    twice: int
    same_weights: bool


def kill_and_resume(
    layout: Literal["mixed", "grouped"],
    workers: int,
    kills: int,
    seed: int,
    *,
    by: signal.Signals = signal.SIGKILL,
    **options: Any,
) -> Outcome:
    """Train once without interruption, then killed at random points, and compare.

    Runs are forked, so that they begin within milliseconds; the signal comes after a random part of
    the uninterrupted run's time. A run that ends before it is followed by another. Call it in a
    process whose autograd has no threads yet, such as those of a GPU: a fork's would not run.

    Args:
        layout: Of the loader.
        workers: Of the DataLoader.
        kills: How often to kill, over all runs.
        seed: Of the points in time.
        by: SIGKILL, or SIGTERM, after which a run saves and ends by itself.
        options: Of :func:`train`.
    """
    # What a process's first optimizer imports and first policy loads takes longer than a run.
    torch.optim.SGD([torch.zeros(1)], 0.1)
    RandomOps.paper()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        begin = time.perf_counter()
        _was_killed(_forked(whole, layout, workers, options))
        seconds = time.perf_counter() - begin
        done = 0
        found: list[_Comparison] = []
        while done < kills:
            killed = Path(scratch, str(len(found)))
            killed.mkdir()
            while not (killed / "weights").exists():
                child = _forked(killed, layout, workers, options)
                is_hit = done < kills
                if is_hit:
                    time.sleep(rng.uniform(0.1, 1.0) * seconds)
                    os.kill(child.pid or 0, by)
                is_cut = _was_killed(child) or (is_hit and by == signal.SIGTERM)
                done += is_cut and not (killed / "weights").exists()
            found.append(_compared(whole, killed))
    return Outcome(
        kills=done,
        rows=sum(each.rows for each in found),
        mismatched=sum(each.mismatched for each in found),
        lost=sum(each.lost for each in found),
        twice=sum(each.twice for each in found),
        same_weights=all(each.same_weights for each in found),
    )


def _forked(
    folder: Path, layout: Literal["mixed", "grouped"], workers: int, options: dict[str, Any]
) -> BaseProcess:
    child = get_context("fork").Process(
        target=train, args=(folder, layout, workers), kwargs=options
    )
    child.start()
    return child


def _was_killed(child: BaseProcess) -> bool:
    """Return whether a process died of SIGKILL, not by itself before it came; raise if it failed.

    Raises:
        RuntimeError: If it ended in any other way than well.
    """
    child.join()
    code = child.exitcode
    child.close()
    if code not in (0, -signal.SIGKILL, -signal.SIGTERM):  # before the handler is installed
        raise RuntimeError(f"the training run ended with status {code}.")
    return code != 0


class _Step(NamedTuple):
    """A line of a log."""

    number: int
    line: str

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Epoch and index of each row."""
        words = self.line.split(" ")
        return [(words[1], row.split(":")[0]) for row in words[3:]]


def _steps(folder: Path) -> list[_Step]:
    lines = (folder / "log").read_text().splitlines()
    return [_Step(int(line.split(" ", 1)[0]), line) for line in lines if " " in line]


class _Comparison(NamedTuple):
    rows: int
    mismatched: int
    lost: int
    twice: int
    same_weights: bool


def _compared(whole: Path, killed: Path) -> _Comparison:
    expected, steps = {step.number: step for step in _steps(whole)}, _steps(killed)
    mismatched = 0
    for step in steps:
        if step.number not in expected:
            mismatched += len(step.rows)
        # A line that the kill cut off is done again.
        elif not expected[step.number].line.startswith(step.line):
            mismatched += len(expected[step.number].rows)
    ours, theirs = _counts(list(expected.values())), _counts(steps)
    weights = [torch.load(each / "weights", weights_only=True) for each in (whole, killed)]
    return _Comparison(
        rows=ours.total(),
        mismatched=mismatched,
        lost=(ours - theirs).total(),
        twice=(theirs - ours).total(),
        same_weights=all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
    )


def _counts(steps: Sequence[_Step]) -> Counter[tuple[str, str]]:
    """Return how often an epoch has rows of an example: of a step that was done again, the last."""
    last = {step.number: step for step in steps}
    return Counter(row for step in last.values() for row in step.rows)
