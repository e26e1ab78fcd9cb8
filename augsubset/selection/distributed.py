"""One selection by many processes: each holds a shard, each solves its share of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from augsubset.distributed import Ranks
from augsubset.selection import partition
from augsubset.selection.certificate import ClassMeasure, measure
from augsubset.selection.coreset import assemble, quotas
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
    method_for,
    solve,
    workers_within,
)
from augsubset.utils.checks import AugsubsetError

__all__ = ["deal_by_cost", "select_coreset_distributed"]

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

    Classes are dealt to ranks by cost, and rows travel to who solves their class; of a class that
    is solved in parts, the parts are dealt. Exact methods select what :func:`select_coreset`
    selects from all rows in one process, in the order of their dataset indices.

    Call it on every rank of the group with the same arguments but the first.

    Args:
        gradients: This rank's rows, with their dataset indices: ``probe.scan(dataset,
            indices=range(rank, n, world_size))``. Or a function that returns them: what it raises
            on one rank is raised on all at once.
        fraction: See :func:`select_coreset`, as for all arguments up to ``part_size``.
        budget: An int, or a mapping of all classes on all ranks.
        tolerance: Classes that need one are solved by one rank each.
        similarity: A name, or a function that is the same on every rank.
        method: As there.
        device: As there, on each rank.
        max_memory: As there, on each rank; beside it a rank holds the rows of its classes.
        seed: As there.
        epsilon: As there.
        part_size: As there.
        group: The ranks that take part; ``None``: all. Rows are on the host and travel by gloo;
            beside another backend a gloo group is made, by a collective call.
        timeout: How long a rank waits for the slowest before it raises.

    Returns:
        The selection of all ranks' rows; ``clusters`` has them in ascending dataset index.

    Raises:
        AugsubsetError: If another rank failed, differs in its arguments, or does not turn up in
            time; on every rank that is alive.
        ValueError: As :func:`select_coreset`; and if a dataset index is on two ranks.

    Cost:
        Each row travels once, to its class's rank (width * 4 bytes), and everybody learns
        everybody's representative (16 bytes an example, to each rank). A rank holds its shard and
        the rows that it solves.
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
        mine = gradients() if callable(gradients) else gradients
        if not isinstance(mine, LastLayerGradients):
            raise TypeError(f"gradients must be LastLayerGradients, got {type(mine).__name__}.")
        shard = _Shard.of(mine)
    with ranks.phase("comparing arguments"):
        asked = (fraction, budget, tolerance, method, max_memory, seed, epsilon, part_size)
        named = similarity if isinstance(similarity, str) else "callable"
        for rank, other in enumerate(ranks.gather((asked, named, shard.kind))):
            if other != (asked, named, shard.kind):
                raise ValueError(
                    f"arguments must be the same on every rank, got {(asked, named, shard.kind)} "
                    f"on rank {ranks.rank} and {other} on rank {rank}."
                )
    counts = ranks.gather((shard.classes, shard.counts))
    classes = np.unique(np.concatenate([each for each, _ in counts]))
    sizes = np.zeros(len(classes), np.int64)
    for each, count in counts:
        sizes[np.searchsorted(classes, each)] += count
    with ranks.phase("dividing the budget"):
        shares = quotas(classes, sizes, options, fraction, budget, tolerance)
    spread = [
        method_for(method, size) == "partitioned"
        and k is not None
        and partition.num_rows_for(k, part_size) >= size
        for size, (k, _) in zip(sizes.tolist(), shares, strict=True)
    ]

    # Whole classes: rows to owners, solved there, results to everybody.
    costs = [0.0 if apart else float(size) ** 2 for size, apart in zip(sizes, spread, strict=True)]
    owners = np.array(deal_by_cost(costs, ranks.world_size))
    row_class = np.searchsorted(classes, shard.labels)
    here = np.flatnonzero(~np.array(spread)[row_class])
    received = _send(ranks, shard.at(here), owners[row_class[here]])
    results: list[tuple[int, Int64Array, ClassSolution]] = []
    with ranks.phase("solving its classes"):
        problems = received.problems(classes, shares)
        for problem, solution in zip(
            problems, solve(problems, options) if problems else [], strict=True
        ):
            results.append((problem.label, problem.indices, solution))

    # Classes in parts: one after another, each by all ranks.
    gathered = [result for each in ranks.gather(results) for result in each]
    for c in np.flatnonzero(spread).tolist():
        k = shares[c][0]
        assert k is not None
        in_class = shard.at(np.flatnonzero(row_class == c))
        gathered.append(
            (int(classes[c]), *_solve_in_parts(ranks, in_class, int(sizes[c]), k, options))
        )

    with ranks.phase("putting the classes together"):
        selection = _together(
            sorted(gathered, key=lambda result: result[0]),
            sizes,
            tolerance is None and not isinstance(budget, Mapping),
        )
    with ranks.phase("comparing digests"):
        digests = ranks.gather(selection.digest)
        if len(set(digests)) > 1:
            raise AugsubsetError(f"ranks must agree on the selection, got digests {digests}.")
    return selection


def deal_by_cost(costs: Sequence[float], num_ranks: int) -> list[int]:
    """Return the rank that takes each task: the costliest first, to who has least so far.

    The busiest rank has at most 4/3 of the least possible load (Graham, 1969).

    Example:
        >>> deal_by_cost([1, 5, 4, 2], 2)
        [0, 0, 1, 1]
    """
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

    @staticmethod
    def of(gradients: LastLayerGradients) -> _Shard:
        return _Shard(gradients.labels.numpy(), gradients.indices.numpy(), gradients.factors)

    @property
    def kind(self) -> list[tuple[int, int, str]]:
        """Widths and dtype of each layer."""
        return [
            (left.shape[1], -1 if right is None else right.shape[1], str(left.dtype))
            for left, right in self.factors
        ]

    @property
    def classes(self) -> Int64Array:
        return np.unique(self.labels)

    @property
    def counts(self) -> Int64Array:
        return np.unique(self.labels, return_counts=True)[1]

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        sides = [side for part in self.factors for side in part if side is not None]
        return [self.labels, self.indices, *sides]

    def like(self, arrays: Sequence[npt.NDArray[Any]]) -> _Shard:
        """Return a shard of the same kind from its arrays."""
        sides = iter(arrays[2:])
        factors = tuple(
            Factors(next(sides), None if part.right is None else next(sides))
            for part in self.factors
        )
        return _Shard(arrays[0], arrays[1], factors)

    def at(self, positions: Int64Array) -> _Shard:
        return self.like([array[positions] for array in self.arrays])

    def problems(
        self, classes: Int64Array, shares: Sequence[tuple[int | None, float | None]]
    ) -> list[ClassProblem]:
        """Return the classes whose rows are here as problems."""
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
                *shares[int(np.searchsorted(classes, label))],
            )
            for label, positions in zip(present, np.split(order, starts[1:]), strict=True)
        ]


def _send(ranks: Ranks, shard: _Shard, to: Int64Array) -> _Shard:
    """Send each row to a rank; return what was sent here, by ascending dataset index."""
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
    return shard.like([array[by_index] for array in received])


def _solve_in_parts(
    ranks: Ranks, shard: _Shard, num_rows: int, budget: int, options: Options
) -> tuple[Int64Array, ClassSolution]:
    """Solve one class by all ranks; return its dataset indices and the solution, everywhere."""
    size = options.part_size
    few = shard.at(partition.sampled(shard.indices, num_rows, size))
    samples = ranks.gather(few.arrays)
    with ranks.phase("dividing a class into parts"):
        sample = _stacked(shard, samples)
        tree = partition.LocalityTree(sample.factors, num_rows, size)
        leaf = tree.parts_of(shard.factors)
    counts = sum(ranks.gather(np.bincount(leaf, minlength=tree.num_parts)))
    owners = np.array(deal_by_cost([float(count) ** 2 for count in counts], ranks.world_size))
    mine = _send(ranks, shard, owners[leaf])

    with ranks.phase("solving its parts"):
        leaves = tree.parts_of(mine.factors)
        parts = []
        for number in np.unique(leaves):
            members = np.flatnonzero(leaves == number)
            rows = [part.at(members) for part in mine.factors]
            parts += [members[few] for few in partition.split_by_rank(rows, size)]
        problem = ClassProblem(0, mine.factors, np.arange(len(mine.indices)), mine.indices, budget)
        solver = Solver(options, workers_within([problem], options) if parts else 1)
        found = list(
            solver.map(lambda members: _part_picks(solver, mine, members, budget, num_rows), parts)
        )
    offers = [offer for each in ranks.gather(found) for offer in each]
    numbers, gains = partition.merge_by_gain(*zip(*offers, strict=True))
    numbers, gains = numbers[:budget], gains[:budget]

    # Everybody learns the picks' rows, grouped by part, and assigns the rows of its own parts.
    chosen = []
    for members in parts:
        chosen.append(mine.at(members[np.isin(mine.indices[members], numbers)]).arrays)
    groups = ranks.gather(chosen)
    with ranks.phase("assigning its rows"):
        flat = [arrays for each in groups for arrays in each]
        first = sum(len(each) for each in groups[: ranks.rank])
        picks = shard.like([np.concatenate(side) for side in zip(*flat, strict=True)])
        counts = np.array([len(arrays[1]) for arrays in flat])
        rank_of = np.argsort(picks.indices)

        index = partition.PickIndex(picks.factors, picks.indices, counts)

        def assign(number: int) -> Int64Array:
            return index.nearest(mine.at(parts[number]).factors, first + number)

        nearest = np.empty(len(mine.indices), np.int64)
        for members, found_here in zip(parts, solver.map(assign, range(len(parts))), strict=True):
            nearest[members] = found_here
        own = np.isin(mine.indices, numbers)
        nearest[own] = mine.indices[own]
        at = rank_of[np.searchsorted(picks.indices, nearest, sorter=rank_of)]
        measured = measure(mine.factors, [part.at(at) for part in picks.factors])
    everybody = ranks.gather((mine.indices, nearest, measured))
    indices = np.concatenate([each for each, _, _ in everybody])
    order = np.argsort(indices)
    indices = indices[order]
    nearest = np.concatenate([each for _, each, _ in everybody])[order]
    solution = ClassSolution(
        order=np.searchsorted(indices, numbers),
        gains=gains,
        nearest=np.searchsorted(indices, nearest),
        bound=None,
        measured=_added([each for _, _, each in everybody]),
    )
    return indices, solution


def _part_picks(
    solver: Solver, shard: _Shard, members: Int64Array, budget: int, num_rows: int
) -> tuple[Int64Array, Float64Array]:
    """Return a part's picks as dataset indices, and their gains."""
    share = partition.part_budget(budget, len(members), num_rows)
    order, gains = solver.solve_part(shard.at(members).factors, share)
    return shard.indices[members[order]], gains


