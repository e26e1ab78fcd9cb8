"""One selection by several processes, each with a shard of the rows and a share of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from augsubset.distributed import Ranks
from augsubset.selection import partition
from augsubset.selection.certificate import ClassMetrics, measure_class
from augsubset.selection.coreset import assemble_selection, assign_quotas
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import Similarity
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.solver import (
    ClassProblem,
    ClassSolution,
    Method,
    Options,
    Solver,
    choose_method,
    count_workers,
    solve,
)
from augsubset.utils.checks import AugsubsetError

__all__ = ["assign_by_cost", "select_coreset_distributed"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


def select_coreset_distributed(
    gradients: LastLayerGradients | Callable[[], LastLayerGradients],
    *,
    fraction: float | None = None,
    budget: int | Mapping[int, int] | None = None,
    tolerance: float | None = None,
    similarity: Similarity = "shifted",
    method: Method = "auto",
    device: torch.device | str | None = None,
    max_memory: int | None = None,
    seed: int = 0,
    epsilon: float = 0.1,
    part_size: int = 8192,
    group: dist.ProcessGroup | None = None,
    timeout: timedelta = timedelta(minutes=30),
) -> Selection:
    """Select from the shards of all ranks; every rank returns the same selection.

    Each class is assigned to one rank, balanced by cost, which receives its rows and solves it. A
    class to be solved in parts is solved by all ranks, each with some of the parts. Exact methods
    return what :func:`select_coreset` returns for all rows in one process, sorted by dataset index.

    Call it on every rank of the group, with the same arguments except the first.

    Args:
        gradients: This rank's rows, with their dataset indices: ``probe.scan(dataset,
            indices=range(rank, n, world_size))``. Or a function that returns them, so that an
            exception in it on one rank is raised on all ranks at once.
        fraction: As in :func:`select_coreset`, like all arguments up to ``part_size``.
        budget: An int, or a mapping with the classes of all ranks.
        tolerance: Each class is solved by one rank.
        similarity: A name, or a function that is the same on every rank.
        method: Maximiser.
        device: Of each rank.
        max_memory: Of each rank, beside the rows of its classes.
        seed: For ``method="stochastic"``.
        epsilon: For ``method="stochastic"``.
        part_size: For ``method="partitioned"``.
        group: The participating ranks; ``None``: all. Rows are exchanged between CPUs by gloo; for
            other backends a gloo group is created, which is a collective call.
        timeout: How long a rank waits for the slowest before it raises.

    Returns:
        The selection from the rows of all ranks; ``clusters`` is sorted by dataset index.

    Raises:
        AugsubsetError: If another rank failed, has different arguments, or does not arrive in time;
            on every rank that is alive.
        ValueError: As :func:`select_coreset`, and if a dataset index is on two ranks.

    Cost:
        Each row is sent once, to the rank of its class (4 bytes per feature), and each example's
        representative to all ranks (16 bytes). A rank stores its shard and the rows it solves.
    """
    ranks = Ranks(group, timeout)
    with ranks.phase("preparing its shard"):
        options = Options(
            similarity=similarity,
            method=method,
            epsilon=epsilon,
            part_size=part_size,
            device=torch.device("cpu" if device is None else device),
            max_memory=max_memory,
            seed=seed,
        )
        own = gradients() if callable(gradients) else gradients
        if not isinstance(own, LastLayerGradients):
            raise TypeError(f"gradients must be LastLayerGradients, got {type(own).__name__}.")
        shard = _Shard(own.labels.numpy(), own.indices.numpy(), own.factors)
    with ranks.phase("comparing arguments"):
        name = similarity if isinstance(similarity, str) else "callable"
        arguments = (fraction, budget, tolerance, method, max_memory, seed, epsilon, part_size)
        compared = (arguments, name, shard.layout)
        for rank, other in enumerate(ranks.gather(compared)):
            if other != compared:
                raise ValueError(
                    f"arguments must be the same on every rank, got {compared} on rank "
                    f"{ranks.rank} and {other} on rank {rank}."
                )
    counts = ranks.gather(np.unique(shard.labels, return_counts=True))
    classes = np.unique(np.concatenate([present for present, _ in counts]))
    sizes = np.zeros(len(classes), np.int64)
    for present, count in counts:
        sizes[np.searchsorted(classes, present)] += count
    with ranks.phase("dividing the budget"):
        quotas = assign_quotas(classes, sizes, options, fraction, budget, tolerance)
    # Only a class that would not be subsampled first is worth dividing among ranks.
    is_divided = np.array(
        [
            choose_method(method, size) == "partitioned"
            and k is not None
            and partition.count_rows_for(k, part_size) >= size
            for size, (k, _) in zip(sizes.tolist(), quotas, strict=True)
        ]
    )

    # Undivided classes: rows are sent to their class's rank, solved there, results gathered.
    owners = np.array(assign_by_cost(np.where(is_divided, 0.0, sizes**2.0), ranks.world_size))
    class_of = np.searchsorted(classes, shard.labels)
    undivided = np.flatnonzero(~is_divided[class_of])
    received = _exchange_rows(ranks, shard.take(undivided), owners[class_of[undivided]])
    results: list[tuple[int, Int64Array, ClassSolution]] = []
    with ranks.phase("solving its classes"):
        problems = received.build_problems(classes, quotas)
        solutions = solve(problems, options) if problems else []
        for problem, solution in zip(problems, solutions, strict=True):
            results.append((problem.label, problem.indices, solution))
    gathered = [result for some in ranks.gather(results) for result in some]

    # Divided classes: one after the other, each by all ranks together.
    for c in np.flatnonzero(is_divided).tolist():
        k = quotas[c][0]
        assert k is not None
        members = shard.take(np.flatnonzero(class_of == c))
        solved = _solve_in_parts(ranks, members, int(sizes[c]), k, options)
        gathered.append((int(classes[c]), *solved))

    with ranks.phase("combining the classes"):
        in_proportion = tolerance is None and not isinstance(budget, Mapping)
        gathered.sort(key=lambda result: result[0])
        selection = _combine_classes(gathered, sizes if in_proportion else None)
    with ranks.phase("comparing digests"):
        digests = ranks.gather(selection.digest)
        if len(set(digests)) > 1:
            raise AugsubsetError(f"ranks must agree on the selection, got digests {digests}.")
    return selection


def assign_by_cost(costs: Iterable[float], num_ranks: int) -> list[int]:
    """Return the rank of each task: in order of decreasing cost, each to the least loaded rank.

    The highest load is at most 4/3 of the optimum (Graham, 1969).

    Example:
        >>> assign_by_cost([1, 5, 4, 2], 2)
        [0, 0, 1, 1]
    """
    costs = list(costs)
    loads = [0.0] * num_ranks
    owners = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
        rank = min(range(num_ranks), key=lambda rank: loads[rank])
        owners[task] = rank
        loads[rank] += costs[task]
    return owners


@dataclass(frozen=True, eq=False)
class _Shard:
    """Some rows, on one rank."""

    labels: Int64Array
    indices: Int64Array
    factors: tuple[Factors, ...]

    @property
    def layout(self) -> list[tuple[int, int, str]]:
        """Widths and dtype of each layer."""
        return [
            (left.shape[1], -1 if right is None else right.shape[1], str(left.dtype))
            for left, right in self.factors
        ]

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """All arrays as a flat list, to send one after another."""
        sides = [side for part in self.factors for side in part if side is not None]
        return [self.labels, self.indices, *sides]

    def replace_arrays(self, arrays: Sequence[npt.NDArray[Any]]) -> _Shard:
        """Return a shard with the same layout and other :attr:`arrays`."""
        sides = iter(arrays[2:])
        factors = tuple(
            Factors(next(sides), None if part.right is None else next(sides))
            for part in self.factors
        )
        return _Shard(arrays[0], arrays[1], factors)

    def take(self, positions: Int64Array) -> _Shard:
        return self.replace_arrays([array[positions] for array in self.arrays])

    def build_problems(
        self, classes: Int64Array, quotas: Sequence[tuple[int | None, float | None]]
    ) -> list[ClassProblem]:
        """Return one problem for each class present."""
        if not len(self.labels):
            return []
        order = np.lexsort((self.indices, self.labels))
        present, starts = np.unique(self.labels[order], return_index=True)
        return [
            ClassProblem(
                int(label),
                self.factors,
                positions,
                self.indices[positions],
                *quotas[int(np.searchsorted(classes, label))],
            )
            for label, positions in zip(present, np.split(order, starts[1:]), strict=True)
        ]


def _exchange_rows(ranks: Ranks, shard: _Shard, to: Int64Array) -> _Shard:
    """Send each row to a rank; return the rows received, sorted by dataset index.

    All-to-all, one array at a time: rows are grouped by destination, and every rank first announces
    how many it sends to each. Sorting makes the result independent of how rows were sharded.
    """
    order = np.argsort(to, kind="stable")
    outgoing = np.bincount(to, minlength=ranks.world_size).tolist()
    incoming = [counts[ranks.rank] for counts in ranks.gather(outgoing)]
    received = []
    for array in shard.arrays:
        rows = torch.from_numpy(np.ascontiguousarray(array[order]))
        there = torch.empty((sum(incoming), *rows.shape[1:]), dtype=rows.dtype)
        if rows.ndim == 1 or rows.shape[1]:
            with ranks.together():
                dist.all_to_all_single(there, rows, incoming, outgoing, group=ranks.group)
        received.append(there.numpy())
    by_index = np.argsort(received[1], kind="stable")
    return shard.replace_arrays([array[by_index] for array in received])


def _solve_in_parts(
    ranks: Ranks, shard: _Shard, num_rows: int, budget: int, options: Options
) -> tuple[Int64Array, ClassSolution]:
    """Solve one class on all ranks; return its dataset indices and the solution, on every rank.

    1. Every rank builds the same tree from the gathered sample, and sends its rows to the ranks of
       their parts.
    2. Each rank solves its parts; all ranks merge all proposed picks by gain in the same way.
    3. All ranks gather the rows of the picks, and each assigns the rows of its own parts to them.
    """
    size = options.part_size
    sampled = shard.take(partition.draw_tree_sample(shard.indices, num_rows, size))
    samples = ranks.gather(sampled.arrays)
    with ranks.phase("dividing a class into parts"):
        sides = [np.concatenate(side) for side in zip(*samples, strict=True)]
        by_index = np.argsort(sides[1])  # the order of one process: sums depend on it
        sample = shard.replace_arrays([side[by_index] for side in sides])
        tree = partition.LocalityTree(sample.factors, num_rows, size)
        leaf = tree.assign_parts(shard.factors)
    counts = sum(ranks.gather(np.bincount(leaf, minlength=tree.num_parts)))
    own = _exchange_rows(
        ranks, shard, np.array(assign_by_cost(counts**2.0, ranks.world_size))[leaf]
    )

    with ranks.phase("solving its parts"):
        leaves = tree.assign_parts(own.factors)
        parts = []
        for number in np.unique(leaves):
            members = np.flatnonzero(leaves == number)
            halves = partition.split_in_halves([part.take(members) for part in own.factors], size)
            parts += [members[half] for half in halves]
        problem = ClassProblem(0, own.factors, np.arange(len(own.indices)), own.indices, budget)
        solver = Solver(options, count_workers([problem], options) if parts else 1)

        def propose_picks(members: Int64Array) -> tuple[Int64Array, Float64Array]:
            part_budget = partition.compute_part_budget(budget, len(members), num_rows)
            order, gains = solver.solve_part(own.take(members).factors, part_budget)
            return own.indices[members[order]], gains

        proposed = list(solver.map(propose_picks, parts))
    proposals = [one for some in ranks.gather(proposed) for one in some]
    numbers, gains = partition.merge_by_gain(*zip(*proposals, strict=True))
    numbers, gains = numbers[:budget], gains[:budget]

    chosen = [own.take(members[np.isin(own.indices[members], numbers)]).arrays for members in parts]
    groups = ranks.gather(chosen)
    with ranks.phase("assigning its rows"):
        flat = [arrays for some in groups for arrays in some]
        first = sum(len(some) for some in groups[: ranks.rank])
        picks = shard.replace_arrays([np.concatenate(side) for side in zip(*flat, strict=True)])
        counts = np.array([len(arrays[1]) for arrays in flat])
        index = partition.PickIndex(picks.factors, picks.indices, counts)

        def assign_part(number: int) -> Int64Array:
            return index.find_nearest(own.take(parts[number]).factors, first + number)

        nearest = np.empty(len(own.indices), np.int64)
        for members, found in zip(parts, solver.map(assign_part, range(len(parts))), strict=True):
            nearest[members] = found
        is_pick = np.isin(own.indices, numbers)
        nearest[is_pick] = own.indices[is_pick]
        by_index = np.argsort(picks.indices)
        at = by_index[np.searchsorted(picks.indices, nearest, sorter=by_index)]
        metrics = measure_class(own.factors, [part.take(at) for part in picks.factors])
    everything = ranks.gather((own.indices, nearest, metrics))
    all_indices, all_nearest, all_metrics = zip(*everything, strict=True)
    indices = np.concatenate(all_indices)
    order = np.argsort(indices)
    indices = indices[order]
    solution = ClassSolution(
        order=np.searchsorted(indices, numbers),
        gains=gains,
        nearest=np.searchsorted(indices, np.concatenate(all_nearest)[order]),
        lower_bound=None,
        metrics=ClassMetrics(
            sum(one.error for one in all_metrics),
            [sum(parts) for parts in zip(*(one.gap for one in all_metrics), strict=True)],
            [sum(parts) for parts in zip(*(one.total for one in all_metrics), strict=True)],
        ),
    )
    return indices, solution


def _combine_classes(
    results: Sequence[tuple[int, Int64Array, ClassSolution]], sizes: Int64Array | None
) -> Selection:
    """Return the selection from (label, indices, solution) of each class, sorted by label."""
    indices = np.concatenate([members for _, members, _ in results])
    distinct = np.unique(indices)
    if len(distinct) != len(indices):
        raise ValueError(
            f"indices must be distinct over all ranks, got {len(indices) - len(distinct)} repeats. "
            "Give each rank its own shard."
        )
    return assemble_selection(
        torch.from_numpy(distinct),
        [np.searchsorted(distinct, members) for _, members, _ in results],
        [solution for _, _, solution in results],
        sizes,
    )
