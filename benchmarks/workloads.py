"""What the selection benchmark measures: a function a workload, and the pieces they share.

Both sides of a ratio run in one process, one after the other, on the same rows. Whole calls of
``select_coreset`` are timed, its checks of the input included.
"""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from augsubset import LastLayerGradients, MaxLossSelector, Selection, select_coreset
from augsubset.selection import solver
from benchmarks import peers
from benchmarks.measuring import Figure, PeakMemory, in_turn, resident_bytes, summary, times
from benchmarks.residuals import load, softmax_residuals

__all__ = [
    "NEED_DATA",
    "ON_DEVICE",
    "WORKLOADS",
    "Result",
    "Setting",
    "error_of",
    "errors",
    "quick",
]

PART_SIZE: int = inspect.signature(select_coreset).parameters["part_size"].default
MB = 1e6


class Setting(NamedTuple):
    """What a workload is run on.

    Args:
        device: Where exact methods solve: "cpu", or "cuda" for those of :data:`ON_DEVICE`.
        residuals: A network's, by :func:`benchmarks.residuals.save`; ``None`` without images.
    """

    device: str = "cpu"
    residuals: Path | None = None

    def load(self) -> LastLayerGradients:
        """Read the network's residuals."""
        if self.residuals is None:
            raise ValueError("this workload needs a network's residuals: pass --data.")
        return load(self.residuals)


class Result(NamedTuple):
    """Figures to judge, everything measured beside them, and what a reader must know."""

    figures: list[Figure]
    measured: dict[str, Any]
    notes: list[str]


# -------------------------------------------------------------------------------------- pieces


def error_of(gradients: LastLayerGradients, chosen: Tensor) -> float:
    """Return the cost xi of any subset: distances to the nearest chosen of one's class, summed."""
    error = 0.0
    residual = gradients.residual.double()
    for label in torch.unique(gradients.labels):
        members = (gradients.labels == label).nonzero().squeeze(1)
        centres = members[torch.isin(members, chosen)]
        for rows in torch.split(members, 2048):
            distances = torch.cdist(
                residual[rows],
                residual[centres],
                compute_mode="donot_use_mm_for_euclid_dist",  # the Gram form loses near-duplicates
            )
            error += float(distances.amin(1).sum())
    return error


def random_with_budgets(gradients: LastLayerGradients, like: Tensor, seed: int) -> Tensor:
    """Return a random subset with as many examples of each class as another has."""
    rng = np.random.default_rng(seed)
    parts = []
    for label in torch.unique(gradients.labels):
        members = (gradients.labels == label).nonzero().squeeze(1).numpy()
        count = int((gradients.labels[like] == label).sum())
        parts.append(torch.from_numpy(rng.permutation(members)[:count]))
    return torch.cat(parts)


def quality(selection: Selection) -> dict[str, Any]:
    """Return what the certificate says."""
    certificate = selection.certificate
    assert certificate is not None
    return {
        "selected": len(selection),
        "error": certificate.error,
        "error_lower_bound": certificate.error_lower_bound,
        "error_ratio": certificate.error_ratio,
        "gradient_error": certificate.gradient_error,
        "gradient_norm": certificate.gradient_norm,
        "effective_sample_size": certificate.effective_sample_size,
    }


def against_peers(
    gradients: LastLayerGradients,
    fraction: float,
    targets: dict[str, float],
    *,
    repeats: int,
    peer_repeats: int = 1,
    name: str = "",
) -> Result:
    """Time a whole selection, and every peer of ``targets`` on each class in turn."""

    def ours() -> Selection:
        return select_coreset(gradients, fraction=fraction)

    chosen = ours()  # compiles
    seconds = summary(times(ours, repeats, warm_up=False))
    measured: dict[str, Any] = {"ours": {"seconds": seconds, **quality(chosen)}}
    own_error = error_of(gradients, chosen.indices)
    if abs(own_error - measured["ours"]["error"]) > 1e-5 * own_error:
        raise AssertionError(f"certificate {measured['ours']['error']}, recomputed {own_error}")
    figures = []
    for peer, target in targets.items():
        # Imports and the libraries' own first calls are not its solving.
        peers.solve_by_class(
            peer, gradients.residual[:50], torch.zeros(50, dtype=torch.int64), torch.arange(5)
        )
        runs = [
            peers.solve_by_class(peer, gradients.residual, gradients.labels, chosen.indices)
            for _ in range(peer_repeats)
        ]
        whole = summary([run.seconds for run in runs])
        without = summary([run.seconds - run.compiling for run in runs])
        error = error_of(gradients, runs[0].positions)
        measured[peer] = {"seconds": whole, "error": error}
        ratio = whole["median"] / seconds["median"]
        figures.append(Figure(f"{name}faster than {peer}", ratio, "x", "higher", target))
        if peer == "apricot":
            measured[peer]["seconds_without_compiling"] = without
            ratio = without["median"] / seconds["median"]
            figures.append(
                Figure(
                    f"{name}faster than {peer}, its compiling left out",
                    ratio,
                    "x",
                    "higher",
                    target,
                )
            )
        figures.append(Figure(f"{name}error over {peer}'s", own_error / error, "x", "lower"))
    return Result(figures, measured, [PEERS_NOTE])


