"""Kill a training run at random points, start it again, and compare every row and the weights."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    CropFlip,
    RandomOps,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
    weighted_loss,
)

__all__ = ["Outcome", "kill_and_resume"]

N = 96
NUM_EPOCHS = 4


def train(
    folder: Path, layout: Literal["mixed", "grouped"], workers: int, *, save_every: int = 3
) -> None:
    """Train four epochs, from the checkpoint in the folder if there is one; log every row."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=generator)
    data = TensorDataset(x, torch.arange(N) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    loader = DataLoader(data, 8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    loader = SubsetAugmentLoader(
        loader,
        model,
        RandomOps.paper(),
        fraction=0.2,
        copies=3,
        every=2,
        base=CropFlip(1),
        layout=layout,
        return_index=True,
    )
    checkpoint = folder / "checkpoint"
    step = 0
    if checkpoint.exists():
        states = load_checkpoint(checkpoint)
        loader.load_state_dict(states["loader"])
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        step = states["step"]
    with (folder / "log").open("a") as log:
        log.write("\n")  # what was killed may have left half a line
        for epoch in range(loader.epoch, NUM_EPOCHS):
            for x, y, w, index in loader:
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
                    save_checkpoint(
                        checkpoint,
                        loader=loader.state_dict(),
                        model=model.state_dict(),
                        optimizer=optimizer.state_dict(),
                        step=step,
                    )
    partial = folder / "weights.partial"
    torch.save(model.state_dict(), partial)
    os.replace(partial, folder / "weights")


@dataclass(frozen=True)
class Outcome:
    """What was left of a run after it was killed many times.

    Args:
        kills: How often it was killed before it ended by itself.
        rows: Rows of the uninterrupted run.
        mismatched: Logged rows that differ from the uninterrupted run's at the same step, or are
            of a step that it does not have: seen twice.
        lost: Rows of the uninterrupted run that were never logged.
        same_weights: Whether the final weights are the same to the bit.
    """

    kills: int
    rows: int
    mismatched: int
    lost: int
    same_weights: bool


def kill_and_resume(
    layout: Literal["mixed", "grouped"], workers: int, kills: int, seed: int
) -> Outcome:
    """Train once without interruption, once killed at random points, and compare.

    Runs are forked, so that they begin within milliseconds; SIGKILL comes after a random part of
    the uninterrupted run's time.

    Args:
        layout: Of the loader.
        workers: Of the DataLoader.
        kills: How often to kill.
        seed: Of the points in time.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        whole.mkdir()
        killed.mkdir()
        begin = time.perf_counter()
        _wait(_forked(whole, layout, workers))
        seconds = time.perf_counter() - begin
        done = 0
        while done < kills:
            child = _forked(killed, layout, workers)
            time.sleep(rng.uniform(0.1, 1.0) * seconds)
            os.kill(child, signal.SIGKILL)
            _wait(child, may_fail=True)
            done += 1
            if (killed / "weights").exists():
                break
        while not (killed / "weights").exists():
            _wait(_forked(killed, layout, workers))
        return _compared(whole, killed, done)


def _forked(folder: Path, layout: Literal["mixed", "grouped"], workers: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        train(folder, layout, workers)
        status = 0
    finally:
        os._exit(status)


def _wait(child: int, *, may_fail: bool = False) -> None:
    _, status = os.waitpid(child, 0)
    if status and not may_fail:
        raise RuntimeError(f"the training run ended with status {status}.")


def _steps(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "log").read_text().splitlines()
    return [(int(line.split(" ", 1)[0]), line) for line in lines if " " in line]


def _compared(whole: Path, killed: Path, kills: int) -> Outcome:
    expected = dict(_steps(whole))
    num_rows = {step: line.count(":") // 2 for step, line in expected.items()}
    mismatched, seen = 0, set()
    for step, line in _steps(killed):
        if step not in expected:
            mismatched += line.count(":") // 2
        elif expected[step] == line:
            seen.add(step)
        elif not expected[step].startswith(line):  # a line that the kill cut off is no row
            mismatched += num_rows[step]
    lost = sum(count for step, count in num_rows.items() if step not in seen)
    ours, theirs = (torch.load(each / "weights", weights_only=True) for each in (whole, killed))
    return Outcome(
        kills=kills,
        rows=sum(num_rows.values()),
        mismatched=mismatched,
        lost=lost,
        same_weights=all(torch.equal(ours[name], theirs[name]) for name in ours),
    )
