"""The one training loop that the demo and every benchmark share, and what a result depends on."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import augsubset
from augsubset import RowKeys, SubsetAugmentLoader, weighted_loss
from augsubset.normalization import Normalization
from benchmarks.datasets import FolderData, ImageData, tail_classes
from benchmarks.strength import Strength

__all__ = [
    "RunResult",
    "TrainingPlan",
    "environment",
    "evaluate",
    "graphed",
    "train",
    "unchanged",
]


def unchanged(x: Tensor, rows: RowKeys) -> Tensor:
    """Stand in for strong augmentation in the arms that have none."""
    return x


@dataclass(frozen=True)
class TrainingPlan:
    """SGD with momentum, linear warm-up, then cosine to zero or a tenth at each milestone.

    The schedule is laid out in ``epochs``, and stretched over ``steps`` or ``seconds`` where one of
    them is given: then that many are run, in as many passes of the loader as it takes.

    Args:
        epochs: Passes of the loader.
        lr: Peak learning rate.
        momentum: Of SGD.
        weight_decay: On all parameters.
        warmup: Epochs of linear warm-up.
        milestones: Epochs at which the rate falls to a tenth; empty for cosine.
        steps: Gradient steps to run instead.
        seconds: Time to train for instead, selection and augmentation included.
        precision: Of the forward and backward pass; weights are float32.
        graphed: Whether these passes are CUDA graphs, for batches of the full size.
    """

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 1.0
    milestones: tuple[int, ...] = ()
    steps: int | None = None
    seconds: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    graphed: bool = False

    def lr_at(self, epoch: float) -> float:
        """Return the learning rate at a point in time, in epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.milestones:
            return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        progress = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def done(self, step: int, steps_an_epoch: int, seconds: float) -> float:
        """Return the share of the run that is over before a step; at least 1: all of it."""
        if self.seconds is not None:
            return seconds / self.seconds
        return step / (self.epochs * steps_an_epoch if self.steps is None else self.steps)