PEERS_NOTE = (
    "Each peer solves class by class with our budgets and builds its kernel inside its time. "
    "Errors are sums of distances; submodlib maximises exp(-d / p), apricot max d^2 - d^2, so a "
    "larger error there is another objective as much as another solver. apricot compiles anew in "
    "every fit: both figures are given."
)


def certificate_share(
    gradients: LastLayerGradients, fraction: float, repeats: int, name: str = ""
) -> Result:
    """Return what the bound and the error take of a whole selection on one thread."""
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args)
            spent[0] += time.perf_counter() - begin
            return result

        return call

    shares = []
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        for part in ("_bound_cost", "_build_solution"):
            stack.enter_context(patch.object(solver, part, timed(getattr(solver, part))))
        select_coreset(gradients, fraction=fraction)
        for _ in range(repeats):
            spent[0] = 0.0
            begin = time.perf_counter()
            select_coreset(gradients, fraction=fraction)
            shares.append(spent[0] / (time.perf_counter() - begin))
    share = summary(shares)
    figure = Figure(f"{name}certificate's share", share["median"], "share", "lower", 0.1)
    return Result([figure], {"share": share}, ["The share is taken on one thread."])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def partitioned_over_exact(x: Tensor, part_size: int, repeats: int, name: str = "") -> Result:
    """Return how much faster solving one group in parts at 10% is, and the error it costs."""

    def exact() -> Selection:
        return select_coreset(x, fraction=0.1, method="lazy")

    def in_parts() -> Selection:
        return select_coreset(x, fraction=0.1, method="partitioned", part_size=part_size)

    found = {"exact": exact(), "partitioned": in_parts()}
    seconds = in_turn({"exact": exact, "partitioned": in_parts}, repeats)
    measured: dict[str, Any] = {"part_size": part_size}
    for key, selection in found.items():
        measured[key] = {"seconds": summary(seconds[key]), **quality(selection)}
    error = measured["partitioned"]["error"] / measured["exact"]["error"]
    faster = statistics.median(seconds["exact"]) / statistics.median(seconds["partitioned"])
    return Result(
        [
            Figure(f"{name}error in parts over exact", error, "x", "lower", 1.02),
            Figure(f"{name}faster in parts than exact", faster, "x", "higher"),
        ],
        measured,
        [],
    )


def matrix_products(
    num_classes: int, size: int, d: int, repeats: int
) -> tuple[Tensor, Tensor, list[float]]:
    """Return synthetic residuals, their labels, and the seconds of all X_c X_c^T in float32.

    Classes are interleaved, as in a shuffled dataset; for the products each is copied together
    outside the time.
    """
    x = torch.empty(num_classes * size, d)
    for c in range(num_classes):
        x[c::num_classes] = softmax_residuals(size, d, c, c % d)
    product = torch.empty(size, size)
    seconds = []
    for _ in range(repeats + 1):
        spent = 0.0
        for c in range(num_classes):
            rows = x[c::num_classes].contiguous()
            begin = time.perf_counter()
            torch.mm(rows, rows.T, out=product)
            spent += time.perf_counter() - begin
        seconds.append(spent)
    return x, torch.arange(len(x)) % num_classes, seconds[1:]


def last_layer_over_logits(gradients: LastLayerGradients, fraction: float, repeats: int) -> Result:
    """Time selecting by residual ⊗ input and by the residual alone, in turn."""
    both = {
        "last_layer": gradients,
        "logits": LastLayerGradients.from_residual(gradients.residual),
    }
    calls = {name: partial(select_coreset, each, fraction=fraction) for name, each in both.items()}
    found = {name: call() for name, call in calls.items()}
    raw = in_turn(calls, repeats)
    measured = {
        name: {"seconds": summary(raw[name]), **quality(selection)}
        for name, selection in found.items()
    }
    ratio = statistics.median(raw["last_layer"]) / statistics.median(raw["logits"])
    figure = Figure(f"{fraction:.0%}: time over logits", ratio, "x", "lower", 2.0)
    return Result([figure], measured, [])