def _stacked(shard: _Shard, arrays: Sequence[Sequence[npt.NDArray[Any]]]) -> _Shard:
    """Return several ranks' rows as one shard, by ascending dataset index."""
    sides = [np.concatenate(side) for side in zip(*arrays, strict=True)]
    order = np.argsort(sides[1])
    return shard.like([side[order] for side in sides])


def _added(measures: Sequence[ClassMeasure]) -> ClassMeasure:
    return ClassMeasure(
        sum(each.error for each in measures),
        [sum(parts) for parts in zip(*(each.gap for each in measures), strict=True)],
        [sum(parts) for parts in zip(*(each.total for each in measures), strict=True)],
    )


def _together(
    results: Sequence[tuple[int, Int64Array, ClassSolution]], sizes: Int64Array, in_proportion: bool
) -> Selection:
    """Return the selection over all ranks' rows, by ascending dataset index."""
    indices = np.concatenate([each for _, each, _ in results])
    everyone = np.unique(indices)
    if len(everyone) != len(indices):
        raise ValueError(
            f"indices must be distinct over all ranks, got {len(indices) - len(everyone)} repeats. "
            "Give each rank a shard of its own."
        )
    return assemble(
        torch.from_numpy(everyone),
        [np.searchsorted(everyone, each) for _, each, _ in results],
        [solution for _, _, solution in results],
        sizes if in_proportion else None,
    )