@dataclass(frozen=True)
class RunResult:
    """What one training run gave.

    Args:
        accuracies: On the test images, in [0, 1], each time it was evaluated.
        steps: Gradient steps.
        rows: That went through them.
        augmented: Rows among them that were augmented copies.
        seconds: By bucket.
        evaluated_at: Steps done at each evaluation.
        losses: Mean training loss of each epoch, weighted where rows have weights.
        balanced_accuracy: At the end: the mean over the classes of the accuracy in each.
        tail_accuracy: Likewise, over the tail of the training data; ``None`` where it has none.
        epoch_seconds: Those of each epoch, by bucket.
    """

    accuracies: list[float]
    steps: int
    rows: int
    augmented: int
    seconds: dict[str, float]
    evaluated_at: list[int]
    losses: list[float]
    balanced_accuracy: float
    tail_accuracy: float | None = None
    epoch_seconds: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    loader: SubsetAugmentLoader,
    data: ImageData | FolderData,
    plan: TrainingPlan,
    *,
    evaluate_every: int = 1,
    before_epoch: Callable[[int], None] | None = None,
    after_epoch: Callable[[int, float | None], None] | None = None,
    strength: Strength | None = None,
) -> RunResult:
    """Train and return the record: the one loop that all arms of all benchmarks go through.

    Evaluation happens between epochs and is in no time bucket.

    Args:
        model: On its device.
        loader: Of the arm.
        data: To evaluate on.
        plan: Of the run.
        evaluate_every: Epochs between evaluations; the last epoch is always evaluated.
        before_epoch: Called with each epoch before it begins; what it raises ends the run.
        after_epoch: Called with each epoch and its accuracy, ``None`` where it was not evaluated.
        strength: A policy that learns from the passes; the loader then yields indices last.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(),
        plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        fused=device.type == "cuda",
    )
    narrow = partial(
        torch.autocast, device.type, torch.bfloat16, enabled=plan.precision == "bfloat16"
    )
    forward: Callable[[Tensor], Tensor] | None = None if plan.graphed else model
    accuracies, evaluated_at, losses = [], [], []
    in_classes = torch.full((data.num_classes,), math.nan)
    step, epoch, seconds, is_over = 0, 0, 0.0, False
    while not is_over:
        if before_epoch is not None:
            before_epoch(epoch)
        if strength is not None:
            strength.start_epoch(len(data.y_train), plan.done(step, len(loader), seconds))
        model.train()
        total, begin = torch.zeros((), device=device), time.perf_counter()
        batches, first = iter(loader), step
        for x, y, *weights in batches:
            index = weights.pop() if strength is not None else None
            # The rate of a step is that at its end: the first is not zero, the last is.
            spent = seconds + time.perf_counter() - begin
            share = plan.done(step + 1, len(loader), spent)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at(min(share, 1.0) * plan.epochs)
            if forward is None:
                forward = graphed(model, x, narrow)
            with narrow():
                logits = forward(x)
            losses_of_rows = F.cross_entropy(logits.float(), y, reduction="none")
            loss = weighted_loss(losses_of_rows, *weights) if weights else losses_of_rows.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if strength is not None and index is not None:
                strength.observe(index, logits, y)
            step += 1
            total += loss.detach()
            is_over = share >= 1
            if is_over:
                break
        batches.close()  # type: ignore[attr-defined]
        losses.append(float(total) / (step - first))
        seconds += time.perf_counter() - begin
        accuracy = None
        if is_over or (epoch + 1) % evaluate_every == 0:
            accuracy, in_classes = evaluate(model, data)
            accuracies.append(accuracy)
            evaluated_at.append(step)
        if after_epoch is not None:
            after_epoch(epoch, accuracy)
        epoch += 1
    epochs = [entry for entry in loader.history if entry["event"] == "epoch"]
    tail = tail_classes(data.y_train, data.num_classes)
    buckets = ("selection", "loading", "augmentation", "step", "total")
    epoch_seconds = [{name: entry[f"{name}_seconds"] for name in buckets} for entry in epochs]
    return RunResult(
        accuracies=accuracies,
        steps=step,
        rows=sum(entry["num_rows"] for entry in epochs),
        augmented=sum(entry["num_copies"] for entry in epochs),
        seconds={name: sum(entry[name] for entry in epoch_seconds) for name in buckets},
        evaluated_at=evaluated_at,
        losses=losses,
        balanced_accuracy=float(in_classes.nanmean()),
        tail_accuracy=None if tail is None else float(in_classes[tail].nanmean()),
        epoch_seconds=epoch_seconds,
    )


class _Whole(nn.Module):
    """A module to capture, so that the model itself stays as it is for whoever else calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def graphed(
    model: nn.Module, x: Tensor, narrow: Callable[..., torch.autocast]
) -> Callable[[Tensor], Tensor]:
    """Return the model's training passes as CUDA graphs: small networks are launches otherwise.

    Batches of another shape, an epoch's last, go through the model as it is. Buffers that
    capturing changed are put back.

    Args:
        model: In training mode, on a CUDA device.
        x: A batch of the shape to capture.
        narrow: Makes the context to run in.
    """
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Casts of weights must be a part of the graph, not remembered from before it.
    with narrow(cache_enabled=False):
        captured = torch.cuda.make_graphed_callables(_Whole(model), (x.clone(),))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    return lambda batch: captured(batch) if batch.shape == x.shape else model(batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageData | FolderData, batch_size: int = 500
) -> tuple[float, Tensor]:
    """Return the share of test images classified correctly, and that of each class.

    Shape:
        ``(C,)`` float64 on the CPU, NaN for a class without test images.
    """
    normalization = Normalization(data.mean_std, None)
    device = next(model.parameters()).device
    model.eval()
    correct, count = torch.zeros(2, data.num_classes, device=device)
    for x, y in data.test_batches(batch_size):
        x, y = x.to(device), y.to(device)
        hits = model(normalization.to_model(x)).argmax(1) == y
        correct.index_add_(0, y, hits.float())
        count += torch.bincount(y, minlength=data.num_classes)
    return int(correct.sum()) / int(count.sum()), (correct / count).double().cpu()


# --------------------------------------------------------------------------------------- record


def environment(data: ImageData | None = None, device: str | None = None) -> dict[str, Any]:
    """Return what a result depends on beside the code's arguments.

    Args:
        data: That was used.
        device: That was used; without, the GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    return {
        "augsubset": augsubset.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("torchvision", "numpy", "scipy")},
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "threads": torch.get_num_threads(),
        "data": None if data is None else {"name": data.name, "sha256": data.digest},
    }


def _commit() -> str:
    """Return the commit that runs, "-dirty" where more than records differs, or "unknown"."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        found = git("describe", "--always").stdout.strip()
        changed = git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results")
    except OSError:  # no git
        return "unknown"
    return found + "-dirty" * bool(changed.returncode) if found else "unknown"


def _processor() -> str:
    """Return the processor's own name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