def on_device(
    x: Tensor, labels: Tensor | None, fraction: float, setting: Setting, target: float, name: str
) -> Result:
    """Time a device, and hold its selection against the CPU's."""
    cpu = select_coreset(x, labels, fraction=fraction)
    torch.cuda.reset_peak_memory_stats()

    def ours() -> Selection:
        return select_coreset(x, labels, fraction=fraction, device=setting.device)

    found = ours()
    seconds = summary(times(ours, 5, warm_up=False))
    same = float(found.digest == cpu.digest)
    return Result(
        [
            Figure(f"{name}seconds", seconds["median"], "s", "lower", target),
            Figure(f"{name}same selection as the CPU (1: yes)", same, "", "higher", 1.0),
        ],
        {
            "seconds": seconds,
            "device_peak_bytes": torch.cuda.max_memory_allocated(),
            **quality(found),
        },
        [],
    )


def together(**results: Result) -> Result:
    """Put the results of a workload's parts together."""
    return Result(
        [figure for result in results.values() for figure in result.figures],
        {name: result.measured for name, result in results.items()},
        list(dict.fromkeys(note for result in results.values() for note in result.notes)),
    )


def _one_group(residual: Tensor) -> LastLayerGradients:
    return LastLayerGradients.from_residual(residual.contiguous())


# ----------------------------------------------------------------------------------- workloads


def real(setting: Setting) -> Result:
    """10 classes of 5,000 residuals of a network, at 10% and 30%, against both peers."""
    gradients = setting.load()
    gradients = LastLayerGradients.from_residual(gradients.residual, gradients.labels)
    parts = {}
    for fraction, name in ((0.1, "10%"), (0.3, "30%")):
        if setting.device != "cpu":
            parts[name] = on_device(
                gradients.residual, gradients.labels, fraction, setting, 0.3, f"{name}: "
            )
            continue
        targets = {"submodlib": 60.0, "apricot": 25.0}
        parts[name] = against_peers(gradients, fraction, targets, repeats=5, name=f"{name}: ")
        parts[f"{name} certificate"] = certificate_share(gradients, fraction, 5, f"{name}: ")
    return together(**parts)


def svhn_largest(setting: Setting) -> Result:
    """One group of 13,861, the size of SVHN's largest class, at 30%, against submodlib."""
    group = _one_group(setting.load().residual[:13_861])
    select_coreset(group.residual[:200], fraction=0.3)  # compiles
    with PeakMemory() as memory:
        select_coreset(group, fraction=0.3)
    timed = against_peers(group, 0.3, {"submodlib": 25.0}, repeats=5)
    figure = Figure("extra memory", memory.extra_bytes / MB, "MB", "lower", 1200)
    note = (
        "No SVHN is at hand: the rows are the first 13,861 of CIFAR-10's residuals, of all classes."
    )
    return Result([*timed.figures, figure], timed.measured, [*timed.notes, note])


def imagenet(
    setting: Setting, num_classes: int = 1000, size: int = 1300, d: int = 1000, repeats: int = 2
) -> Result:
    """1,000 classes of 1,300 synthetic residuals in 1,000 dimensions, at 10%."""
    x, labels, products = matrix_products(num_classes, size, d, repeats)
    note = "Synthetic: softmax(z) - onehot(y) of normal logits, classes interleaved."
    if setting.device != "cpu":
        found = on_device(x, labels, 0.1, setting, 3.0, "")
        return Result(found.figures, found.measured, [note])
    few = 100 * num_classes
    select_coreset(x[:few:num_classes].contiguous(), fraction=0.1)  # compiles
    found = []
    with PeakMemory() as memory:
        seconds = summary(
            times(
                lambda: found.append(quality(select_coreset(x, labels, fraction=0.1))),
                repeats,
                warm_up=False,
            )
        )
    ratio = seconds["median"] / statistics.median(products)
    return Result(
        [
            Figure("time over matrix products", ratio, "x", "lower", 3.0),
            Figure("seconds", seconds["median"], "s", "lower", 90.0),
            Figure("extra memory", memory.extra_bytes / MB, "MB", "lower", 600),
        ],
        {"seconds": seconds, "matrix_products_seconds": summary(products), **found[0]},
        [note],
    )


