"""What a distributed selection costs at sizes nobody here can run, from measured unit costs.

``python -m benchmarks.scale --out JSON`` measures the costs of a pair, a byte and a row on this
machine, runs small distributed selections in up to eight processes to check that time, memory and
bytes grow as the model says, and prints what the model says of 10^8 and 10^9 examples.

Time is the processor time of the busiest rank: eight processes may share two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import nnls

from augsubset import LastLayerGradients
from augsubset.selection import partition, select_coreset_distributed
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import FacilityLocation
from augsubset.selection.greedy import lazy_greedy
from augsubset.selection.solver import LARGEST_EXACT
from benchmarks.harness import environment
from benchmarks.measuring import PeakMemory

PART_SIZE = 8192


@dataclass(frozen=True)
class Job:
    """A selection: examples in equal classes, features, budget, and who takes part."""

    examples: int
    classes: int
    width: int
    ranks: int
    cores: int = 1
    fraction: float = 0.1
    part_size: int = PART_SIZE

    @property
    def class_size(self) -> int:
        """Examples a class."""
        return self.examples // self.classes

    @property
    def in_parts(self) -> bool:
        """Whether a class is too large to be solved whole."""
        return self.class_size > LARGEST_EXACT


@dataclass(frozen=True)
class UnitCosts:
    """Seconds on one core, measured.

    Args:
        pair: For each pair of examples within a class or part: levels, greedy.
        pair_feature: For each pair and feature: differences.
        visit: For each row, pick that it is compared with, and feature.
        row: For each row of a rank, whatever is done with it once.
        result: For each example, on every rank: putting the selection together.
        fixed: For a rank, however little it does.
    """

    pair: float
    pair_feature: float
    visit: float
    row: float = 0.0
    result: float = 0.0
    fixed: float = 0.0


def predict(job: Job, costs: UnitCosts, visited: float) -> dict[str, float]:
    """Return seconds, bytes of memory and bytes exchanged of the busiest rank.

    Args:
        job: The selection.
        costs: Of one core.
        visited: Parts that a row's nearest pick is looked for in, beside classes solved whole.
    """
    rows = job.examples / job.ranks
    block = job.class_size
    if job.in_parts:
        block = 0.9 * job.part_size
    else:
        rows = -(-job.classes // job.ranks) * job.class_size  # the busiest rank's whole classes
    pairs = rows * block
    seconds = pairs * (costs.pair + costs.pair_feature * job.width) + rows * costs.row
    if job.in_parts:
        seconds += rows * visited * block * job.fraction * job.width * costs.visit
    seconds = seconds / job.cores + job.examples * costs.result + costs.fixed
    sent = (4 * job.width + 16) * job.examples / job.ranks
    picks = job.fraction * job.examples
    everybody = 16 * job.examples + 16 * picks
    if job.in_parts:
        parts = job.examples / (0.9 * job.part_size)
        everybody += picks * (4 * job.width + 32) + 512 * parts * (4 * job.width + 16)
    memory = 4 * (4 * job.width + 16) * rows + 72 * job.examples + job.cores * 4 * block**2
    return {
        "seconds": seconds,
        "sent_bytes": sent,
        "received_bytes": sent + everybody,
        "memory_bytes": memory,
    }


def measured_costs(block: int) -> UnitCosts:
    """Return the costs of a pair, in classes or parts of a size, and of a visit, on one core."""
    rng = np.random.default_rng(0)
    times = {}
    memory = np.empty(block**2, np.int32)
    for width in (10, 10, 200):  # the first compiles, and touches the memory
        rows = [Factors(rng.normal(size=(block, width)).astype(np.float32))]
        begin = time.process_time()
        for _ in range(3):
            lazy_greedy(FacilityLocation(rows, "shifted").compute_levels(memory), block // 10)
        times[width] = (time.process_time() - begin) / 3 / block**2
    feature = (times[200] - times[10]) / 190
    rows = [Factors(rng.normal(size=(8192, 10)).astype(np.float32))]
    numbers = np.arange(8192)
    for _ in range(2):
        begin = time.process_time()
        partition.PickIndex(rows, numbers, np.array([8192])).find_nearest(rows, 0)
        visit = (time.process_time() - begin) / (2 * 8192**2) / 10  # its own group twice
    return UnitCosts(times[10] - 10 * feature, feature, visit)


# ---------------------------------------------------------------------------------- simulation


def _rank(rank: int, job: Job, folder: str) -> None:
    """Select in one process, and write down what it took."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=job.ranks
    )
    received = [0]
    visits = [0]
    _count_bytes(received)
    _count_visits(visits)
    rng = np.random.default_rng(rank)
    indices = np.arange(rank, job.examples, job.ranks)
    logits = 2 * rng.normal(size=(len(indices), job.width)).astype(np.float32)
    residual = np.exp(logits)
    residual /= residual.sum(1, keepdims=True)
    labels = torch.from_numpy(indices % job.classes)
    shard = LastLayerGradients(
        torch.from_numpy(residual),
        None,
        labels,
        torch.from_numpy(indices),
        torch.zeros(len(indices)),
    )
    warm = LastLayerGradients.from_residual(shard.residual[:50])
    options = {"fraction": job.fraction, "part_size": job.part_size}
    options["timeout"] = timedelta(minutes=10)
    indices_here = torch.arange(rank, 50 * job.ranks, job.ranks)[:50]
    select_coreset_distributed(
        LastLayerGradients(warm.residual, None, warm.labels, indices_here, warm.losses), **options
    )
    select_coreset_distributed(
        LastLayerGradients(warm.residual, None, warm.labels, indices_here, warm.losses),
        method="partitioned",
        fraction=0.5,
        part_size=20,
    )
    received[0] = visits[0] = 0
    with PeakMemory() as memory:
        begin = time.process_time()
        select_coreset_distributed(shard, **options)
        seconds = time.process_time() - begin
    figures = {
        "seconds": seconds,
        "received_bytes": received[0],
        "memory_bytes": memory.extra_bytes,
        "visits": visits[0],
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def _count_bytes(received: list[int]) -> None:
    """Count what comes in by the two collectives that a selection uses."""
    all_to_all, all_gather = dist.all_to_all_single, dist.all_gather_object

    def counted_all_to_all(output: torch.Tensor, *args: Any, **options: Any) -> Any:
        received[0] += output.numel() * output.element_size()
        return all_to_all(output, *args, **options)

    def counted_all_gather(values: list[Any], value: Any, **options: Any) -> None:
        all_gather(values, value, **options)
        received[0] += sum(len(pickle.dumps(each)) for each in values)

    dist.all_to_all_single = counted_all_to_all
    dist.all_gather_object = counted_all_gather


def _count_visits(visits: list[int]) -> None:
    """Count pairs of row and pick that the assignment compares."""
    block = partition.SquaredDistances.compute_block

    def counted(self: Any, rows: Any, first: int = 0, last: int | None = None) -> Any:
        found = block(self, rows, first, last)
        if last is not None:
            visits[0] += found.size
        return found

    partition.SquaredDistances.compute_block = counted  # type: ignore[method-assign]


def simulate(job: Job) -> dict[str, float]:
    """Return the busiest rank's figures of a distributed selection on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (job, folder), nprocs=job.ranks)
        ranks = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(job.ranks)]
    return {name: max(each[name] for each in ranks) for name in ranks[0]}


def fitted(costs: UnitCosts, runs: list[dict[str, Any]], jobs: list[Job]) -> UnitCosts:
    """Return the costs with those of a row, a result and a rank fitted to the first runs."""
    left, right = [], []
    for job, run in zip(jobs, runs, strict=True):
        visited = run["visits"] / (job.examples / job.ranks) / (0.9 * job.part_size * job.fraction)
        known = predict(job, costs, visited if job.in_parts else 0.0)["seconds"]
        left.append([job.examples / job.ranks, job.examples, 1.0])
        right.append(run["measured"]["seconds"] - known)
    row, result, fixed = nnls(np.array(left), np.array(right))[0].tolist()
    return replace(costs, row=row, result=result, fixed=fixed)


FITTED = [
    Job(50_000, 50, 10, 1),
    Job(200_000, 200, 10, 1),
    Job(200_000, 200, 10, 4),
    Job(50_000, 1, 10, 1, part_size=1024),
    Job(200_000, 1, 10, 4, part_size=1024),
]
CHECKED = [
    Job(400_000, 400, 10, 2),
    Job(400_000, 400, 10, 8),
    Job(100_000, 100, 40, 4),
    Job(100_000, 1, 10, 2, part_size=1024),
    Job(400_000, 1, 10, 2, part_size=1024),
    Job(400_000, 1, 10, 8, part_size=1024),
]
ASKED = [
    Job(examples, classes, width, ranks, cores=8)
    for examples in (10**8, 10**9)
    for classes, width in ((100_000, 100), (1_000, 100), (1, 10))
    for ranks in (8, 64, 512)
]


def main(arguments: list[str] | None = None) -> None:
    """Measure, check and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    small, large = (measured_costs(block) for block in (1000, 7372))
    first = [_run(job) for job in FITTED]
    costs = fitted(small, first, FITTED)
    large = replace(large, row=costs.row, result=costs.result, fixed=costs.fixed)
    checked = [_run(job) for job in CHECKED]
    for run, job in zip(first + checked, FITTED + CHECKED, strict=True):
        run["predicted"] = predict(job, costs, run["visited"])
        print(
            f"{job.examples:>9,} in {job.classes:>3} classes on {job.ranks} ranks: "
            + ", ".join(
                f"{name} {run['measured'][name]:.3g} (model {run['predicted'][name]:.3g})"
                for name in ("seconds", "received_bytes", "memory_bytes")
            )
        )
    visited = max(run["visited"] for run in checked)
    asked = [
        {"job": asdict(job), "predicted": predict(job, large if job.in_parts else costs, visited)}
        for job in ASKED
    ]
    for each in asked:
        job, figures = Job(**each["job"]), each["predicted"]
        print(
            f"{job.examples:>13,} | {job.classes:>7,} | {job.ranks:>3} | "
            f"{figures['seconds']:>9.0f} s | {figures['memory_bytes'] / 2**30:>6.1f} GiB | "
            f"{figures['received_bytes'] / 2**30:>6.1f} GiB received"
        )
    if given.out is not None:
        record = {
            "environment": environment(),
            "unit_costs": {"blocks of 1,000": asdict(costs), "blocks of 7,372": asdict(large)},
            "visited": visited,
            "fitted": first,
            "checked": checked,
            "asked": asked,
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n")


def _run(job: Job) -> dict[str, Any]:
    measured = simulate(job)
    rows = job.examples / job.ranks
    visited = measured["visits"] / rows / (0.9 * job.part_size * job.fraction)
    return {
        "job": asdict(job),
        "measured": measured,
        "visits": measured["visits"],
        "visited": visited if job.in_parts else 0.0,
    }


if __name__ == "__main__":
    main()