def _hard_and_easy(n: int) -> dict[str, Tensor]:
    return {
        "softmax": softmax_residuals(n, 10),
        "gaussian": torch.randn(n, 10, generator=torch.Generator().manual_seed(0)),
    }


def million(setting: Setting, n: int = 1_000_000) -> Result:
    """One group of a million in 10 dimensions, at 10%, in parts."""
    groups = _hard_and_easy(n)
    figures: list[Figure] = []
    measured: dict[str, Any] = {"part_size": PART_SIZE}
    if setting.device != "cpu":
        return together(
            **{
                name: on_device(x, None, 0.1, setting, 10.0, f"{name}: ")
                for name, x in groups.items()
            }
        )
    few = groups["softmax"][:5000].clone()
    select_coreset(few, fraction=0.1, method="partitioned", part_size=1024)  # compiles
    before = resident_bytes()  # for both: what the first leaves with the allocator counts
    for name, x in groups.items():
        begin = time.perf_counter()
        with PeakMemory(before) as memory:
            selection = select_coreset(x, fraction=0.1, method="partitioned")
        seconds = time.perf_counter() - begin
        measured[name] = {
            "seconds": summary([seconds]),
            "extra_bytes": memory.extra_bytes,
            **quality(selection),
        }
        figures += [
            Figure(f"{name}: seconds", seconds, "s", "lower", 60.0),
            Figure(f"{name}: extra memory", memory.extra_bytes / MB, "MB", "lower", 1500),
        ]
    return Result(figures, measured, [])


def million_quality(setting: Setting, n: int = 20_000) -> Result:
    """What parts of that size cost in error where exact is possible."""
    groups = {**_hard_and_easy(n), "real": setting.load().residual[:n].contiguous()}
    return together(
        **{name: partitioned_over_exact(x, PART_SIZE, 3, f"{name}: ") for name, x in groups.items()}
    )


def last_layer(setting: Setting) -> Result:
    """One class of 5,000 of a network's residuals ⊗ 64 inputs, against the residuals alone."""
    whole = setting.load()
    members = (whole.labels == 0).nonzero().squeeze(1)
    gradients = LastLayerGradients(
        residual=whole.residual[members],
        inputs=None if whole.inputs is None else whole.inputs[members],
        labels=whole.labels[members],
        indices=torch.arange(len(members)),
        losses=whole.losses[members],
    )
    timed = {
        f"{fraction:.0%}": last_layer_over_logits(gradients, fraction, 7) for fraction in (0.1, 0.3)
    }
    return together(**timed, distances=last_layer_distances(gradients))


def last_layer_distances(gradients: LastLayerGradients) -> Result:
    """Hold squared distances against those of the outer products, formed in float64."""
    assert gradients.inputs is not None
    rows = torch.einsum("ni,nj->nij", gradients.residual.double(), gradients.inputs.double())
    rows = rows.flatten(1)
    squares = rows.square().sum(1)
    largest = wrong = 0.0
    everybody = torch.arange(len(rows))
    for some in torch.split(everybody, 500):
        exact = squares[some, None] + squares[None] - 2 * rows[some] @ rows.T
        found = gradients.distances(some, everybody).double().square()
        largest = max(largest, float(exact.max()))
        wrong = max(wrong, float((found - exact).abs().max()))
    figure = Figure("squared distances off, of the largest", wrong / largest, "", "lower", 1e-5)
    return Result([figure], {"largest": largest, "largest_difference": wrong}, [])


def errors(
    gradients: LastLayerGradients, fraction: float = 0.1, repeats: int = 9
) -> dict[str, Any]:
    """Return solve times, and errors beside those of random and max-loss subsets."""
    selection = select_coreset(gradients, fraction=fraction)  # compiles
    seconds = times(lambda: select_coreset(gradients, fraction=fraction), repeats, warm_up=False)
    found = quality(selection)
    hardest = MaxLossSelector("class").select(gradients, budget=len(selection), seed=0, epoch=0)
    at_random = [
        error_of(gradients, random_with_budgets(gradients, selection.indices, seed))
        for seed in range(10)
    ]
    max_loss = error_of(gradients, hardest.indices)
    return {
        "examples": len(gradients),
        "fraction": fraction,
        "seconds": summary(seconds),
        **found,
        "error_random_mean": statistics.mean(at_random),
        "error_random_all": at_random,
        "error_max_loss": max_loss,
        "coreset_over_random": found["error"] / statistics.mean(at_random),
        "coreset_over_max_loss": found["error"] / max_loss,
    }


def errors_of_real(setting: Setting, n: int = 10_000) -> Result:
    """The coreset's error beside other subsets', on the images that the network was trained on."""
    whole = setting.load()
    gradients = LastLayerGradients(
        residual=whole.residual[:n],
        inputs=None,
        labels=whole.labels[:n],
        indices=whole.indices[:n],
        losses=whole.losses[:n],
    )
    measured = errors(gradients)
    return Result(
        [
            Figure("error over random's", measured["coreset_over_random"], "x", "lower"),
            Figure("error over max-loss's", measured["coreset_over_max_loss"], "x", "lower"),
            Figure("seconds", measured["seconds"]["median"], "s", "lower"),
        ],
        measured,
        ["Random: the mean of ten subsets with the same class budgets."],
    )


_FIRST_CALL = """
import json, time
begin = time.perf_counter()
import torch
from augsubset import select_coreset
imported = time.perf_counter()
points = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
before = time.perf_counter()
select_coreset(points, fraction=0.1)
print(json.dumps({"import": imported - begin, "first_call": time.perf_counter() - before}))
"""


def first_call(setting: Setting, repeats: int = 3) -> Result:
    """Time the first selection of a process on 100 x 3, with nothing compiled and with a cache."""
    raw: dict[str, list[float]] = {"import": [], "compiling": [], "cached": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in ("compiling", "cached"):
                done = subprocess.run(
                    [sys.executable, "-c", _FIRST_CALL],
                    env={**os.environ, "NUMBA_CACHE_DIR": cache},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                seconds = json.loads(done.stdout)
                raw[name].append(seconds["first_call"])
                raw["import"].append(seconds["import"])
    medians = {name: statistics.median(values) for name, values in raw.items()}
    return Result(
        [
            Figure("first call, nothing compiled", medians["compiling"], "s", "lower", 3.0),
            Figure("first call of the next process", medians["cached"], "s", "lower"),
            Figure("import, torch included", medians["import"], "s", "lower"),
        ],
        {name: summary(values) for name, values in raw.items()},
        [],
    )


WORKLOADS: dict[str, Callable[[Setting], Result]] = {
    "real": real,
    "svhn-largest": svhn_largest,
    "imagenet": imagenet,
    "million": million,
    "million-quality": million_quality,
    "last-layer": last_layer,
    "first-call": first_call,
    "errors": errors_of_real,
}
NEED_DATA = ("real", "svhn-largest", "million-quality", "last-layer", "errors")
ON_DEVICE = ("real", "imagenet", "million")


# --------------------------------------------------------------------------------- quick form


def _synthetic_classes(num_classes: int, size: int) -> LastLayerGradients:
    residual = torch.cat([softmax_residuals(size, 10, c, c) for c in range(num_classes)])
    return LastLayerGradients.from_residual(
        residual, torch.arange(num_classes).repeat_interleave(size)
    )


def quick() -> Iterator[tuple[str, Result]]:
    """Measure every ratio at a small size, on synthetic residuals, in under a minute."""
    # Targets are for the full sizes; here the record is what a ratio is held to.
    for name, measure in QUICK.items():
        result = measure()
        yield name, result._replace(figures=[replace(each, target=None) for each in result.figures])


def _quick_peers() -> Result:
    targets = {"submodlib": 60.0, "apricot": 25.0}
    return against_peers(_synthetic_classes(2, 2000), 0.1, targets, repeats=15, peer_repeats=2)


def _quick_last_layer() -> Result:
    outer = LastLayerGradients(
        residual=softmax_residuals(2000, 10),
        inputs=torch.rand(2000, 64, generator=torch.Generator().manual_seed(0)),
        labels=torch.zeros(2000, dtype=torch.int64),
        indices=torch.arange(2000),
        losses=torch.zeros(2000),
    )
    return together(
        solving=last_layer_over_logits(outer, 0.1, 15), distances=last_layer_distances(outer)
    )


def _quick_errors() -> Result:
    measured = errors(_synthetic_classes(2, 2000), repeats=1)
    figure = Figure("error over random's", measured["coreset_over_random"], "x", "lower")
    return Result([figure], measured, [])


QUICK: dict[str, Callable[[], Result]] = {
    "peers": _quick_peers,
    "certificate": lambda: certificate_share(_synthetic_classes(2, 2000), 0.1, 15),
    "parts": lambda: partitioned_over_exact(softmax_residuals(20_000, 10), 2048, 3),
    "last-layer": _quick_last_layer,
    "errors": _quick_errors,
}
